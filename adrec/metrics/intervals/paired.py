"""Is one scorer better than another on the same rows? Differences with standard errors in closed form, no draws.

Rows of one cluster (a request, a user) are not independent: what a cluster adds to the difference is summed first.
"""

import numpy as np
from scipy.special import stdtrit

from adrec.metrics.intervals.significance import LEVEL
from adrec.metrics.ranking import RankedGroups
from adrec.metrics.ties import ArrayLike, Floats, Ints


def paired_difference(
    metric: str, labels: ArrayLike, first: ArrayLike, second: ArrayLike, requests: ArrayLike, clusters: ArrayLike
) -> tuple[float, float]:
    """By how much `first` is better than `second`, (N,) logits, in `auc`, `auc_request` or `log_loss`, and the error."""
    if metric == "auc":
        return auc_difference(labels, first, second, clusters)
    if metric == "auc_request":
        return auc_request_difference(labels, first, second, requests, clusters)
    y, x, z = (np.asarray(values, dtype=np.float64) for values in (labels, first, second))
    return mean_difference(np.logaddexp(0.0, z) - y * z, np.logaddexp(0.0, x) - y * x, clusters)


def auc_difference(labels: ArrayLike, first: ArrayLike, second: ArrayLike, clusters: ArrayLike) -> tuple[float, float]:
    """AUC of `first` less that of `second` over all rows, and its standard error; NaN where a label is missing.

    labels (N,) of 0 and 1, scores (N,), clusters (N,) any sortable values. Placement values (DeLong, DeLong and Clarke-Pearson
    1988), summed by cluster (Obuchowski 1997).
    """
    clicked = np.asarray(labels) > 0
    if clicked.all() or not clicked.any():
        return float("nan"), float("nan")
    placed = _placements(clicked, np.asarray(first)) - _placements(clicked, np.asarray(second))
    value = float(placed[clicked].mean())
    share = np.where(clicked, 1 / clicked.sum(), 1 / (~clicked).sum())
    return value, _error((placed - value) * share, clusters)


def auc_request_difference(
    labels: ArrayLike, first: ArrayLike, second: ArrayLike, requests: ArrayLike, clusters: ArrayLike
) -> tuple[float, float]:
    """The same of the AUC within requests, averaged over those that hold both labels. `clusters` (N,) are of rows."""
    gaps = RankedGroups(labels, first, requests).auc() - RankedGroups(labels, second, requests).auc()
    whose = np.asarray(clusters)[np.unique(np.asarray(requests), return_index=True)[1]]
    is_known = ~np.isnan(gaps)
    if not is_known.any():
        return float("nan"), float("nan")
    value = float(gaps[is_known].mean())
    return value, _error((gaps[is_known] - value) / is_known.sum(), whose[is_known])


def mean_difference(first: ArrayLike, second: ArrayLike, clusters: ArrayLike) -> tuple[float, float]:
    """The mean of `first` less that of `second`, both (N,), and its standard error."""
    gaps = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return float(gaps.mean()), _error((gaps - gaps.mean()) / len(gaps), clusters)


def around(value: float, error: float, *, clusters: int) -> tuple[float, float]:
    """The interval of a difference, by Student's t over so many clusters."""
    reach = float(stdtrit(max(clusters - 1, 1), 0.5 + LEVEL / 2)) * error
    return value - reach, value + reach


def _placements(clicked: np.ndarray, scores: np.ndarray) -> Floats:
    """(N,) for a click the share of misses below it, for a miss the share of clicks above it; ties count half."""
    _, block = np.unique(scores, return_inverse=True)
    hits, misses = (np.bincount(block, weights=which) for which in (clicked, ~clicked))
    misses_below = np.cumsum(misses) - misses / 2
    hits_above = hits.sum() - np.cumsum(hits) + hits / 2
    placed: Floats = np.where(clicked, misses_below[block] / misses.sum(), hits_above[block] / hits.sum())
    return placed


def _error(parts: Floats, clusters: ArrayLike) -> float:
    """The standard error of a sum of centred parts (N,), independent between clusters."""
    codes: Ints = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.bincount(codes, weights=parts)
    return float(np.sqrt(len(sums) / max(len(sums) - 1, 1) * np.sum(sums**2))) if len(sums) > 1 else float("nan")
