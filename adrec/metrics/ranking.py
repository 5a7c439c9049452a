"""Metrics of order inside groups (requests or users), averaged over groups; no loop over groups.

Rows are sorted once by (group, falling score); runs of equal scores are *tie blocks*. Where scores tie, each metric is
its expected value over a random order of the block (McSherry & Najork 2008), so it never depends on the order of rows.
Groups with one class only (no click, or nothing but clicks) tell nothing about order: they are NaN in the per-group
arrays, left out of every mean, and counted by `RankedGroups.skipped`.
"""

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from adrec.metrics.tie_blocks import Counts, tie_blocks
from adrec.metrics.ties import ArrayLike, Floats, Ints, run_starts, totals


class RankedGroups:
    """Rows sorted once for any number of metrics. Each method returns per-group values (G,) float64, NaN where skipped.

    labels (N,) are 0/1 or graded relevance >= 0 (above 0 is relevant); scores (N,) float; groups (N,) any sortable values.
    Groups come in the order of their sorted distinct values. Raises ValueError on unequal lengths or NaN scores.
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> None:
        blocks = tie_blocks(labels, scores, groups)
        self.sizes, self._labels = blocks.sizes, blocks.labels
        self._n, self._m, self._above, self._clicks_above = blocks.n, blocks.m, blocks.above, blocks.clicks_above
        self._group = blocks.group
        self._is_graded = len(self._labels) > 0
        self.count = len(self.sizes)
        self.positives: Ints = self._per_group(self._m).astype(np.int64)
        self.informative = (self.positives > 0) & (self.positives < self.sizes)

    @property
    def skipped(self) -> int:
        """Groups with one class only."""
        return int(self.count - self.informative.sum())

    def auc(self) -> Floats:
        """P(a relevant row above an irrelevant one) + P(tie) / 2 within the group."""
        misses = self._n - self._m
        misses_below = (self.sizes - self.positives)[self._group] - (self._above - self._clicks_above) - misses
        wins = self._per_group(self._m * (misses_below + misses / 2))
        return self._masked(wins, self.positives * (self.sizes - self.positives))

    def mrr(self) -> Floats:
        """1 / rank of the first relevant row (Voorhees 1999), expected over ties."""
        n, m, above = (part[self._first_hit] for part in (self._n, self._m, self._above))
        value: Floats = np.asarray(1.0 / (above + 1.0), dtype=np.float64)
        tied = np.flatnonzero((n > 1) & (m < n))
        if len(tied):
            value[tied] = _expected_reciprocal_of_first(n[tied], m[tied], above[tied])
        return self._scatter_first(value)

    def mrr_all(self) -> Floats:
        """Mean of 1 / rank over all relevant rows of the group: what MIND's evaluation script calls MRR (Wu et al. 2020)."""
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, self.sizes.max(initial=0) + 1))])
        share = self._m / self._n
        return self._masked(self._per_group(share * (harmonic[self._above + self._n] - harmonic[self._above])), self.positives)

    def ndcg(self, k: int | None = 10) -> Floats:
        """DCG@k / ideal DCG@k, gain 2^label - 1, discount 1 / log2(rank + 1) (Jarvelin & Kekalainen 2002; Burges 2005)."""
        k = self._depth(k)
        discount = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
        top = self._above < k
        gain = np.add.reduceat(np.exp2(self._labels) - 1, np.cumsum(self._m) - self._m) if self._is_graded else self._m
        above, n = self._above[top], self._n[top]
        found = gain[top] / n * (discount[np.minimum(above + n, k)] - discount[above])
        ideal = discount[np.minimum(self.positives, k)] if not self._is_graded else self._graded_ideal(discount, k)
        return self._masked(totals(self._group[top], found, self.count), ideal)

    def hit_rate(self, k: int = 10) -> Floats:
        """P(at least one relevant row among the first k)."""
        n, m, above = (part[self._first_hit] for part in (self._n, self._m, self._above))
        slots = np.clip(k - above, 0, n)
        # A random choice of `slots` of n misses all m with probability C(n - m, slots) / C(n, slots).
        none = np.where(slots > n - m, 0.0, np.exp(_log_choose(n - m, np.minimum(slots, n - m)) - _log_choose(n, slots)))
        return self._scatter_first(np.where(slots == 0, 0.0, 1 - none))

    def precision(self, k: int = 10) -> Floats:
        """Relevant rows among the first k, divided by k (also where the group is shorter than k)."""
        return self._masked(self._hits(k), np.full(self.count, k))

    def recall(self, k: int = 10) -> Floats:
        """Relevant rows among the first k, divided by the relevant rows of the group."""
        return self._masked(self._hits(k), self.positives)

    def average_precision(self, k: int | None = None) -> Floats:
        """Sum over the relevant ranks r <= k of precision@r, over all relevant rows of the group (trec_eval's map_cut)."""
        k = self._depth(k)
        top = np.flatnonzero(self._above < k)
        n, m, above, before = (part[top] for part in (self._n, self._m, self._above, self._clicks_above))
        length = np.minimum(n, k - above)
        block = np.repeat(np.arange(len(top)), length)
        j = np.arange(len(block)) - np.repeat(np.cumsum(length) - length, length)  # place inside the block, from 0
        # Place j is relevant with probability m/n; given that, each of the j places above it with (m-1)/(n-1).
        hits = before[block] + 1 + j * ((m - 1) / np.maximum(n - 1, 1))[block]
        value = (m / n)[block] * hits / (above[block] + j + 1)
        return self._masked(totals(self._group[top][block], value, self.count), self.positives)

    def _hits(self, k: int) -> Floats:
        """Expected relevant rows among the first k, (G,)."""
        return self._per_group(self._m * (np.clip(k - self._above, 0, self._n) / self._n))

    @cached_property
    def _first_hit(self) -> Ints:
        """The highest block of each group that has a relevant row, in the order of groups."""
        return run_starts(self._group)

    def _graded_ideal(self, discount: Floats, k: int) -> Floats:
        """DCG of the relevant rows of each group in the best order."""
        group = np.repeat(self._group, self._m)
        best = np.lexsort((-self._labels, group))
        rank = np.arange(len(best)) - np.repeat(np.cumsum(self.positives) - self.positives, self.positives)
        gain = (np.exp2(self._labels[best]) - 1) * np.where(rank < k, np.diff(discount)[np.minimum(rank, k - 1)], 0.0)
        return totals(group, gain, self.count)

    def _depth(self, k: int | None) -> int:
        longest = int(self.sizes.max(initial=1))
        return longest if k is None else min(k, longest)

    def _per_group(self, block_values: npt.NDArray[Any]) -> Floats:
        return totals(self._group, block_values, self.count)

    def _masked(self, numerator: Floats, denominator: Floats | Ints) -> Floats:
        value: Floats = np.full(self.count, np.nan)
        np.divide(numerator, denominator, out=value, where=self.informative)
        return value

    def _scatter_first(self, value: Floats) -> Floats:
        full: Floats = np.full(self.count, np.nan)
        full[self._group[self._first_hit]] = value
        full[~self.informative] = np.nan
        return full


