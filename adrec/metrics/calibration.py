"""Are the probabilities right? Reliability bins, expected calibration error, predicted over observed clicks."""

from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtri

from adrec.metrics.ties import ArrayLike, Floats, Ints, as_weights

Binning = Literal["quantile", "uniform"]
BINS = 15
"""Bins of the reliability diagram: enough to see a bend, few enough to leave a small log many rows in each."""


class Reliability(NamedTuple):
    """The reliability diagram's points; arrays (K,) over the K bins that hold rows, lowest scores first."""

    rows: Ints | Floats
    """Impressions, where rows weigh."""
    predicted: Floats
    """Mean predicted probability of the bin."""
    observed: Floats
    """Share of positives in the bin."""
    low: Floats
    """Lower end of the 95 % Wilson interval of `observed` (rows, or impressions, taken as independent)."""
    high: Floats


def bin_codes(
    probabilities: ArrayLike, bins: int = BINS, binning: Binning = "quantile", weights: ArrayLike | None = None
) -> Ints:
    """Bin of each row (N,) in [0, bins). Quantile bins hold about equally many rows (or weights); equal scores share a bin."""
    p = np.asarray(probabilities, dtype=np.float64)
    return np.searchsorted(bin_edges(p, bins, binning, weights), p, side="left").astype(np.int64)


def bin_edges(
    probabilities: ArrayLike, bins: int = BINS, binning: Binning = "quantile", weights: ArrayLike | None = None
) -> Floats:
    """Highest probability of each bin but the last, at most bins - 1 of them, rising."""
    p = np.asarray(probabilities, dtype=np.float64)
    steps = np.linspace(0, 1, bins + 1)[1:-1]
    if binning == "uniform" or len(p) == 0:
        return np.asarray(steps, dtype=np.float64)
    # "lower" takes edges from the data, so that an edge never falls inside a run of equal scores.
    return np.unique(_lower_quantiles(p, steps, weights))


def reliability(
    labels: ArrayLike,
    probabilities: ArrayLike,
    bins: int = BINS,
    binning: Binning = "quantile",
    weights: ArrayLike | None = None,
) -> Reliability:
    """Predicted against observed by bin, with Wilson (1927) intervals. Empty input gives empty arrays."""
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    codes = bin_codes(p, bins, binning, weights)
    w = as_weights(weights, len(y))
    rows = np.bincount(codes, w, bins)
    is_filled = rows > 0
    rows = rows[is_filled] if weights is not None else rows[is_filled].astype(np.int64)
    predicted = np.bincount(codes, w * p, bins)[is_filled] / rows
    observed = np.bincount(codes, w * y, bins)[is_filled] / rows
    low, high = wilson_interval(observed, rows)
    return Reliability(rows, predicted, observed, low, high)


def ece(
    labels: ArrayLike,
    probabilities: ArrayLike,
    bins: int = BINS,
    binning: Binning = "quantile",
    weights: ArrayLike | None = None,
) -> float:
    """Expected calibration error, in [0, 1]: the row-weighted mean of |predicted - observed| over bins (Naeini et al. 2015).

    Quantile bins by default, since click probabilities crowd near 0. NaN without rows.

    >>> ece([0, 1], [0.25, 0.75], bins=2)  # (|.25 - 0| + |.75 - 1|) / 2
    0.25
    """
    table = reliability(labels, probabilities, bins, binning, weights)
    if len(table.rows) == 0:
        return float("nan")
    return float(table.rows @ np.abs(table.predicted - table.observed) / table.rows.sum())


def predicted_over_observed(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Sum of predicted probabilities over number of positives ("calibration" in He et al. 2014); 1 is right.

    NaN without positives.

    >>> predicted_over_observed([1, 0], [0.5, 0.25])
    0.75
    """
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    w = as_weights(weights, len(y))
    observed, predicted = float((w * y).sum()), float((w * p).sum())
    return predicted / observed if observed > 0 else float("nan")


def _lower_quantiles(p: Floats, steps: Floats, weights: ArrayLike | None) -> Floats:
    """numpy's "lower" quantiles of p (N,), of each value as often as its weight says."""
    if weights is None:
        return np.asarray(np.quantile(p, steps, method="lower"))
    order = np.argsort(p, kind="stable")
    above = np.cumsum(as_weights(weights, len(p))[order])  # how many values lie at or before each
    place = np.searchsorted(above, np.floor(steps * (above[-1] - 1)), side="right")
    return np.asarray(p[order][np.minimum(place, len(p) - 1)])


def wilson_interval(rate: Floats, rows: Ints | Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson (1927) interval of a share `rate` seen in `rows` independent rows; both (K,)."""
    z = float(ndtri(0.5 + level / 2))
    scale = 1 + z**2 / rows
    centre = (rate + z**2 / (2 * rows)) / scale
    half = z * np.sqrt(rate * (1 - rate) / rows + z**2 / (4 * rows**2)) / scale
    # At a rate of 0 or 1 an end is the rate itself, which rounding may put on the wrong side of it.
    return np.clip(np.minimum(centre - half, rate), 0, 1), np.clip(np.maximum(centre + half, rate), 0, 1)
