"""The ranker: retrieve → score → value → rules and limits → list, for a block of requests. `rank` and `serve` share it."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.config.inference.rank import Policy
from adrec.data.arrays import Longs, combined, integers, places, table_with_row, unit_rows, with_row
from adrec.data.availability import ALWAYS, NEVER
from adrec.data.examples import Examples
from adrec.errors import ConfigError
from adrec.inference.catalogs import Catalogs
from adrec.inference.click_model import Scores
from adrec.inference.known import NOTHING, Known, users_named
from adrec.inference.lists.candidates import Finder
from adrec.inference.lists.catalogue import AdColumns, coded_with_row
from adrec.inference.lists.evidence import reasons
from adrec.inference.lists.linked import shared_links
from adrec.inference.lists.pairs import pairs_at, training_counts
from adrec.inference.lists.policies import deviations, diversifier, list_policy, values_of
from adrec.inference.lists.rerank import Rerank
from adrec.inference.predictor import BATCH_ROWS, Predictor
from adrec.ranking.arrays import Floats, Ints
from adrec.ranking.ledger import Ledger
from adrec.ranking.pacing import BudgetClock, flown
from adrec.ranking.policy import Candidates, Ranked, rank_block
from adrec.schema import ANY_SLOT, ENTITIES, NOBODY, PROPENSITY_GIVEN_ABOVE, SCORE_PREFIX
from adrec.terminal import Terminal


class Valued(NamedTuple):
    """The candidates (R, C) of R requests, and what the bundle says of them beside their score."""

    candidates: Candidates
    logit: Floats
    """(R, C) -inf where there is none"""
    tasks: dict[str, Floats]
    """each further task (R, C) in the units of its label"""


@dataclass(frozen=True)
class Scored:
    """A block of R requests with their C scored candidates: all that depends on no other request."""

    requests: pa.Table
    examples: Examples
    policy: Ints
    """(R,) index of the policy"""
    similarity: Floats
    """(R, C) retrieval product of the model channel, NaN where another channel found the ad"""
    candidates: Candidates
    tasks: dict[str, Floats]
    """what the bundle's further tasks say of the candidates, (R, C) each"""
    unscored: tuple[Ints, Ints]
    """request and ad row of the candidates that were left out because the bundle gives them no finite score"""


@dataclass(frozen=True)
class Block(Scored):
    """A block of R requests, ranked, and what led there. N slots."""

    ranked: Ranked

    @property
    def shown(self) -> tuple[Ints, Ints]:
        """Request and slot of every shown ad, request by request."""
        row, slot = np.nonzero(self.ranked.ad >= 0)
        return row, slot


