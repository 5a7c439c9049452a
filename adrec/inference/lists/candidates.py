"""Find the candidates of a block of requests: eligible ads by several channels in turn."""

from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.config.inference.rank import Policy, Retrieval
from adrec.data.arrays import combined, with_row
from adrec.data.examples import Examples
from adrec.errors import DataError
from adrec.inference.lists.catalogue import AdColumns, segment
from adrec.inference.lists.vectors import mean_of_history
from adrec.ranking.arrays import Bools, Floats, Ints
from adrec.ranking.channels import merge_channels
from adrec.ranking.constraints import Asking, Rules
from adrec.ranking.neighbours import Neighbours, best_of_each
from adrec.ranking.pool import Pool
from adrec.ranking.retrieve import ExactIndex

EXACT_UP_TO = 2_000_000
"""Largest catalogue that `auto` searches exactly: a pass of 256 requests over it takes about a second on two cores."""
HNSW_UP_TO = 5_000_000
"""Largest catalogue for which `auto` builds an HNSW graph, whose links outgrow the vectors; above it, IVF-PQ."""
_OVERFETCH = 4  # ads near single clicks that are compared with the mean too, for each one wanted


class RetrievedAds(NamedTuple):
    """Candidates of R requests, C the most that a policy asks for."""

    ad: Ints  # (R, C) -1 where there are fewer
    similarity: Floats  # (R, C) product of user and ad vector, NaN where ad is -1