def auc_request(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """AUC inside each group, averaged over groups with both classes (the AUC of MIND). NaN where there is no such group.

    >>> auc_request([1, 0, 0, 1], [0.9, 0.1, 0.8, 0.2], [1, 1, 2, 2])  # (1 + 0) / 2
    0.5
    """
    return group_mean(RankedGroups(labels, scores, groups).auc())


def mrr(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """Mean reciprocal rank of the first relevant row, in (0, 1].

    >>> mrr([0, 1, 1], [0.9, 0.8, 0.7], [1, 1, 1])
    0.5
    """
    return group_mean(RankedGroups(labels, scores, groups).mrr())


def mrr_all(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """MIND's MRR: the mean reciprocal rank of all relevant rows, in (0, 1].

    >>> mrr_all([0, 1, 1], [0.9, 0.8, 0.7], [1, 1, 1]) == (1 / 2 + 1 / 3) / 2
    True
    """
    return group_mean(RankedGroups(labels, scores, groups).mrr_all())


def ndcg(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, k: int | None = 10) -> float:
    """Normalised discounted cumulative gain of the first k rows (all rows where k is None), in [0, 1].

    >>> round(ndcg([1, 0], [0.2, 0.7], [1, 1], k=5), 4)  # 1 / log2(3)
    0.6309
    """
    return group_mean(RankedGroups(labels, scores, groups).ndcg(k))


def hit_rate(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, k: int = 10) -> float:
    """Share of groups with a relevant row among the first k, in [0, 1]."""
    return group_mean(RankedGroups(labels, scores, groups).hit_rate(k))


def precision(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, k: int = 10) -> float:
    """Mean share of relevant rows among the first k, in [0, 1]."""
    return group_mean(RankedGroups(labels, scores, groups).precision(k))


def recall(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, k: int = 10) -> float:
    """Mean share of the relevant rows that are among the first k, in [0, 1]."""
    return group_mean(RankedGroups(labels, scores, groups).recall(k))


def mean_average_precision(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, k: int | None = None) -> float:
    """Mean average precision of the first k rows (all rows where k is None), in [0, 1]."""
    return group_mean(RankedGroups(labels, scores, groups).average_precision(k))


def group_mean(values: Floats) -> float:
    """Mean over the groups that count; NaN where there is none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def _expected_reciprocal_of_first(n: Counts, m: Counts, above: Counts) -> Floats:
    """E[1 / (above + place of the first of m relevant rows among n in random order)], for each block.

    P(place = j) = C(n - j, m - 1) / C(n, m).
    """
    length = n - m + 1
    block = np.repeat(np.arange(len(n)), length)
    j = np.arange(len(block)) - np.repeat(np.cumsum(length) - length, length) + 1
    chance = np.exp(_log_choose((n[block] - j), (m - 1)[block]) - _log_choose(n, m)[block])
    return totals(block, chance / (above[block] + j), len(n))


def _log_choose(n: npt.NDArray[Any], k: npt.NDArray[Any]) -> Floats:
    return np.asarray(gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0), dtype=np.float64)
