"""Answers batches of requests from the live bundles and the event store. Runs in the model's thread; knows nothing of HTTP."""

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from math import isfinite
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
from adrec.schema import ADS, NOBODY
from adrec.serve.answering import answers, described, ranked, row_of, scored
from adrec.serve.arms import FIRST, SECOND
from adrec.serve.fields import micros
from adrec.serve.intake import read_explain, read_rank, read_score
from adrec.serve.learning import learn
from adrec.serve.lists import Answer
from adrec.serve.live import Live
from adrec.serve.messages import (
    AdIn,
    AdOut,
    EventIn,
    ExplainAnswer,
    ExplainRequest,
    RankRequest,
    ScoreRequest,
)
from adrec.serve.rounds import count_event
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
        return answers(
            items,
            lambda item: read_score(item, lives, self.config.challenger),
            lambda asked: {row.user_id: described(row) for row in asked.rows},
            lambda some: scored(lives, some, self._now()),
        )

    def rank(self, items: Sequence[RankRequest]) -> list[Answer | Exception]:
        """Lists of several requests in one pass of the model."""
        with self._state:
            self._catch_up()
            lives, ledger = self.lives, self._ledger.copy()
        return answers(
            items,
            lambda item: read_rank(item, lives, self.config.challenger),
            # Caps are counted by user: two requests of one are none that can be answered at once.
            lambda asked: {row.user_id: described(row) if row.user_id == NOBODY else object() for row in asked.rows},
            lambda some: ranked(lives, ledger, self.store.numbers, some, self._now()),
        )

    def explain(self, item: ExplainRequest) -> ExplainAnswer:
        """Why one (user, ad) gets its score. Raises RefusedError where it can get none."""
        with self._state:
            self._catch_up()
            lives = self.lives
        [asked] = read_explain(item, lives, self.config.challenger).rows
        live = lives[asked.arm.name]
        _, catalogs = live.catalogs([asked.user])
        row = row_of(asked, self._now())
        examples = live.examples([row], [asked.user], np.zeros(1, np.int64), catalogs)
        titles = {asked.ad_id: str(live.ranker.ads.titles[live.place(asked.ad_id)])}
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
                event.user_id or NOBODY, event.ad_id, event.kind, micros(event.at) or now, event.price, event.event_id,
                event.request_id, event.position, event.score, event.propensity_given_above, event.arm, event.scenario,
                json.dumps(event.context) if event.context else None,
            )
            for event in events
        ]  # fmt: skip
        return self.store.record(told)

    def ad(self, ad_id: str) -> AdOut:
        """A servable ad. Raises UnknownAdError where there is none."""
        live = self.live
        row = live.place(ad_id)
        known = [name for name in AdOut.model_fields if name in live.ads.column_names]
        values = {name: live.ads[name][row].as_py() for name in known}
        is_number = {name: isinstance(value, float) for name, value in values.items()}
        return AdOut(**{name: None if is_number[name] and not isfinite(value) else value for name, value in values.items()})

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
