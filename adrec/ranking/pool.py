"""The ads that a policy may ever show, searched by inner product while its rules hold.

Exact search masks what the rules forbid. Approximate search is asked for more ads than are wanted, for more again where the
rules leave a list short, and what is short then is searched exactly: a list is full whenever enough ads are allowed. A vertical
is a pool of its own: its index holds nothing else, so that a hundredth of a large catalogue is searched like a small one.
"""

from copy import copy
from functools import partial

import numpy as np

from adrec.ranking.approximate import ApproximateIndex, Method
from adrec.ranking.arrays import Bools, Floats, Ints
from adrec.ranking.constraints import Asking, Rules
from adrec.ranking.retrieve import ExactIndex

RECALL_TARGET, RECALL_SAMPLE = 0.98, 100
"""Approximate search works harder until it finds this share of the exact result under the rules, on so many requests."""

_WIDER = (4, 16)  # ads asked of an approximate index for each one wanted, before the rules drop some
_OWN_VECTORS = 0.5  # share of the catalogue up to which a pool has vectors of its own
_LEAST_ADS = 1_000  # up to here approximate search saves nothing


class Pool:
    """The `allowed` (A,) ads of vectors (A, D). `method` None: searched exactly."""

    def __init__(self, index: ExactIndex, allowed: Bools, method: Method | None, *, seed: int) -> None:
        """`index`: of all vectors."""
        self._rows: Ints | None = None
        self._exact = index
        if allowed.mean() <= _OWN_VECTORS:
            self._rows = np.flatnonzero(allowed)
            self._place: Ints = np.full(len(allowed), -1, dtype=np.int64)
            self._place[self._rows] = np.arange(len(self._rows))
            self._exact = ExactIndex(index.ads.numpy()[self._rows])
        self._approximate: ApproximateIndex | None = None
        if method is not None and len(self._exact.ads) > _LEAST_ADS:
            self._approximate = ApproximateIndex(self._exact.ads.numpy(), method, seed=seed)
        self.recall: float | None = None
        """of approximate search against exact under the rules of the requests that came first; None before, and where exact"""

    def with_row(self, index: ExactIndex, allowed: Bools, row: int) -> "Pool":
        """Over vectors `index` that differ at `row`, or have it behind the last, with these `allowed` ads: an approximate index
        is gone on with, for it takes minutes to make.
        """
        if self._approximate is None:
            return Pool(index, allowed, None, seed=0)
        other = copy(self)
        vectors, place = index.ads.numpy(), row
        if self._rows is not None:
            places = np.append(self._place, -1) if row == len(self._place) else self._place.copy()
            if places[row] < 0 and allowed[row]:
                places[row], other._rows = len(self._rows), np.append(self._rows, row)
            if places[row] < 0:
                other._place = places
                return other
            other._place, place = places, int(places[row])
            own = self._exact.ads.numpy()
            vectors = np.concatenate([own[:place], vectors[row : row + 1], own[place + 1 :]])
            index = ExactIndex(vectors)
        other._exact, other._approximate = index, self._approximate.with_row(vectors, place)
        return other

    def search(self, queries: Floats, k: int, rules: Rules, asking: Asking) -> Ints:
        """(R, k) ads of largest inner product with queries (R, D) that the rules let R requests have, -1 behind the last.

        `rules` of the whole catalogue, which allow none but the pool's ads.
        """
        if self._rows is not None:
            rules, asking = rules.of(self._rows), asking.over(self._place, self._rows)
        if self._approximate is None:
            ad = self._search_exactly(queries, k, rules, asking)
        else:
            if self.recall is None:
                self.recall = self._tune(self._approximate, queries[:RECALL_SAMPLE], k, rules, asking)
            ad = self._search_widely(self._approximate, queries, k, rules, asking)
        return ad if self._rows is None else np.append(self._rows, -1)[ad]

    def _search_exactly(self, queries: Floats, k: int, rules: Rules, asking: Asking) -> Ints:
        return self._exact.search(queries, k, eligible=partial(rules.eligible, asking)).ad

    def _search_widely(self, index: ApproximateIndex, queries: Floats, k: int, rules: Rules, asking: Asking) -> Ints:
        nearest: Ints = np.full((len(queries), k), -1, dtype=np.int64)
        left = np.arange(len(queries))
        among = rules.active(asking)
        for wider in _WIDER:
            kept = rules.let_through(asking.of(left), index.search(queries[left], wider * k, among=among).ad)[:, :k]
            nearest[left, : kept.shape[1]] = kept
            left = left[nearest[left, -1] < 0]
            if not len(left):
                return nearest
        nearest[left] = self._search_exactly(queries[left], k, rules, asking.of(left))
        return nearest

    def _tune(self, index: ApproximateIndex, queries: Floats, k: int, rules: Rules, asking: Asking) -> float:
        first = asking.of(np.arange(len(queries)))
        exact = self._search_exactly(queries, k, rules, first)
        return index.tune(exact, lambda: self._search_widely(index, queries, k, rules, first), target=RECALL_TARGET)