class Finder:
    """Candidates over one catalogue. `clicks` (A,) training clicks of each ad."""

    def __init__(
        self,
        ads: AdColumns,
        users: pa.Table,
        policies: list[Policy],
        ad_vectors: Floats,
        unit_vectors: Floats,
        clicks: Floats,
        *,
        seed: int,
        shares: dict[str, float] | None = None,
    ) -> None:
        """`shares`: the turns of the channels, for policies that do not say."""
        self.ads, self.users, self.policies = ads, users, policies
        self.ad_vectors, self.unit_vectors = ad_vectors, unit_vectors
        self._popularity = np.log1p(np.asarray(clicks, dtype=np.float32))[:, None]
        self.rules = [ads.rules(policy) for policy in policies]
        self._seed, self._shares = seed, shares or {}
        self._exact_indexes: dict[str, ExactIndex] = {}
        self._pools: list[tuple[Bools, str, Pool]] = []
        self._neighbours: list[tuple[Bools, Neighbours]] = []

    def with_row(
        self, row: int, ads: AdColumns, ad_vectors: Floats, unit_vectors: Floats, clicks: float, *, gone: Sequence[int]
    ) -> "Finder":
        """The same over a catalogue with one other ad at `row`, or a new one behind the last: indexes are gone on with.

        gone: ads for nobody, whatever the rules say.
        """
        other = copy(self)
        other.ads, other.ad_vectors, other.unit_vectors = ads, ad_vectors, unit_vectors
        other._popularity = with_row(self._popularity, row, np.log1p(np.array([[clicks]], np.float32)))
        rules = [ads.rules(policy) for policy in self.policies]
        other.rules = [(own.without(gone), values) for own, values in rules]
        other._exact_indexes, other._neighbours = {}, []
        other._pools = []
        for (before, _), (after, _) in zip(self.rules, other.rules, strict=True):
            for mask, method, pool in self._pools:
                if np.array_equal(before.allowed, mask) and other._found(after.allowed, method) is None:
                    other._pools.append((after.allowed, method, pool.with_row(other._exact("model"), after.allowed, row)))
            for mask, near in self._neighbours:
                if np.array_equal(before.allowed, mask) and not other._holds_neighbours(after.allowed):
                    other._neighbours.append((after.allowed, near.with_row(other._exact("text"), after.allowed, row)))
        return other

    def without(self, rows: Sequence[int]) -> "Finder":
        """The same, and these ads for nobody; what was indexed with them is searched under the rules."""
        other = copy(self)
        other.rules = [(rules.without(rows), values) for rules, values in self.rules]
        off = np.zeros(len(self.ads), dtype=np.bool_)
        off[list(rows)] = True
        other._pools = [(mask & ~off, method, pool) for mask, method, pool in self._pools]
        other._neighbours = [(mask & ~off, neighbours) for mask, neighbours in self._neighbours]
        return other

    def prepare(self) -> None:
        """Make the indexes that policies search, which else the first requests would wait for."""
        for index, policy in enumerate(self.policies):
            channels = policy.retrieval.channels
            if "model" in channels:
                self._pool(index)
            if "text" in channels:
                self._neighbours_of(index)
            if {"text", "popular"} & set(channels):
                self._exact("popular")

    def find(
        self, requests: pa.Table, examples: Examples, vectors: Floats, policy: Ints, chosen_from: Ints | None = None
    ) -> RetrievedAds:
        """Candidates of each of R requests under its policy. vectors: (R, D) users; chosen_from: (R, C) what to choose from."""
        width = max(own.retrieval.candidates for own in self.policies) if chosen_from is None else chosen_from.shape[1]
        ad = np.full((len(policy), width), -1, dtype=np.int64)
        words = query_words(requests)
        for index, own in enumerate(self.policies):
            mine = np.flatnonzero(policy == index)
            if len(mine):
                if chosen_from is None:
                    merged = self.merged(index, self.channels(index, examples, vectors, mine, words))
                    ad[mine, : own.retrieval.candidates] = merged
                else:
                    asking = self.asking(index, examples, mine, words.take(pa.array(mine)))
                    ad[mine] = self.rules[index][0].let_through(asking, chosen_from[mine])
        product = np.einsum("rcd,rd->rc", self.ad_vectors[np.maximum(ad, 0)], vectors)
        return RetrievedAds(ad, np.where(ad >= 0, product, np.nan))

    def asking(self, index: int, examples: Examples, rows: Ints, words: pa.Array) -> Asking:
        """What the requests `rows` bring to the rules of policy `index`; `words` (r,) their queries."""
        policy, (_, values) = self.policies[index], self.rules[index]
        histories = examples.histories.take(examples.history_of_row[rows])
        drops = policy.rules.clicked == "drop"
        matched = None
        if policy.rules.query_match == "require":
            matched = self.ads.words.matched(self.ads.words.bag(words))
        return Asking(
            shown_at=examples.shown_at[rows],
            audience=[
                _audience(self.users, target.user_column, known, examples.user_index[rows])
                for target, known in zip(policy.rules.targeting, values, strict=True)
            ],
            clicked_offsets=histories.offsets if drops else np.zeros(len(rows) + 1, dtype=np.int64),
            clicked=histories.values if drops else np.zeros(0, dtype=np.int64),
            matched=matched,
        )

    def channels(self, index: int, examples: Examples, vectors: Floats, rows: Ints, words: pa.Array) -> dict[str, Ints]:
        """Channel → (r, C) its candidates for the requests `rows` (r,) of R under policy `index`, best first, -1 behind.

        vectors: (R, D) users; words: (R,) queries (`query_words`).
        """
        retrieval, (rules, _) = self.policies[index].retrieval, self.rules[index]
        words = words.take(pa.array(rows))
        asking = self.asking(index, examples, rows, words)
        of_channel = {
            "model": lambda: self._by_model(index, vectors[rows], asking),
            "query": lambda: self._by_query(retrieval.candidates, words, asking, rules),
            "text": lambda: self._by_text(index, examples, rows, asking, words),
            "popular": lambda: self._by_popularity(retrieval.candidates, asking, rules),
        }
        return {channel: of_channel[channel]() for channel in retrieval.channels}

    def merged(self, index: int, channels: dict[str, Ints]) -> Ints:
        """(r, C) candidates of policy `index` out of what its channels found."""
        shares = self.shares_of(index)
        turns = [shares[name] for name in channels] if shares else None
        return merge_channels([*channels.values()], self.policies[index].retrieval.candidates, turns)

    def shares_of(self, index: int) -> dict[str, float]:
        """Channel → share of the turns: what policy `index` says, else what was measured of its channels; empty: equal ones."""
        retrieval = self.policies[index].retrieval
        shares: Mapping[Any, float] = retrieval.shares or self._shares
        known = {str(name): shares[name] for name in retrieval.channels if name in shares}
        return known if len(known) == len(retrieval.channels) and any(known.values()) else {}

    def _by_model(self, index: int, vectors: Floats, asking: Asking) -> Ints:
        return self._pool(index).search(vectors, self.policies[index].retrieval.candidates, self.rules[index][0], asking)

    def _pool(self, index: int) -> Pool:
        """One for all policies that allow the same ads and search them in the same way."""
        allowed = self.rules[index][0].allowed
        method = method_for(self.policies[index].retrieval, int(allowed.sum()))
        found = self._found(allowed, method)
        if found is not None:
            return found
        pool = Pool(self._exact("model"), allowed, None if method == "exact" else method, seed=self._seed)
        self._pools.append((allowed.copy(), method, pool))
        return pool

    def _found(self, allowed: Bools, method: str) -> Pool | None:
        return next((pool for mask, own, pool in self._pools if own == method and np.array_equal(mask, allowed)), None)

    @property
    def recall(self) -> dict[str, float]:
        """Method of approximate search → the least recall that it reached under the rules of a policy."""
        reached: dict[str, float] = {}
        for _, method, pool in self._pools:
            if pool.recall is not None:
                reached[method] = min(pool.recall, reached.get(method, 1.0))
        return reached

    def _exact(self, channel: str) -> ExactIndex:
        """The catalogue's vectors of a channel, made ready when they are first searched."""
        if channel not in self._exact_indexes:
            vectors = {"model": self.ad_vectors, "text": self.unit_vectors, "popular": self._popularity}[channel]
            self._exact_indexes[channel] = ExactIndex(vectors)
        return self._exact_indexes[channel]

    def _by_text(self, index: int, examples: Examples, rows: Ints, asking: Asking, words: pa.Array) -> Ints:
        """Ads whose text is near single clicks and near the mean of all; without clicks the popular ones."""
        k, (rules, _) = self.policies[index].retrieval.candidates, self.rules[index]
        mean = mean_of_history(examples, self.unit_vectors)[rows]
        there = mean.any(axis=1)
        nearest: Ints = np.full((len(rows), k), -1, dtype=np.int64)
        for some, by_text in ((np.flatnonzero(there), True), (np.flatnonzero(~there), False)):
            if not len(some):
                continue
            own = asking if len(some) == len(rows) else self.asking(index, examples, rows[some], words.take(pa.array(some)))
            if by_text:
                nearest[some] = self._by_clicks(index, examples, rows[some], mean[some], own, words.take(pa.array(some)))
            else:
                nearest[some] = self._by_popularity(k, own, rules)
        return nearest

    def _by_clicks(self, index: int, examples: Examples, rows: Ints, mean: Floats, asking: Asking, words: pa.Array) -> Ints:
        """The k ads of largest cosine to the mean (r, E) plus nearness to single clicks, in units of cosine. What no click
        proposes comes behind what one does: the nearest to the mean, until the list is full."""
        k, (rules, _) = self.policies[index].retrieval.candidates, self.rules[index]
        neighbours = self._neighbours_of(index)
        histories = examples.histories.take(examples.history_of_row[rows])
        request, ad, near = neighbours.proposed(histories.offsets, histories.values)
        allowed = rules.pairs(asking, request, ad)
        request, ad, near = request[allowed], ad[allowed], near[allowed]
        nearest, _ = best_of_each(request, near, len(rows), _OVERFETCH * k)
        request, ad, near = request[nearest], ad[nearest], near[nearest]
        value = neighbours.spread * near + np.einsum("nd,nd->n", self.unit_vectors[ad], mean[request])
        best, place = best_of_each(request, value, len(rows), k)
        proposed: Ints = np.full((len(rows), k), -1, dtype=np.int64)
        proposed[request[best], place] = ad[best]
        short = np.flatnonzero(proposed[:, -1] < 0)
        if len(short):
            asking = self.asking(index, examples, rows[short], words.take(pa.array(short)))
            around = self._exact("text").search(mean[short], k, eligible=partial(rules.eligible, asking)).ad
            proposed[short] = merge_channels([np.concatenate([proposed[short], around], axis=1)], k)
        return proposed

    def _holds_neighbours(self, allowed: Bools) -> bool:
        return any(np.array_equal(mask, allowed) for mask, _ in self._neighbours)

    def _neighbours_of(self, index: int) -> Neighbours:
        """One object for all policies that allow the same ads."""
        allowed = self.rules[index][0].allowed
        for mask, neighbours in self._neighbours:
            if np.array_equal(mask, allowed):
                return neighbours
        self._neighbours.append((allowed.copy(), Neighbours(self._exact("text"), allowed.copy())))
        return self._neighbours[-1][1]

    def _by_popularity(self, k: int, asking: Asking, rules: Rules) -> Ints:
        """Ads with most training clicks."""
        ones = np.ones((len(asking.shown_at), 1), np.float32)
        return self._exact("popular").search(ones, k, eligible=partial(rules.eligible, asking)).ad

    def _by_query(self, k: int, words: pa.Array, asking: Asking, rules: Rules) -> Ints:
        """Ads that share most words with the query; equals by training clicks."""
        matched = self.ads.words.matched(self.ads.words.bag(words)).tocoo()
        admitted = rules.pairs(asking, matched.row.astype(np.int64), matched.col)
        row, ad, count = matched.row[admitted], matched.col[admitted], matched.data[admitted]
        order = np.lexsort((ad, -self._popularity[ad, 0], -count, row))
        row, ad = row[order], ad[order]
        place = np.arange(len(row)) - np.searchsorted(row, np.arange(len(words)))[row]
        best: Ints = np.full((len(words), k), -1, dtype=np.int64)
        best[row[place < k], place[place < k]] = ad[place < k]
        return best


def method_for(retrieval: Retrieval, ads: int) -> Literal["exact", "hnsw", "ivfpq"]:
    """How the model channel searches a catalogue of so many ads."""
    if retrieval.method != "auto":
        return retrieval.method
    if ads <= EXACT_UP_TO:
        return "exact"
    return "hnsw" if ads <= HNSW_UP_TO else "ivfpq"


def query_words(requests: pa.Table) -> pa.Array:
    """(R,) the queries as words joined by a space; empty where there is none."""
    if "query" not in requests.column_names:
        return pa.array([""] * len(requests), pa.string())
    queries = pc.fill_null(combined(requests["query"]).cast(pa.string()), "")
    return segment(queries) if pc.any(pc.not_equal(queries, "")).as_py() else queries


def _audience(users: pa.Table, column: str, values: pa.Array, user: Ints) -> Ints:
    """(r,) row of the targeting mask for each user: that of the value, or the last where no ad names it."""
    if column not in users.column_names:
        raise DataError(f"users: rules.targeting names '{column}', which is not among the columns. Name one that is.")
    found = pc.fill_null(pc.index_in(combined(users[column]).cast(pa.string()), value_set=values), len(values))
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int64)[user]
