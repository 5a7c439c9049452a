"""Are the probabilities right? Reliability bins, expected calibration error, predicted over observed clicks."""

from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtri

from adrec.metrics.ties import ArrayLike, Floats, Ints

Binning = Literal["quantile", "uniform"]
BINS = 15
"""Bins of the reliability diagram: enough to see a bend, few enough to leave a small log many rows in each."""


class Reliability(NamedTuple):
    """The reliability diagram's points; arrays (K,) over the K bins that hold rows, lowest scores first."""

    rows: Ints
    predicted: Floats
    """Mean predicted probability of the bin."""
    observed: Floats
    """Share of positives in the bin."""
    low: Floats
    """Lower end of the 95 % Wilson interval of `observed` (rows taken as independent)."""
    high: Floats


def bin_codes(probabilities: ArrayLike, bins: int = BINS, binning: Binning = "quantile") -> Ints:
    """Bin of each row (N,) in [0, bins). Quantile bins hold about equally many rows; equal scores share a bin."""
    p = np.asarray(probabilities, dtype=np.float64)
    if len(p) == 0:
        return np.zeros(0, dtype=np.int64)
    steps = np.linspace(0, 1, bins + 1)[1:-1]
    # "lower" takes edges from the data, so that an edge never falls inside a run of equal scores.
    edges = np.unique(np.quantile(p, steps, method="lower")) if binning == "quantile" else steps
    return np.searchsorted(edges, p, side="left").astype(np.int64)


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = BINS, binning: Binning = "quantile") -> Reliability:
    """Predicted against observed by bin, with Wilson (1927) intervals. Empty input gives empty arrays."""
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    codes = bin_codes(p, bins, binning)
    rows = np.bincount(codes, minlength=bins)
    kept = rows > 0
    rows = rows[kept].astype(np.int64)
    predicted = np.bincount(codes, p, bins)[kept] / rows
    observed = np.bincount(codes, y, bins)[kept] / rows
    low, high = wilson_interval(observed, rows)
    return Reliability(rows, predicted, observed, low, high)


def ece(labels: ArrayLike, probabilities: ArrayLike, bins: int = BINS, binning: Binning = "quantile") -> float:
    """Expected calibration error, in [0, 1]: the row-weighted mean of |predicted - observed| over bins (Naeini et al. 2015).

    Quantile bins by default, since click probabilities crowd near 0. NaN without rows.

    >>> ece([0, 1], [0.25, 0.75], bins=2)  # (|.25 - 0| + |.75 - 1|) / 2
    0.25
    """
    table = reliability(labels, probabilities, bins, binning)
    if len(table.rows) == 0:
        return float("nan")
    return float(table.rows @ np.abs(table.predicted - table.observed) / table.rows.sum())


def predicted_over_observed(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Sum of predicted probabilities over number of positives ("calibration" in He et al. 2014); 1 is right.

    NaN without positives.

    >>> predicted_over_observed([1, 0], [0.5, 0.25])
    0.75
    """
    observed = float(np.asarray(labels, dtype=np.float64).sum())
    predicted = float(np.asarray(probabilities, dtype=np.float64).sum())
    return predicted / observed if observed > 0 else float("nan")


def wilson_interval(rate: Floats, rows: Ints, level: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson (1927) interval of a share `rate` seen in `rows` independent rows; both (K,)."""
    z = float(ndtri(0.5 + level / 2))
    scale = 1 + z**2 / rows
    centre = (rate + z**2 / (2 * rows)) / scale
    half = z * np.sqrt(rate * (1 - rate) / rows + z**2 / (4 * rows**2)) / scale
    # At a rate of 0 or 1 an end is the rate itself, which rounding may put on the wrong side of it.
    return np.clip(np.minimum(centre - half, rate), 0, 1), np.clip(np.maximum(centre + half, rate), 0, 1)
