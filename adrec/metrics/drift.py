"""Have two tables the same distribution? Distances of one column between them, with what chance alone would give.

Numbers are cut into bins at quantiles of both tables together, categories are their values. Formulas over counts alone, so a
table of any size costs one pass. Rows of one user are not independent; `design` corrects for it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, ndtri

from adrec.metrics.intervals.significance import LEVEL

Counts = NDArray[np.float64]
SMALLEST = 1e-4
"""A bin's least share in PSI, as is customary: its logarithm must not be infinite."""


class Distance(NamedTuple):
    """How far apart two distributions are."""

    psi: float
    """population stability index, sum (p - q) ln(p / q); customary: below .1 little, from .25 on much"""
    js: float
    """Jensen-Shannon divergence in bits, 0 to 1"""
    low: float
    """interval of `js` less what chance alone would give"""
    high: float
    p_value: float
    """of "both are samples of one distribution" (chi-squared of homogeneity, Rao and Scott 1981)"""


def distance(before: Counts, after: Counts, *, design: float = 1.0) -> Distance:
    """From the counts of each bin (B,) in two tables.

    PSI: Siddiqi 2006. Jensen-Shannon: Lin 1991; of two samples of one distribution it is a chi-squared over 8 n ln 2, whose
    mean is taken off before the interval is made (a plug-in divergence is never 0). `design` is how many rows count as one:
    the variance of clustered rows over that of independent ones. NaN where a table is empty.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    sizes = before.sum(), after.sum()
    if min(sizes) <= 0:
        return Distance(*[float("nan")] * 5)
    p, q = before / sizes[0], after / sizes[1]
    used = (p + q) > 0
    p, q = p[used], q[used]
    js = _divergence(p, q)
    effective = 1 / (1 / sizes[0] + 1 / sizes[1]) / max(design, 1.0)  # as one sample against a known distribution
    freedom = max(int(used.sum()) - 1, 0)
    pooled = (before[used] + after[used]) / sum(sizes)
    statistic = float(effective * np.sum((p - q) ** 2 / pooled)) if freedom else 0.0
    p_value = float(chdtrc(freedom, statistic)) if freedom else 1.0
    # Delta method: the gradient of JS in p is half the log ratio to the middle.
    middle = (p + q) / 2
    slope_p, slope_q = (0.5 * np.log2(np.where(one > 0, one, SMALLEST) / middle) for one in (p, q))
    variance = _variance(p, slope_p) / sizes[0] + _variance(q, slope_q) / sizes[1]
    bias = freedom / (8 * np.log(2) * effective)
    reach = float(ndtri(0.5 + LEVEL / 2)) * np.sqrt(max(design, 1.0) * variance)
    value = js - bias
    clipped_p, clipped_q = np.maximum(p, SMALLEST), np.maximum(q, SMALLEST)
    psi = float(np.sum((clipped_p - clipped_q) * np.log(clipped_p / clipped_q)))
    return Distance(psi, js, max(0.0, value - reach), min(1.0, max(value, 0.0) + reach), p_value)


def _divergence(p: Counts, q: Counts) -> float:
    """Jensen-Shannon divergence of two distributions, in bits."""
    middle = (p + q) / 2
    parts = [np.sum(share[share > 0] * np.log2(share[share > 0] / middle[share > 0])) for share in (p, q)]
    return float(max(sum(parts) / 2, 0.0))


def _variance(share: Counts, slope: Counts) -> float:
    """Of a linear function of the shares of one multinomial draw."""
    return float(np.sum(share * slope**2) - np.sum(share * slope) ** 2)
