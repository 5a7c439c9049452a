"""From bootstrap draws to what can be claimed: intervals, paired differences with p-values, corrections for many."""

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from adrec.metrics.ties import ArrayLike, Floats

LEVEL = 0.95
"""Share of intervals that should hold the true value."""
ALARM_LEVEL = 0.05
"""Adjusted p-value below which a difference counts."""


class Interval(NamedTuple):
    """A value with its interval, in the metric's own units; NaN where too little is defined to say."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two metrics on the same users: value, interval, and the two-sided p-value of "no difference"."""

    value: float
    low: float
    high: float
    p_value: float


def interval(value: float, draws: Floats, level: float = LEVEL, *, centred: bool = False) -> Interval:
    """Percentile interval (Efron 1979) of bootstrap draws (B,). Undefined draws are left out; too many of them give NaN.

    `centred` moves the draws so that their mean is `value`, and cuts at 0: for sums of absolute gaps such as the
    calibration error, which resampling makes larger than they are.
    """
    defined = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(defined) < max(2, len(draws) // 2):
        return Interval(value, float("nan"), float("nan"))
    if centred:
        defined = np.maximum(defined - defined.mean() + value, 0.0)
    low, high = np.quantile(defined, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high))


def bca_interval(value: float, draws: Floats, left_out: Floats, level: float = LEVEL) -> Interval:
    """Bias-corrected and accelerated interval (Efron 1987) from draws (B,) and leave-one-user-out values (U,).

    For skewed statistics such as importance-weighted means of rare clicks, whose percentile interval is too short on the
    long side; it is what Thomas et al. (2015) use for off-policy estimates. Without skew it is the percentile interval, which
    is also returned where all draws lie on one side of the value.
    """
    plain = interval(value, draws, level)
    defined, left = draws[np.isfinite(draws)], left_out[np.isfinite(left_out)]
    below = float((defined < value).mean() + (defined == value).mean() / 2) if len(defined) else 0.0
    if not np.isfinite(plain.low) or not 0 < below < 1:
        return plain
    gaps = left.mean() - left
    squares = float((gaps**2).sum())
    acceleration = float((gaps**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
    bias = float(ndtri(below))
    reach = bias + ndtri([0.5 - level / 2, 0.5 + level / 2])
    low, high = np.quantile(defined, ndtr(bias + reach / (1 - acceleration * reach)))
    return Interval(value, float(low), float(high))


def difference(value: float, draws: Floats, *, users: int, level: float = LEVEL) -> Difference:
    """Interval and p-value of a difference from paired draws (B,): value / (standard deviation of draws) as Student's t.

    Degrees of freedom are users - 1. The normal form is used rather than counting draws beyond 0, since p-values that
    are to be corrected for many comparisons must not stop at 1 / B. A difference that never varies has p 1 if 0, else 0.
    """
    defined = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(defined) < max(2, len(draws) // 2) or users < 2:
        return Difference(value, float("nan"), float("nan"), float("nan"))
    error = float(defined.std(ddof=1))
    # Identical runs differ by rounding only.
    if error <= 1e-12 * max(1.0, abs(value)):
        return Difference(value, value, value, 1.0 if abs(value) <= 1e-12 else 0.0)
    reach = float(stdtrit(users - 1, 0.5 + level / 2)) * error
    return Difference(value, value - reach, value + reach, float(2 * stdtr(users - 1, -abs(value) / error)))


def adjust(p_values: ArrayLike) -> Floats:
    """Adjusted p-values (M,) that bound the chance of any false alarm (Holm 1979).

    NaN ones stay NaN and do not count as comparisons.

    >>> adjust([0.01, 0.04]).tolist()  # 2 x .01, 1 x .04
    [0.02, 0.04]
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    kept = np.flatnonzero(~np.isnan(p))
    order = kept[np.argsort(p[kept], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted
