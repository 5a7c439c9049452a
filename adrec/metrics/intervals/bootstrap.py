"""Bootstrap over users: draw users with replacement, recompute every statistic, thousands of times, without a loop over rows.

Rows of one user are not independent, so the user is the unit that is drawn (Efron & Tibshirani 1993, ch. 8; Field & Welsh
2007). A draw is a vector of user weights; a measure maps weights (U, b) of b draws to named values (b,), through sums by
user (most metrics) or a sparse product (AUC). All measures see the same draws, so differences of runs are paired.

In a log of counts the unit is what rows share: an ad, or a test of several (`adrec.stages.evaluation.counts`); drawing it whole
carries both how units differ and the binomial noise inside them. Where units are too few to stand for others, the counts
themselves are drawn, each from a Poisson distribution (`counts`): the noise of these units alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from adrec.metrics.ties import ArrayLike, Floats, as_labels_and_scores

Codes = npt.NDArray[np.integer]
Values = dict[str, Floats]
Measure = Callable[[Floats], Values]
"""User weights (U, b) float64 -> {name: values (b,)}; NaN where a draw leaves a value undefined."""

_WEIGHTS_AT_ONCE = 2**22
_CELLS_AT_ONCE = 2**18


def bootstrap(
    measures: Mapping[str, Sequence[Measure]],
    *,
    users: int,
    replicates: int,
    generator: np.random.Generator,
    counts: Floats | None = None,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Values]:
    """Values (replicates,) of every measure of every run, under the same draws of `users` users with replacement.

    `counts` (U,): draw these counts instead, by `draw_counts`. `advance` is called with the number of draws done since the last
    call.
    """
    parts: dict[str, dict[str, list[Floats]]] = {run: {} for run in measures}
    drawn = draw_weights(users, replicates, generator) if counts is None else draw_counts(counts, replicates, generator)
    for weights in drawn:
        for run, group in measures.items():
            for name, values in _evaluate(group, weights).items():
                parts[run].setdefault(name, []).append(values)
        if advance is not None:
            advance(weights.shape[1])
    return {run: {name: np.concatenate(values) for name, values in named.items()} for run, named in parts.items()}


def point(measures: Sequence[Measure], users: int) -> dict[str, float]:
    """The values on the data as they are: every user once."""
    return {name: float(values[0]) for name, values in _evaluate(measures, np.ones((users, 1))).items()}


def draw_weights(users: int, replicates: int, generator: np.random.Generator) -> Iterator[Floats]:
    """Blocks (U, b) of multinomial weights: how often each user is in each draw; every column sums to U."""
    width = int(np.clip(_WEIGHTS_AT_ONCE // max(users, 1), 1, min(replicates, 256)))
    for start in range(0, replicates, width):
        counts = np.empty((min(width, replicates - start), users), dtype=np.int16)
        for draw in counts:
            draw[:] = np.bincount(generator.integers(0, users, users), minlength=users)
        yield np.ascontiguousarray(counts.T, dtype=np.float64)


def draw_counts(counts: Floats, replicates: int, generator: np.random.Generator) -> Iterator[Floats]:
    """Blocks (U, b) of Poisson(count) / count: what each count (U,), above 0, becomes when the same is counted again.

    Drawing every single impression with replacement is this to within 1 / (their number) (Hanley and MacGibbon 2006,
    "Creating non-parametric bootstrap samples using Poisson frequencies").
    """
    width = int(np.clip(_WEIGHTS_AT_ONCE // max(len(counts), 1), 1, min(replicates, 256)))
    for start in range(0, replicates, width):
        size = (len(counts), min(width, replicates - start))
        yield generator.poisson(counts[:, None], size) / counts[:, None]


def of_sums(columns: Mapping[str, ArrayLike], users: Codes, count: int, combine: Callable[[Values], Values]) -> Measure:
    """A measure that is a function of sums over rows: `combine({name: sums (b,)})`.

    The columns (N,) are summed by user once; `users` (N,) are codes in [0, count).
    """
    names = list(columns)
    by_user = np.stack([np.bincount(users, np.asarray(columns[name], dtype=np.float64), count) for name in names])
    active = np.flatnonzero((by_user != 0).any(axis=0))
    by_user = by_user[:, active]

    def measure(weights: Floats) -> Values:
        sums = by_user @ (weights if len(active) == len(weights) else weights[active])
        return combine(dict(zip(names, sums, strict=True)))

    return measure


def of_groups(values: Mapping[str, Floats], group_users: Codes, count: int) -> Measure:
    """Means of per-group values (G,), NaN ones left out; `group_users` (G,) says whose group each is."""
    columns: dict[str, ArrayLike] = {}
    divisor: dict[str, str] = {}  # values that leave out the same groups share their count
    counted: dict[bytes, str] = {}
    for name, value in values.items():
        is_known = ~np.isnan(value)
        columns[name] = np.where(is_known, value, 0.0)
        divisor[name] = counted.setdefault(np.packbits(is_known).tobytes(), f"{name}/groups")
        columns.setdefault(divisor[name], is_known)
    return of_sums(columns, group_users, count, lambda sums: {n: divide(sums[n], sums[divisor[n]]) for n in values})


def of_curve(labels: ArrayLike, scores: ArrayLike, users: Codes, count: int, rows: Floats | None = None) -> Measure:
    """`auc` and `pr_auc` over all rows, equal to those of `classification` with rows weighted by their user's weight, times
    `rows` (N,) where these stand for many impressions."""
    curve = _Curve(labels, scores, users, count, rows)

    def measure(weights: Floats) -> Values:
        draws = weights.shape[1]
        lost, gained, hits = np.zeros(draws), np.zeros(draws), np.zeros(draws)
        for p, above, inside in curve.walk(weights):
            running = hits + np.cumsum(p, axis=0)
            seen = running + above + inside
            lost += np.einsum("qb,qb->b", p, above + inside / 2)
            gained += np.einsum("qb,qb->b", p, np.divide(running, seen, out=np.zeros_like(running), where=seen > 0))
            hits = running[-1]
        misses = curve.misses_by_user @ weights
        return {"auc": 1 - divide(lost, hits * misses), "pr_auc": divide(gained, hits)}

    return measure


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, NaN where the denominator is not positive."""
    value: Floats = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=value, where=denominator > 0)
    return value