class Ranker:
    """Ranks blocks of requests over one catalogue under named policies; holds the ledger of budgets and caps."""

    def __init__(
        self,
        predictor: Predictor,
        catalogs: Catalogs,
        ads: pa.Table,
        users: pa.Table,
        policies: dict[str, Policy],
        *,
        always: str | None = None,
        known: Known = NOTHING,
        campaigns: pa.Array | None = None,
        seed: int = 42,
        terminal: Terminal | None = None,
        rerank: Rerank | None = None,
    ) -> None:
        """`ads` and `users` row by row as in `catalogs`. `always` names the policy of every request, whatever its scenario;
        `known` answers for the past of requests and candidates. `campaigns`: names whose numbers a ledger knows already.
        `rerank` scores the first of each request once more.
        """
        self.predictor, self.catalogs, self.users = predictor, catalogs, users
        self.ads = AdColumns.of(ads)
        self.names, self.policies, self.always, self.seed = list(policies), list(policies.values()), always, seed
        self.known, self.rerank = known, rerank
        self.ad_vectors = predictor.ad_vectors(catalogs)
        text = catalogs.ads.vectors
        self.unit_vectors = unit_rows(text if text is not None and text.shape[1] else self.ad_vectors)
        self.campaign_column = self._agreed("campaign_column")
        self.campaign, self.campaigns = self.ads.campaign(self.campaign_column, campaigns)
        self.clock = BudgetClock(self._agreed("budget_period") == "day", self._agreed("time_zone"))
        self.ledger = Ledger(self.ads.budget, len(self.campaigns), daily=self.clock.daily)
        self.list_policies = [list_policy(policy) for policy in self.policies]
        self.impressions, clicks = training_counts(predictor, self.ads)
        self.finder = Finder(
            self.ads, self.users, self.policies, self.ad_vectors, self.unit_vectors, clicks,
            seed=seed, shares=predictor.packed.shares,
        )  # fmt: skip
        self.terminal = terminal

    def _agreed(self, limit: str) -> str:
        """A limit of all policies, which share one ledger. Raises ConfigError where they differ."""
        values = sorted({str(getattr(policy.limits, limit)) for policy in self.policies})
        if len(values) > 1:
            raise ConfigError(f"limits.{limit}: all policies need the same one, found {', '.join(values)}.")
        return values[0]

    @property
    def top_n(self) -> int:
        """Length of the longest list."""
        return max(policy.top_n for policy in self.policies)

    def attached(self, requests: pa.Table) -> pa.Table:
        """R requests as prepared impressions without an ad: prepared rows as they are, others with what is known of them."""
        if "history_index" in requests.column_names:
            if "ad_index" in requests.column_names:
                return requests
            return requests.append_column("ad_index", pa.array(np.zeros(len(requests)), pa.int32()))
        if "user_index" in requests.column_names:
            user = integers(requests["user_index"])
        else:
            user = places(users_named(requests), self.catalogs.users.ids)
        # A request has no ad yet; the reading of rows needs one to be an impression.
        ad = np.zeros(len(requests), np.int64)
        return self.predictor.attached(requests, self.catalogs, self.known, user, ad, counters=False, null_is_known=True)

    def with_ad(self, row: int, ad: pa.Table, own: Catalogs, known: Known, gone: Sequence[int]) -> "Ranker":
        """The same ranker with another ad at `row`, or a new one behind the last; nothing is made again of the others.

        ad: one row with the columns of the ranker's own; own: catalogs of it; gone: ads for nobody.
        """
        other = copy(self)
        other.catalogs, other.known = self.catalogs.with_ad(row, own), known
        other.ads = self.ads.with_row(row, table_with_row(self.ads.table, row, ad), ad)
        vectors = self.predictor.ad_vectors(own)
        text = own.ads.vectors
        other.ad_vectors = with_row(self.ad_vectors, row, vectors)
        other.unit_vectors = with_row(
            self.unit_vectors, row, unit_rows(text if text is not None and text.shape[1] else vectors)
        )
        columns = AdColumns.of(ad)
        other.campaign, other.campaigns = coded_with_row(
            self.campaign, self.campaigns, row, *columns.campaign(self.campaign_column)
        )
        other.ledger = Ledger(other.ads.budget, len(other.campaigns), daily=self.clock.daily)
        impressions, clicks = training_counts(self.predictor, columns)
        other.impressions = with_row(self.impressions, row, impressions)
        other.finder = self.finder.with_row(row, other.ads, other.ad_vectors, other.unit_vectors, float(clicks[0]), gone=gone)
        return other

    def without_rerank(self) -> "Ranker":
        """The same ranker, by the bundle's scores alone."""
        other = copy(self)
        other.rerank = None
        return other

    def for_users(self, users: pa.Table, catalogs: Catalogs) -> "Ranker":
        """The same ranker for other users: a table of them and catalogs over the same ads."""
        other = copy(self)
        other.users, other.catalogs, other.finder = users, catalogs, copy(self.finder)
        other.finder.users = users
        return other

    def rank(
        self,
        requests: pa.Table,
        *,
        first: int = 0,
        released: float | Floats | None = 1.0,
        now: int | None = None,
        given: Ints | None = None,
        user: Ints | None = None,
        ledger: Ledger | None = None,
    ) -> Block:
        """Rank a block and record it in the ledger. `first`: the number of its first request in the whole batch.

        given: (R, C) candidates instead of retrieved ones, -1 where empty; the rules still hold. user: (R,) numbers by
        which the ledger knows the users, default their rows. ledger: another one than the ranker's own. released: see
        `rank_block`; None is by the clock, of `now` (microseconds) or of each request's moment.
        """
        scored = self.scored(requests, first=first, given=given, user=user)
        return self.listed(scored, released=released, now=now, ledger=ledger)

    def scored(self, requests: pa.Table, *, first: int = 0, given: Ints | None = None, user: Ints | None = None) -> Scored:
        """Retrieve and score for a block, as `rank` does: no request of it, nor of any other block, matters to another."""
        table = self.attached(requests)
        examples = self.predictor.examples_of(table)
        policy = self.policy_of(requests)
        vectors = self.predictor.user_vectors(examples, self.catalogs)
        retrieved = self.finder.find(requests, examples, vectors, policy, given)
        candidates, _, tasks = self.candidates(table, examples, policy, retrieved.ad, first=first)
        lost = (retrieved.ad >= 0) & (candidates.ad < 0)
        unscored = (np.nonzero(lost)[0], retrieved.ad[lost])
        if user is None:  # a frequency cap is a person's: requests of nobody have one each
            is_nobody = self.catalogs.users.ids.to_numpy(zero_copy_only=False)[candidates.user] == NOBODY
            user = np.where(is_nobody, -1 - candidates.number, candidates.user)
        return Scored(requests, examples, policy, retrieved.similarity, candidates._replace(user=user), tasks, unscored)

    def listed(
        self, scored: Scored, *, released: float | Floats | None = 1.0, now: int | None = None, ledger: Ledger | None = None
    ) -> Block:
        """Make the lists of a scored block, and record them in the ledger: what `rank` does in order of the requests."""
        candidates, examples = scored.candidates, scored.examples
        diversifiers = [diversifier(policy, candidates, examples, self.ads, self.unit_vectors) for policy in self.policies]
        slots = self.predictor.packed.slots
        moments = examples.shown_at if now is None else np.full(len(scored.requests), now)
        ranked = rank_block(
            candidates,
            self.list_policies,
            diversifiers,
            self.ledger if ledger is None else ledger,
            released=self.released_by(moments, candidates.ad) if released is None else released,
            seed=self.seed,
            day=self.clock.day(moments),
            effects=None if slots is None else slots.of_lists(examples, self.top_n),
        )
        return Block(**vars(scored), ranked=ranked)

    @property
    def is_free(self) -> bool:
        """Whether no list changes what a later one may show: no caps over several lists, no budgets that bind."""
        has_budgets = bool((self.ads.budget < np.iinfo(np.int64).max).any())
        return not any(policy.binds(has_budgets) for policy in self.list_policies)

    def released_by(self, moments: Ints, ad: Ints) -> Floats:
        """(R, 1) or (R, C) share of the budgets of ads (R, C) that an even pace has released by moments (R,), by the clock."""
        if self.clock.daily:
            return self.clock.elapsed(moments)[:, None]
        rows = np.maximum(ad, 0)
        return flown(self.ads.starts[rows], self.ads.ends[rows], moments, always=ALWAYS, never=NEVER)

    def policy_of(self, requests: pa.Table) -> Ints:
        """(R,) the policy named by each request's scenario, else `default`."""
        names = pa.array(self.names, pa.string())
        if self.always is not None:
            return np.full(len(requests), self.names.index(self.always), dtype=np.int64)
        default = self.names.index("default")
        if "scenario" not in requests.column_names:
            return np.full(len(requests), default, dtype=np.int64)
        found = pc.fill_null(pc.index_in(combined(requests["scenario"]).cast(pa.string()), value_set=names), default)
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int64)

    def table(self, block: Block) -> pa.Table:
        """The block's lists as RANKED rows, and `shown_at` and `policy` beside them."""
        row, slot = block.shown
        ranked, candidates = block.ranked, block.candidates
        column = ranked.column[row, slot]
        price = ranked.price[row, slot]
        requests = block.requests
        users, own = users_named(requests).take(pa.array(row)), {}
        if "shown_at" in requests.column_names:
            own["shown_at"] = combined(requests["shown_at"]).take(pa.array(row))
        has_slots = self.predictor.packed.slots is not None
        beside = {ANY_SLOT: candidates.score} if has_slots else {}
        beside |= {f"{SCORE_PREFIX}{name}": values for name, values in block.tasks.items()}
        return pa.table(
            {
                "user_id": pc.if_else(pc.equal(users, NOBODY), pa.scalar(None, pa.string()), users),
                "request_id": combined(requests["request_id"]).cast(pa.string()).take(pa.array(row)),
                "ad_id": self.ads.ids.take(pa.array(ranked.ad[row, slot])),
                "rank": pa.array(slot + 1, pa.int32()),
                "score": pa.array(ranked.score[row, slot], pa.float32()),
                **{name: _where_finite(values[row, column]) for name, values in beside.items()},
                "value": pa.array(candidates.value[row, column], pa.float64()),
                "price": pa.array(price, pa.float64(), mask=np.isnan(price)),
                PROPENSITY_GIVEN_ABOVE: pa.array(ranked.propensity[row, slot], pa.float64()),
                "reason": self.reasons(block),
                **own,
                "policy": pa.array(self.names, pa.string()).take(pa.array(block.policy[row])),
            }
        )

    def reasons(self, block: Block) -> pa.Array:
        """One sentence for every shown ad, request by request."""
        packed = self.predictor.packed
        links = partial(shared_links, self.catalogs.ads, packed.features["ads"], packed.tables.get(ENTITIES.name))
        return reasons(
            self.ads, self.users, self.unit_vectors, block.requests, block.examples, block.ranked, block.candidates, links
        )

    def candidates(
        self, table: pa.Table, examples: Examples, policy: Ints, ad: Ints, *, first: int = 0, batch_rows: int = BATCH_ROWS
    ) -> Valued:
        """The ads (R, C) of R requests (`table` as `attached` gives it), -1 where there is none, scored and valued. An ad whose
        score is no number is none.
        """
        place = np.flatnonzero(ad.ravel() >= 0)
        row, chosen = (place // ad.shape[1]).astype(np.int64), ad.ravel()[place].astype(np.int64)
        pairs = self.pairs(table, examples, row, chosen)
        scores = self.predictor.score_examples(pairs, self.catalogs, baselines=False, batch_rows=batch_rows)
        if self.rerank is not None:
            scores = self.rerank(self.predictor, pairs, self.catalogs, scores)
        is_finite = np.isfinite(scores.score)
        ad, place, scores = ad.copy(), place[is_finite], scores.of(is_finite)
        logit = np.full(ad.shape, -np.inf)
        logit.ravel()[place] = scores.logit
        ad[~np.isfinite(logit)] = -1
        tasks = {name: np.full(ad.shape, np.nan) for name in scores.tasks}
        for name, values in scores.tasks.items():
            tasks[name].ravel()[place] = values
        return Valued(self._candidates(examples, policy, ad, place, scores, first), logit, tasks)

    def pairs(self, table: pa.Table, examples: Examples, row: Longs, ad: Longs) -> Examples:
        """N pairs of request `row` (N,) of `table` (`attached`) and ad (N,), with what was known at its moment."""
        return pairs_at(self.predictor, self.catalogs, self.known, table, examples, row, ad)

    def _candidates(self, examples: Examples, policy: Ints, ad: Ints, place: Ints, scores: Scores, first: int) -> Candidates:
        """`place`: flat positions of the ads that are there, to which `scores` belong."""
        score = np.zeros(ad.shape)
        score.ravel()[place] = np.clip(scores.score.astype(np.float64), 0.0, 1.0)
        there, rows = ad >= 0, np.maximum(ad, 0)
        bid = np.where(there, self.ads.bid[rows], np.nan)
        return Candidates(
            number=first + np.arange(len(ad)),
            user=examples.user_index.astype(np.int64),
            policy=policy,
            ad=ad,
            score=score,
            value=values_of(self.policies, policy, score, bid, place, scores),
            bid=bid,
            advertiser=np.where(there, self.ads.advertiser[rows], -1),
            category=np.where(there, self.ads.category[rows], -1),
            campaign=np.where(there, self.campaign[rows], -1),
            deviation=deviations(self.policies, policy, score, self.impressions[rows]),
        )


def _where_finite(values: Floats) -> pa.Array:
    return pa.array(values, pa.float32(), mask=~np.isfinite(values))
