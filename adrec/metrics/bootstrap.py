"""Bootstrap over users: draw users with replacement, recompute every statistic, thousands of times, without a loop over rows.

Rows of one user are not independent, so the user is the unit that is drawn (Efron & Tibshirani 1993, ch. 8; Field & Welsh
2007). A draw is a vector of user weights; a statistic maps weights (U, b) of b draws to b values, through sums by user
(most metrics) or a sparse product (AUC). All statistics see the same draws, so differences of runs are paired.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy import sparse

from adrec.metrics.ties import ArrayLike, Floats, Ints, as_labels_and_scores, run_starts

Statistic = Callable[[Floats], Floats]
"""User weights (U, b) float64 -> values (b,) float64; NaN where a draw leaves the value undefined."""

_WEIGHTS_AT_ONCE = 2**24
_CELLS_AT_ONCE = 2**21


def bootstrap(
    statistics: Mapping[str, Statistic], *, users: int, replicates: int, generator: np.random.Generator
) -> dict[str, Floats]:
    """Values (replicates,) of every statistic under the same draws of `users` users with replacement."""
    draws = {name: np.empty(replicates) for name in statistics}
    start = 0
    for weights in draw_weights(users, replicates, generator):
        stop = start + weights.shape[1]
        for name, statistic in statistics.items():
            draws[name][start:stop] = statistic(weights)
        start = stop
    return draws


def draw_weights(users: int, replicates: int, generator: np.random.Generator) -> Iterator[Floats]:
    """Blocks (U, b) of multinomial weights: how often each user is in each draw; every column sums to U."""
    width = int(np.clip(_WEIGHTS_AT_ONCE // max(users, 1), 1, replicates))
    for start in range(0, replicates, width):
        b = min(width, replicates - start)
        drawn = generator.integers(0, users, (b, users)) + np.arange(b)[:, None] * users
        counts = np.bincount(drawn.ravel(), minlength=b * users).reshape(b, users)
        yield np.ascontiguousarray(counts.T, dtype=np.float64)


def point(statistic: Statistic, users: int) -> float:
    """The statistic on the data as they are: every user once."""
    return float(statistic(np.ones((users, 1)))[0])


def ratio_of_sums(numerator: ArrayLike, denominator: ArrayLike, users: Ints, count: int) -> Statistic:
    """sum(numerator) / sum(denominator) over rows (N,); `users` (N,) are codes in [0, count). Means, rates, calibration."""
    return function_of_sums([numerator, denominator], users, count, _divide)


def function_of_sums(columns: Sequence[ArrayLike], users: Ints, count: int, combine: Callable[..., Floats]) -> Statistic:
    """combine(sum of column 1, sum of column 2, ...), each sum (b,); the columns (N,) are summed by user only once."""
    by_user = np.stack([np.bincount(users, np.asarray(column, dtype=np.float64), count) for column in columns])
    active = np.flatnonzero((by_user != 0).any(axis=0))
    by_user = by_user[:, active]

    def statistic(weights: Floats) -> Floats:
        sums = by_user @ (weights if len(active) == len(weights) else weights[active])
        return combine(*sums)

    return statistic


def mean_of_groups(values: Floats, group_users: Ints, count: int) -> Statistic:
    """Mean of per-group values (G,), NaN ones left out; `group_users` (G,) says whose group each is."""
    kept = ~np.isnan(values)
    return ratio_of_sums(values[kept], np.ones(int(kept.sum())), group_users[kept], count)


class _Curve:
    """Positives and negatives in order of falling score, as sparse (score block x user) matrices.

    Only blocks that hold a positive matter for AUC and average precision; the negatives between two such blocks are
    merged, which is exact and makes the dense part as small as the number of distinct scores of positives.
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike, users: Ints, count: int) -> None:
        y, s = as_labels_and_scores(labels, scores)
        order = np.argsort(s)[::-1]
        starts = run_starts(s[order])
        positive = y[order] > 0
        user = users[order]
        block = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(y)))
        hit_blocks = np.unique(block[positive])
        self.size = len(hit_blocks)
        # Row q: positives of hit block q. Negatives: row 2q before block q, row 2q + 1 inside it, last row after all.
        place = np.searchsorted(hit_blocks, block, side="left")
        inside = np.zeros(len(y), dtype=bool)
        valid = place < self.size
        inside[valid] = hit_blocks[place[valid]] == block[valid]
        self.positive = _rows_to_users(place[positive], user[positive], self.size, count)
        self.negative = _rows_to_users((2 * place + inside)[~positive], user[~positive], 2 * self.size + 1, count)

    def walk(self, weights: Floats) -> Iterator[tuple[Floats, Floats, Floats]]:
        """Blocks of rows: positives in the block, negatives above it, negatives inside it; each (rows, b)."""
        step = max(1, _CELLS_AT_ONCE // weights.shape[1])
        above = np.zeros(weights.shape[1])
        for start in range(0, self.size, step):
            stop = min(start + step, self.size)
            p = self.positive[start:stop] @ weights
            pairs = (self.negative[2 * start : 2 * stop] @ weights).reshape(stop - start, 2, -1)
            running = above + np.cumsum(pairs.sum(axis=1), axis=0)
            yield p, running - pairs[:, 1], pairs[:, 1]
            above = running[-1]


def auc_statistic(labels: ArrayLike, scores: ArrayLike, users: Ints, count: int) -> Statistic:
    """AUC over all rows as a statistic; equals `classification.auc` with the rows weighted by their user's weight."""
    curve = _Curve(labels, scores, users, count)

    def statistic(weights: Floats) -> Floats:
        lost = np.zeros(weights.shape[1])
        positives = np.zeros(weights.shape[1])
        for p, above, inside in curve.walk(weights):
            lost += np.einsum("qb,qb->b", p, above + inside / 2)
            positives += p.sum(axis=0)
        negatives = np.asarray(curve.negative.sum(axis=0)).ravel() @ weights
        return 1 - _divide(lost, positives * negatives)

    return statistic


def pr_auc_statistic(labels: ArrayLike, scores: ArrayLike, users: Ints, count: int) -> Statistic:
    """Average precision as a statistic; equals `classification.pr_auc` with the rows weighted by their user's weight."""
    curve = _Curve(labels, scores, users, count)

    def statistic(weights: Floats) -> Floats:
        gained = np.zeros(weights.shape[1])
        hits = np.zeros(weights.shape[1])
        for p, above, inside in curve.walk(weights):
            running = hits + np.cumsum(p, axis=0)
            seen = running + above + inside
            gained += np.einsum("qb,qb->b", p, np.divide(running, seen, out=np.zeros_like(running), where=seen > 0))
            hits = running[-1]
        return _divide(gained, hits)

    return statistic


def _rows_to_users(rows: Ints, users: Ints, height: int, width: int) -> sparse.csr_matrix:
    """CSR (height, width) counting users in each row; `rows` (N,) are sorted, so no sort is needed."""
    pointer = np.searchsorted(rows, np.arange(height + 1))
    return sparse.csr_matrix((np.ones(len(users)), users, pointer), shape=(height, width))


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    value: Floats = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=value, where=denominator > 0)
    return value
