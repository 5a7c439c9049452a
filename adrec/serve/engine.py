"""Answers batches of requests from the live bundles and the event store. Runs in the model's thread; knows nothing of HTTP."""

import json
import threading
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from adrec.asof.reader import AsOf, LogFiles
from adrec.asof.versions import NOTHING_CHANGES
from adrec.config.inference.serve import ServeConfig
from adrec.data.disk.tables import read_table
from adrec.data.prepared import Prepared, open_prepared
from adrec.errors import ConfigError
from adrec.inference.explain.explainer import Explainer
from adrec.inference.explain.sentence import sentence
from adrec.inference.known import attributes_of, log_of
from adrec.ranking.ledger import Ledger
from adrec.schema import ADS
from adrec.serve.arms import FIRST, SECOND, arm_of
from adrec.serve.learning import learn
from adrec.serve.lists import Answer, given_ads, lists_of
from adrec.serve.live import Live
from adrec.serve.messages import (
    AdIn,
    EventIn,
    ExplainAnswer,
    ExplainRequest,
    RankRequest,
    RankUser,
    ScoreRequest,
)
from adrec.serve.rounds import context_columns, count_event, described_users, in_rounds, micros
from adrec.serve.store import Event, open_store

_CATCH_UP = 10_000  # events read at once


