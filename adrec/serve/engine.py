"""Answers batches of requests from the live bundle and the event store. Runs in the model's thread; knows nothing of HTTP."""

import threading
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from adrec.config.serve import ServeConfig
from adrec.data.examples import combined
from adrec.data.prepared import Prepared, open_prepared
from adrec.data.tables import read_table
from adrec.inference.explain.explainer import Explainer
from adrec.inference.explain.sentence import sentence
from adrec.inference.lists.past_counters import PastCounters
from adrec.ranking.ledger import Ledger
from adrec.schema import ADS
from adrec.serve.live import Histories, Live, Past
from adrec.serve.messages import (
    AdIn,
    EventIn,
    ExplainAnswer,
    ExplainRequest,
    RankAnswer,
    RankedAd,
    RankedList,
    RankRequest,
    RankUser,
    ScoreAnswer,
    ScoreOut,
    ScoreRequest,
    UserIn,
)
from adrec.serve.rounds import context_columns, count_event, described_users, in_rounds, micros
from adrec.serve.store import Event, SqliteStore


class Engine:
    """Everything behind the HTTP interface. `live` is replaced as a whole; a batch works with the one it started with."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        prepared = open_prepared(config.prepared) if config.prepared is not None else None
        self._ads = read_table(config.ads, ADS) if config.ads is not None else _given(prepared).ads()
        self._users = prepared.users() if prepared is not None else pa.table({"user_id": pa.array(["adrec-nobody"])})
        own_ads = config.ads is None
        self._counters = PastCounters(prepared) if prepared is not None and own_ads else None
        self._past = Past.of(prepared if own_ads else None)
        self.store = SqliteStore(config.store)
        self._changes = self.store.ads()
        start = config.clock_from
        self._ahead = 0 if start is None else int((start.timestamp() - datetime.now(UTC).timestamp()) * 1_000_000)
        self._rebuild = threading.Lock()
        self._ledger_lock = threading.Lock()
        self._recording = threading.Lock()  # an event is in the store and in the ledger, or in neither
        self.live = self._load(None)
        self._ledger = self._counted(self.live)

    # ------------------------------------------------------------------------------------------- answering

    def score(self, items: Sequence[ScoreRequest]) -> list[ScoreAnswer | Exception]:
        """Scores of several requests in one pass of the model."""
        live = self.live
        return in_rounds(items, described_users, lambda some: self._score(live, some))

    def rank(self, items: Sequence[RankRequest]) -> list[RankAnswer | Exception]:
        """Lists of several requests in one pass of the model."""
        live = self.live
        return in_rounds(items, lambda item: list(item.requests), lambda some: self._rank(live, some))

    def explain(self, item: ExplainRequest) -> ExplainAnswer:
        """Why one (user, ad) gets its score."""
        live = self.live
        _, catalogs = live.catalogs([item.user])
        at = self._now()
        row = {
            "user_id": item.user.user_id,
            "ad_id": item.ad_id,
            "shown_at": at,
            "scenario": item.scenario,
            "query": item.query,
        }
        histories = self._histories(live, [item.user], [at])
        examples = live.examples([row], np.zeros(1, np.int64), histories)
        titles = {item.ad_id: str(live.ranker.ads.titles[live.place(item.ad_id)])}
        found = Explainer(live.predictor, catalogs, titles).explain(examples, 0)
        return ExplainAnswer(
            sentence=sentence(found),
            score=found.score,
            logit=found.logit,
            baseline=found.baseline,
            words=[asdict(word) for word in found.words],
            parts=[asdict(part) for part in found.parts],
        )

    # ------------------------------------------------------------------------------------------- changing

    def record(self, events: Sequence[EventIn]) -> int:
        """Commit events, then count them. Returns how many were new."""
        now = self._now()
        told = [
            Event(event.user_id, event.ad_id, event.kind, micros(event.at) or now, event.price, event.event_id)
            for event in events
        ]
        with self._recording:
            new = self.store.record(told)
            numbers = self.store.user_numbers(event.user_id for event in new) if new else {}
            with self._ledger_lock:
                for event in new:
                    number = numbers[event.user_id]
                    count_event(self._ledger, self.live, number, event.ad_id, event.kind, 1, event.price or 0.0)
        return len(new)

    def ad(self, ad_id: str) -> AdIn:
        """A servable ad as it can be put. Raises DataError where there is none."""
        live = self.live
        row = live.place(ad_id)
        known = [name for name in AdIn.model_fields if name in live.ads.column_names]
        return AdIn.model_validate({name: live.ads[name][row].as_py() for name in known})

    def put_ad(self, ad_id: str, ad: AdIn) -> None:
        """Add or change an ad: encoded, remembered and served when this returns."""
        values = ad.model_dump()
        values |= {name: micros(values[name]) for name in ("starts_at", "ends_at")}
        self._change(ad_id, values)

    def delete_ad(self, ad_id: str) -> None:
        """Never show it again. Raises DataError where it is not there."""
        self.live.place(ad_id)
        self._change(ad_id, None)

    def reload(self, bundle: Path | None) -> str:
        """Load a bundle aside, check it, and put it in place; the earlier one goes on until then, and where it fails."""
        with self._rebuild:
            config = self.config if bundle is None else self.config.model_copy(update={"bundle": bundle})
            live = Live.load(config, self._ads, self._users, self._changes, counters=self._counters)
            self._put(live)
            self.config = config
        return live.fingerprint

    # ------------------------------------------------------------------------------------------- inside

    def _now(self) -> int:
        """Microseconds since 1970, UTC, by the server's clock."""
        return int(datetime.now(UTC).timestamp() * 1_000_000) + self._ahead

    def _score(self, live: Live, items: list[ScoreRequest]) -> list[ScoreAnswer]:
        described = [user for item in items for user in described_users(item)]
        places = {user.user_id: number for number, user in enumerate(described)}
        _, catalogs = live.catalogs(described)
        rows, user = [], []
        for item in items:
            for row in item.rows:
                user.append(places[row.user_id])
                rows.append(
                    {
                        "user_id": row.user_id, "ad_id": row.ad_id, "shown_at": micros(row.shown_at) or self._now(),
                        "scenario": row.scenario, "query": row.query, **context_columns(row.context),
                    }
                )  # fmt: skip
        histories = self._histories(live, [described[place] for place in user], [row["shown_at"] for row in rows])
        examples = live.examples(rows, np.array(user), histories)
        scores = live.predictor.score_examples(examples, catalogs, baselines=False)
        out = [
            ScoreOut(
                user_id=row["user_id"], ad_id=row["ad_id"], logit=logit, score=score,
                cold_ad=bool(live.ranker.catalogs.cold_ad[ad]), cold_user=bool(catalogs.cold_user[place]),
            )
            for row, logit, score, ad, place in zip(
                rows, scores.logit.tolist(), scores.score.tolist(), examples.ad_index, user, strict=True
            )
        ]  # fmt: skip
        ends = np.cumsum([len(item.rows) for item in items])
        parts = np.split(np.arange(len(out)), ends[:-1])
        return [ScoreAnswer(rows=[out[place] for place in part], bundle=live.fingerprint) for part in parts]

    def _rank(self, live: Live, items: list[RankRequest]) -> list[RankAnswer]:
        asked: list[RankUser] = [one for item in items for one in item.requests]
        users, catalogs = live.catalogs(list(asked))
        moments = [micros(one.shown_at) or self._now() for one in asked]
        rows = [
            {"user_id": one.user_id, "shown_at": at, "scenario": one.scenario, "query": one.query, "user_index": place}
            for place, (one, at) in enumerate(zip(asked, moments, strict=True))
        ]
        requests = live.table(rows, self._histories(live, list(asked), moments))
        numbers = self.store.user_numbers(one.user_id for one in asked)
        with self._ledger_lock:
            ledger = self._ledger.copy()
        ranker = live.ranker.for_users(users, catalogs)
        lists: list[RankedList] = []
        answers: dict[int, list[RankedList]] = {}
        # Requests that name their candidates are ranked apart: their candidates are of another width.
        for named in (False, True):
            mine = np.flatnonzero([(one.candidates is not None) == named for one in asked])
            if len(mine) == 0:
                continue
            given = None
            if named:
                wide = max(len(asked[place].candidates or []) for place in mine)
                given = np.full((len(mine), wide), -1, np.int64)
                for line, place in enumerate(mine):
                    ids = dict.fromkeys(asked[place].candidates or [])
                    given[line, : len(ids)] = [live.place(ad_id) for ad_id in ids]
            block = ranker.rank(
                requests.take(pa.array(mine)),
                first=int(np.random.default_rng().integers(2**40)),  # exploration draws anew for each request
                given=given,
                user=np.array([numbers[asked[place].user_id] for place in mine]),
                ledger=ledger,
            )
            table = ranker.table(block)
            row, _ = block.shown
            titles = ranker.ads.titles.take(pa.array(block.ranked.ad[block.shown])).tolist()
            values = {
                name: combined(table[name]).tolist()
                for name in ("ad_id", "rank", "score", "value", "price", "propensity", "reason")
            }
            for line, place in enumerate(mine):
                at = np.flatnonzero(row == line)[: asked[place].top_n]
                ads = [RankedAd(title=titles[spot], **{name: column[spot] for name, column in values.items()}) for spot in at]
                answers[int(place)] = [
                    RankedList(user_id=asked[place].user_id, policy=ranker.names[int(block.policy[line])], ads=ads)
                ]
        lists = [answers[place][0] for place in range(len(asked))]
        ends = np.cumsum([len(item.requests) for item in items])
        parts = np.split(np.arange(len(lists)), ends[:-1])
        return [RankAnswer(lists=[lists[place] for place in part], bundle=live.fingerprint) for part in parts]

    def _histories(self, live: Live, users: list[UserIn], moments: list[int]) -> Histories:
        limit = live.predictor.packed.config.model.user.max_history
        found = []
        known: dict[tuple[str, int], Any] = {}
        for user, at in zip(users, moments, strict=True):
            key = (user.user_id, at)
            if key not in known:
                clicks = self.store.clicks(user.user_id, at, limit) if user.history is None else []
                known[key] = live.history(self._past, user, clicks, at, limit)
            found.append(known[key])
        return Histories([rows for rows, _, _ in found], [hours for _, hours, _ in found], [length for _, _, length in found])

    def _change(self, ad_id: str, values: dict[str, Any] | None) -> None:
        with self._rebuild:
            changes = {**self._changes, ad_id: values}
            live = self._load(self.live, changes)
            self.store.put_ad(ad_id, values)
            self._changes = changes
            self._put(live)

    def _load(self, before: Live | None, changes: dict[str, Any] | None = None) -> Live:
        return Live.load(
            self.config,
            self._ads,
            self._users,
            self._changes if changes is None else changes,
            counters=self._counters,
            predictor=before.predictor if before is not None else None,
        )

    def _put(self, live: Live) -> None:
        """The new bundle or catalogue, and a ledger over its rows."""
        with self._recording, self._ledger_lock:
            self._ledger = self._counted(live)
            self.live = live

    def _counted(self, live: Live) -> Ledger:
        """What the store knows of impressions and spend, as a ledger over the live catalogue."""
        ledger = Ledger(live.ranker.ads.budget, len(live.ranker.ledger.campaign))
        for user, ad_id, count in self.store.impressions():
            count_event(ledger, live, user, ad_id, "impression", count, 0.0)
        for ad_id, spent in self.store.spent().items():
            count_event(ledger, live, 0, ad_id, "click", 1, spent)
        return ledger


def _given(prepared: Prepared | None) -> Prepared:
    assert prepared is not None, "the config asks for 'prepared' where 'ads' is not given"
    return prepared