def _evaluate(measures: Sequence[Measure], weights: Floats) -> Values:
    return {name: values for measure in measures for name, values in measure(weights).items()}


class _Curve:
    """Positives and negatives in order of falling score, as sparse (score block x user) matrices.

    Only blocks that hold a positive matter for AUC and average precision; the negatives between two such blocks are
    merged, which is exact and makes the dense part as small as the number of distinct scores of positives.
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike, users: Codes, count: int, rows: Floats | None = None) -> None:
        y, s = as_labels_and_scores(labels, scores)
        order = np.argsort(s)[::-1]
        block = np.zeros(len(y), dtype=np.int32)
        ordered = s[order]
        np.cumsum(ordered[1:] != ordered[:-1], out=block[1:])
        positive, user = y[order] > 0, users[order]
        hits, misses = (None, None) if rows is None else (rows[order][positive], rows[order][~positive])
        del order, ordered
        hit_blocks = np.unique(block[positive])
        self.size = len(hit_blocks)
        # Row q: positives of hit block q. Negatives: row 2q before block q, row 2q + 1 inside it, last row after all.
        place = np.searchsorted(hit_blocks, block, side="left").astype(np.int32)
        self.positive = _rows_to_users(place[positive], user[positive], self.size, count, hits)
        inside = hit_blocks[np.minimum(place, max(self.size - 1, 0))] == block if self.size else np.zeros(len(y), dtype=bool)
        place *= 2
        place += inside
        self.negative = _rows_to_users(place[~positive], user[~positive], 2 * self.size + 1, count, misses)
        self.misses_by_user: Floats = np.bincount(user[~positive], misses, count).astype(np.float64)

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


def _rows_to_users(rows: Codes, users: Codes, height: int, width: int, counts: Floats | None) -> sparse.csr_matrix:
    """CSR (height, width) counting users in each row, `counts` (N,) times; `rows` (N,) are sorted, so no sort is needed."""
    pointer = np.searchsorted(rows, np.arange(height + 1)).astype(np.int32)
    ones = np.ones(len(users), dtype=np.int8) if counts is None else counts  # a product with weights is in their type
    return sparse.csr_matrix((ones, users.astype(np.int32, copy=False), pointer), shape=(height, width))