class Engine:
    """Everything behind the HTTP interface. `lives` is replaced as a whole; a batch works with the ones it started with."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        prepared = open_prepared(config.prepared) if config.prepared is not None else None
        self._ads = read_table(config.ads, ADS) if config.ads is not None else _given(prepared).ads()
        self._users = prepared.users() if prepared is not None else pa.table({"user_id": pa.array(["adrec-nobody"])})
        self._asof = AsOf(log_of(prepared) if prepared is not None else LogFiles.empty(), self._ads)
        own = ("ads",) if config.ads is not None else ()
        self._attributes = attributes_of(prepared, own) if prepared is not None else NOTHING_CHANGES
        self._timeless = prepared is not None and prepared.manifest.get("history", {}).get("source") == "given"
        self.store = open_store(config)
        self._changes = self.store.ads()
        start = config.clock_from
        self._ahead = 0 if start is None else int((start.timestamp() - datetime.now(UTC).timestamp()) * 1_000_000)
        self._rebuild = threading.Lock()
        self._state = threading.Lock()  # of `lives`, `_ledger` and `_counted`, which change together
        arms = [FIRST] if config.challenger is None else [FIRST, SECOND]
        self._bundles: dict[str, Path] = {arm: _bundle_of(config, arm) for arm in arms}
        self.lives = {arm: self._load(arm, self._changes) for arm in arms}
        self._ledger, self._counted = self._summed(self.lives[FIRST])
        self._learned = 0
        """number of the last event that counters and histories have taken in"""
        self._catch_up()

    @property
    def live(self) -> Live:
        """The first arm's bundle over the catalogue."""
        return self.lives[FIRST]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Arm → fingerprint of its bundle."""
        return {arm: live.fingerprint for arm, live in self.lives.items()}

    # ------------------------------------------------------------------------------------------- answering

    def score(self, items: Sequence[ScoreRequest]) -> list[Answer | Exception]:
        """Scores of several requests in one pass of the model."""
        with self._state:
            self._catch_up()
            lives = self.lives
        return in_rounds(items, described_users, lambda some: self._score(lives, some))

    def rank(self, items: Sequence[RankRequest]) -> list[Answer | Exception]:
        """Lists of several requests in one pass of the model."""
        with self._state:
            self._catch_up()
            lives, ledger = self.lives, self._ledger.copy()
        return in_rounds(items, lambda item: list(item.requests), lambda some: self._rank(lives, ledger, some))

    def explain(self, item: ExplainRequest) -> ExplainAnswer:
        """Why one (user, ad) gets its score."""
        with self._state:
            self._catch_up()
            live = self.lives[arm_of(item.user.user_id, self.config.challenger).name]
        _, catalogs = live.catalogs([item.user])
        row = {
            "user_id": item.user.user_id,
            "ad_id": item.ad_id,
            "shown_at": micros(item.shown_at) or self._now(),
            "scenario": item.scenario,
            "query": item.query,
            **context_columns(item.context),
        }
        examples = live.examples([row], [item.user], np.zeros(1, np.int64), catalogs)
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
            Event(
                event.user_id, event.ad_id, event.kind, micros(event.at) or now, event.price, event.event_id,
                event.request_id, event.position, event.score, event.propensity_given_above, event.arm, event.scenario,
                json.dumps(event.context) if event.context else None,
            )
            for event in events
        ]  # fmt: skip
        return self.store.record(told)

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

    def reload(self, bundle: Path | None, arm: str = FIRST) -> Live:
        """Load a bundle aside, check it, and put it in place; the earlier one goes on until then, and where it fails.

        Changed ads are read anew from the store: other servers over it may have changed some.
        """
        with self._rebuild:
            if arm not in self.lives:
                raise ConfigError("There is no arm b: the server was started without a 'challenger'.")
            before = self._bundles[arm]
            changes = self.store.ads()
            self._bundles[arm] = bundle or before
            try:
                live = self._load(arm, changes)
                others = self.lives
                if changes != self._changes:
                    others = {name: self._load(name, changes, other) for name, other in self.lives.items() if name != arm}
            except BaseException:
                self._bundles[arm] = before
                raise
            self._put({**others, arm: live}, changes)
        return live

    # ------------------------------------------------------------------------------------------- inside

    def _now(self) -> int:
        """Microseconds since 1970, UTC, by the server's clock."""
        return int(datetime.now(UTC).timestamp() * 1_000_000) + self._ahead

    def _score(self, lives: dict[str, Live], items: list[ScoreRequest]) -> list[Answer]:
        asked = [row for item in items for row in item.rows]
        moments = [micros(row.shown_at) or self._now() for row in asked]
        described = {user.user_id: user for item in items for user in described_users(item)}
        arms = [arm_of(row.user_id, self.config.challenger).name for row in asked]
        out: dict[int, Answer] = {}
        for arm, live in lives.items():
            mine = [place for place, name in enumerate(arms) if name == arm]
            if not mine:
                continue
            users = list({asked[place].user_id: described[asked[place].user_id] for place in mine}.values())
            number = {user.user_id: row for row, user in enumerate(users)}
            _, catalogs = live.catalogs(users)
            rows = [
                {
                    "user_id": row.user_id, "ad_id": row.ad_id, "shown_at": moments[place],
                    "scenario": row.scenario, "query": row.query, **context_columns(row.context),
                }
                for place in mine for row in [asked[place]]
            ]  # fmt: skip
            user = np.array([number[row["user_id"]] for row in rows])
            examples = live.examples(rows, users, user, catalogs)
            scores = live.predictor.score_examples(examples, catalogs, baselines=False)
            cold_ad, cold_user = live.ranker.catalogs.cold_ad[examples.ad_index], catalogs.cold_user[user]
            for place, row, logit, score, ad_is_cold, user_is_cold in zip(
                mine, rows, scores.logit.tolist(), scores.score.tolist(), cold_ad.tolist(), cold_user.tolist(), strict=True
            ):
                out[place] = {
                    "user_id": row["user_id"], "ad_id": row["ad_id"], "logit": logit, "score": score,
                    "cold_ad": ad_is_cold, "cold_user": user_is_cold, "arm": arm,
                }  # fmt: skip
        bundles = {arm: live.fingerprint for arm, live in lives.items()}
        waiting = iter(range(len(asked)))
        return [{"rows": [out[next(waiting)] for _ in item.rows], "bundles": bundles} for item in items]

    def _rank(self, lives: dict[str, Live], ledger: Ledger, items: list[RankRequest]) -> list[Answer]:
        asked: list[RankUser] = [one for item in items for one in item.requests]
        moments = [micros(one.shown_at) or self._now() for one in asked]
        numbers = self.store.numbers(one.user_id for one in asked)
        arms = [arm_of(one.user_id, self.config.challenger) for one in asked]
        lists: dict[int, Answer] = {}
        for arm, live in lives.items():
            mine = [place for place, (name, _) in enumerate(arms) if name == arm]
            if not mine:
                continue
            users, catalogs = live.catalogs([asked[place] for place in mine])
            rows = [
                {
                    "user_id": one.user_id, "shown_at": moments[place], "scenario": one.scenario, "query": one.query,
                    "user_index": row,
                }
                for row, place in enumerate(mine) for one in [asked[place]]
            ]  # fmt: skip
            requests = live.table(rows, [asked[place] for place in mine])
            ranker = live.ranker.for_users(users, catalogs)
            # Requests that name their candidates are ranked apart: their candidates are of another width.
            for named in (False, True):
                some = [row for row, place in enumerate(mine) if (asked[place].candidates is not None) == named]
                if not some:
                    continue
                places = [mine[row] for row in some]
                block = ranker.rank(
                    requests.take(pa.array(some)),
                    first=int(np.random.default_rng().integers(2**40)),  # exploration draws anew for each request
                    given=given_ads(live, [asked[place].candidates or [] for place in places]) if named else None,
                    # A user without events is in no count: any number of its own will do.
                    user=np.array([numbers.get(asked[place].user_id, -1 - place) for place in places]),
                    ledger=ledger.copy(),
                )
                for place, policy, ads in zip(places, block.policy.tolist(), lists_of(ranker, block), strict=True):
                    lists[place] = {
                        "user_id": asked[place].user_id, "request_id": uuid.uuid4().hex[:16], "policy": ranker.names[policy],
                        "arm": arm, "arm_share": arms[place].share, "ads": ads[: asked[place].top_n],
                    }  # fmt: skip
        bundles = {arm: live.fingerprint for arm, live in lives.items()}
        waiting = iter(range(len(asked)))
        return [{"lists": [lists[next(waiting)] for _ in item.requests], "bundles": bundles} for item in items]

    def _change(self, ad_id: str, values: dict[str, Any] | None) -> None:
        with self._rebuild:
            changes = {**self._changes, ad_id: values}
            lives = {arm: self._load(arm, changes, live) for arm, live in self.lives.items()}
            self.store.put_ad(ad_id, values)
            self._put(lives, changes)

    def _load(self, arm: str, changes: dict[str, Any], before: Live | None = None) -> Live:
        """An arm's bundle over the changed catalogue; the loaded one of `before`, if given."""
        return Live.load(
            self.config,
            self._bundles[arm],
            self._ads,
            self._users,
            changes,
            asof=self._asof,
            attributes=self._attributes,
            timeless=self._timeless,
            predictor=before.predictor if before is not None else None,
            onnx=arm == FIRST,
        )

    def _put(self, lives: dict[str, Live], changes: dict[str, Any]) -> None:
        """New bundles or another catalogue, and a ledger over its rows."""
        with self._state:
            self._ledger, self._counted = self._summed(lives[FIRST])
            self.lives, self._changes = lives, changes

    def _summed(self, live: Live) -> tuple[Ledger, int]:
        """What the store knows of impressions and spend, as a ledger over the live catalogue, and its last event."""
        ledger = Ledger(live.ranker.ads.budget, len(live.ranker.ledger.campaign))
        totals = self.store.totals()
        for user, ad_id, count in totals.impressions:
            count_event(ledger, live, user, ad_id, "impression", count, 0.0)
        for ad_id, spent in totals.spent.items():
            count_event(ledger, live, 0, ad_id, "click", 1, spent)
        return ledger, totals.last

    def _catch_up(self) -> None:
        """Count what was recorded since, by this server or another over the same store."""
        live = self.lives[FIRST]
        while told := self.store.after(min(self._counted, self._learned), _CATCH_UP):
            for number, user, event in told:
                if number > self._counted:
                    count_event(self._ledger, live, user, event.ad_id, event.kind, 1, event.price or 0.0)
            learn(live, [event for number, _, event in told if number > self._learned])
            last = told[-1].number
            self._counted, self._learned = max(self._counted, last), max(self._learned, last)


def _bundle_of(config: ServeConfig, arm: str) -> Path:
    return config.bundle if arm == FIRST or config.challenger is None else config.challenger.bundle


def _given(prepared: Prepared | None) -> Prepared:
    assert prepared is not None, "the config asks for 'prepared' where 'ads' is not given"
    return prepared
