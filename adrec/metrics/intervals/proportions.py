"""Two click rates set against each other: the difference with its interval, and how likely chance alone gives one as large."""

import numpy as np

from adrec.metrics.calibration import wilson_interval
from adrec.metrics.ties import ArrayLike, Floats


def difference_interval(
    clicks: ArrayLike, shown: ArrayLike, other_clicks: ArrayLike, other_shown: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats, Floats]:
    """Rate minus other rate, and the low and high end of its interval, (P,) each, in [-1, 1].

    Newcombe 1998, "Interval estimation for the difference between independent proportions: comparison of eleven methods",
    method 10: each end is as far from the difference as the two Wilson (1927) intervals together reach that way. It holds where
    clicks are few or none. NaN where nothing was shown.

    >>> low, high = difference_interval([56], [70], [48], [80])[1:]  # Newcombe's table II: .0524 to .3339
    >>> round(float(low[0]), 4), round(float(high[0]), 4)
    (0.0524, 0.3339)
    """
    (k, n), (other_k, other_n) = _pairs(clicks, shown, other_clicks, other_shown)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate, other = k / n, other_k / other_n
        (low, high), (other_low, other_high) = wilson_interval(rate, n, level), wilson_interval(other, other_n, level)
    value = rate - other
    below = np.hypot(rate - low, other_high - other)
    above = np.hypot(high - rate, other - other_low)
    return value, value - below, value + above


def difference_p_value(clicks: ArrayLike, shown: ArrayLike, other_clicks: ArrayLike, other_shown: ArrayLike) -> Floats:
    """Two-sided p-value (P,) of equal rates: Fisher's exact test, twice the smaller tail (Fisher 1935), at most 1.

    Exact, since arms are compared that nearly nobody clicked: of 1 click in 219 and none in 20,000 a z test makes p < .001.

    >>> difference_p_value([5], [10], [5], [10]).tolist()
    [1.0]
    >>> difference_p_value([1], [219], [0], [20_000]).round(4).tolist()  # 2 x 219 / 20,219
    [0.0217]
    """
    from scipy.stats import hypergeom

    k, n, other_k, other_n = (np.rint(part).astype(np.int64) for pair in _pairs(clicks, shown, other_clicks, other_shown)
                              for part in pair)  # fmt: skip
    given = (n + other_n, k + other_k, n)  # impressions, clicks among them, impressions of the first
    tails = np.minimum(hypergeom.cdf(k, *given), hypergeom.sf(k - 1, *given))
    return np.asarray(np.minimum(1.0, 2 * tails), dtype=np.float64)


def _pairs(*arrays: ArrayLike) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    k, n, other_k, other_n = (np.asarray(array, dtype=np.float64) for array in arrays)
    return (k, n), (other_k, other_n)
