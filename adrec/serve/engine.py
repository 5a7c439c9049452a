"""Answers batches of requests from the live bundles and the event store. Runs in the model's thread; knows nothing of HTTP."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from adrec.config.inference.serve import ServeConfig
from adrec.data.media.files import MediaError
from adrec.inference.explain.explainer import Explainer
from adrec.inference.explain.sentence import change_label, part_label, sentence
from adrec.models.media.media_reader import MEDIA
from adrec.models.media.media_vectors import MediaVectors
from adrec.schema import NOBODY
from adrec.serve.answering import answers, described, ranked, row_of, scored
from adrec.serve.arms import FIRST, SECOND
from adrec.serve.batcher import OverloadedError
from adrec.serve.intake.checking import Place, RefusedError, read_explain, read_rank, read_score, refuse_vectors
from adrec.serve.intake.fields import micros
from adrec.serve.intake.messages import (
    AdIn,
    AdOut,
    EventIn,
    EventsAnswer,
    ExplainAnswer,
    ExplainRequest,
    RankRequest,
    ScoreRequest,
    TryRequest,
)
from adrec.serve.intake.names import Names
from adrec.serve.intake.recorded import as_kept
from adrec.serve.lists import Answer
from adrec.serve.state.catalogue import LINKS, MADE_OF_MEDIA, UNCHANGED, Change, usable
from adrec.serve.state.following import Background, Follower
from adrec.serve.state.live import Live
from adrec.serve.state.snapshot import Snapshots, definition_of
from adrec.serve.state.tally import Tally
from adrec.serve.state.world import World, stamp_of
from adrec.serve.store import NOTHING_KEPT, events_table, open_store
from adrec.serve.trying import try_out
from adrec.serve.turns import Turns

_AT_ONCE = 50_000
"""Events of a slice where nobody waits."""
_SLICE = 5_000
"""And of one while requests are answered."""
_NO_PSEUDONYM = (
    "is no pseudonym, and the log was pseudonymised: send what ADREC_PRIVACY_KEY makes of it, or start the server with it"
)
_COUNTING_SECONDS = 3.0
"""A slice is counted well within."""
COUNTED_SECONDS = 1.0
"""An acknowledgement waits so long for its events to be counted."""


class Engine:
    """Everything behind the HTTP interface. `lives` is replaced as a whole; a batch works with the ones it started with."""

    def __init__(self, config: ServeConfig) -> None:
        self.config, self.names = config, Names()
        self._world = World.read(config)
        self.store = open_store(config)
        self._changes = {
            ad_id: UNCHANGED.then(ad, number) for ad_id, (number, ad) in self.store.ads().items() if ad is None or usable(ad)
        }
        start = config.clock_from
        self._ahead = 0 if start is None else int((start.timestamp() - datetime.now(UTC).timestamp()) * 1_000_000)
        self.turns = Turns()
        self._reloading, self._trying = threading.Lock(), threading.Lock()
        self._changing = threading.RLock()  # of what follows: held while it is replaced, never while a model loads or answers
        arms = [FIRST] if config.challenger is None else [FIRST, SECOND]
        self._bundles: dict[str, Path] = {arm: _bundle_of(config, arm) for arm in arms}
        self._polled = max((change.number for change in self._changes.values()), default=0)
        """changes of ads up to here are known, whoever made them"""
        lives = {arm: self._load(arm, self._bundles[arm]) for arm in arms}
        self._snapshots = Snapshots(self.store)
        self._served = lives, self._replayed(lives[FIRST], self._world, from_snapshot=True)
        self._recounting = Background(self._recount, "recount")
        patience = 2 * config.store_timeout_seconds + _COUNTING_SECONDS
        self.follower = Follower(self._follow, self.store.probe, patience_seconds=patience)

    @property
    def lives(self) -> dict[str, Live]:
        """Arm → its bundle over the catalogue."""
        return self._served[0]

    @property
    def tally(self) -> Tally:
        """What events add up to."""
        return self._served[1]

    @property
    def live(self) -> Live:
        """The first arm's bundle over the catalogue."""
        return self.lives[FIRST]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Arm → fingerprint of its bundle."""
        return {arm: live.fingerprint for arm, live in self.lives.items()}

    def now(self) -> int:
        """Microseconds since 1970, UTC, by the server's clock."""
        return int(datetime.now(UTC).timestamp() * 1_000_000) + self._ahead

    # ------------------------------------------------------------------------------------------- answering

    def score(self, items: Sequence[ScoreRequest]) -> list[Answer | Exception]:
        """Scores of several requests in one pass of the model."""
        lives = self.lives
        return answers(
            items,
            lambda item: read_score(item, lives, self.config.challenger, self.names),
            lambda asked: {row.user_id: described(row) for row in asked.rows},
            lambda some: scored(lives, some, self.now()),
        )

    def rank(self, items: Sequence[RankRequest]) -> list[Answer | Exception]:
        """Lists of several requests in one pass of the model."""
        lives, tally = self._served
        ledger = tally.ledger  # of all rows of the catalogue: it grows before the catalogue does
        return answers(
            items,
            lambda item: read_rank(item, lives, self.config.challenger, self.names),
            # Caps are counted by user: two requests of one are none that can be answered at once.
            lambda asked: {row.user_id: described(row) if row.user_id == NOBODY else object() for row in asked.rows},
            lambda some: ranked(lives, ledger, some, self.now()),
        )

    def explain(self, item: ExplainRequest) -> ExplainAnswer:
        """Why one (user, ad) gets its score. Raises RefusedError where it can get none."""
        lives = self.lives
        [asked] = read_explain(item, lives, self.config.challenger, self.names).rows
        live = lives[asked.arm.name].apart(self.turns.stand_back)
        _, catalogs = live.catalogs([asked.user])
        row = row_of(asked, self.now())
        examples = live.examples([row], [asked.user], np.zeros(1, np.int64), catalogs)
        shown = np.append(examples.ads_used(), live.place(asked.ad_id))
        titles = {str(live.ranker.ads.ids[int(ad)]): str(live.ranker.ads.titles[int(ad)]) for ad in shown}
        explanation = Explainer(live.predictor, catalogs, titles).explain(examples, 0)
        language = item.language or explanation.reader
        chinese = language == "zh"
        return ExplainAnswer(
            sentence=sentence(explanation, language),
            language=language,
            score=explanation.score,
            logit=explanation.logit,
            baseline=explanation.baseline,
            text=explanation.text,
            words=[asdict(word) for word in explanation.words],
            parts=[{**asdict(part), "label": part_label(part, chinese=chinese)} for part in explanation.parts],
            counterfactuals=[
                {**asdict(change), "label": change_label(change, chinese=chinese)} for change in explanation.changes
            ],
        )

    def try_out(self, item: TryRequest) -> Answer:
        """A list as it is, and as it would be under each trial. Raises RefusedError where it cannot be made, OverloadedError
        where another trial is being made.
        """
        if not self._trying.acquire(blocking=False):
            raise OverloadedError(retry_after=1)
        try:
            lives, tally = self._served
            asked = read_rank(RankRequest.model_construct(requests=[item.request]), lives, self.config.challenger, self.names)
            return try_out(
                item,
                asked,
                lives,
                stored=self._stored,
                changed=lambda arm, tried: self._tried(arm, lives[arm], tried),
                rank=lambda some: ranked(dict(some), tally.ledger, [asked], self.now())[0],
            )
        finally:
            self._trying.release()

    # ------------------------------------------------------------------------------------------- changing

    def record(self, events: Sequence[EventIn]) -> EventsAnswer:
        """Commit events; when this returns they are counted too, or will be within moments. Raises StoreError: then none is."""
        lives = self.lives
        raw = [
            place for place, event in enumerate(events) if event.user_id and not self.names.may_be_kept(event.user_id, lives)
        ]
        if raw:
            raise RefusedError([Place(f"events.{place}.user_id", _NO_PSEUDONYM) for place in raw])
        self.turns.stand_back()
        packed = {arm: live.predictor.packed for arm, live in lives.items()}
        told = as_kept(
            events, self.now(), lambda name: self.names.inside(name, lives), packed[FIRST].form,
            {arm: model.score_of for arm, model in packed.items()},
        )  # fmt: skip
        judged = self.tally.judged(self.live, events_table(told))
        recorded = self.store.record(told)
        self.follower.reach(recorded.last, COUNTED_SECONDS)
        return EventsAnswer(
            recorded=recorded.new, repeated=len(events) - recorded.new, late=int(judged.late.sum()),
            unmatched=int(judged.unmatched.sum()),
        )  # fmt: skip

    def ad(self, ad_id: str) -> AdOut:
        """A servable ad. Raises UnknownAdError where there is none."""
        live = self.live
        row = live.place(ad_id)
        known = [name for name in AdOut.model_fields if name in live.ads.column_names and name != LINKS]
        values = {name: live.ads[name][row].as_py() for name in known}
        is_number = {name: isinstance(value, float) for name, value in values.items()}
        told = {name: None if is_number[name] and not isfinite(value) else value for name, value in values.items()}
        return AdOut(**told, vectors=live.vectors(row), links=live.links(row))

    def put_ad(self, ad_id: str, ad: AdIn) -> None:
        """Add or change an ad: encoded, remembered and served when this returns. Raises RefusedError where it has no title."""
        if ad.title is None and self.live.predictor.packed.has.text:
            raise RefusedError([Place("body.title", "is needed: the bundle reads titles")])
        bundles = [live.predictor.packed for live in self.lives.values()]
        refuse_vectors(ad.vectors, bundles)
        if ad.links and not any(packed.paths is not None for packed in bundles):
            raise RefusedError([Place("body.links", "the bundle reads no links")])
        values = _in_micros(ad.model_dump(exclude=set(MEDIA)))
        given = {setting: getattr(ad, setting) for setting in MEDIA if getattr(ad, setting) is not None}
        if given:
            values[MADE_OF_MEDIA] = {
                key: vector for setting, cell in given.items() for key, vector in self._encoded(setting, cell).items()
            }
        with self._changing:
            lives, changes = self._changed(ad_id, values, 0)
            number = self.store.put_ad(ad_id, values)
            self._swap(lives, {**changes, ad_id: changes[ad_id]._replace(number=number)})

    def delete_ad(self, ad_id: str) -> None:
        """Never show it again. Raises DataError where it is not there."""
        self.live.place(ad_id)
        with self._changing:
            number = self.store.put_ad(ad_id, None)
            self._swap(*self._changed(ad_id, None, number))

    def reload(self, bundle: Path | None, arm: str = FIRST) -> Live:
        """Load a bundle aside, check it, and put it in place; the earlier one goes on until then, and where it fails.

        Catalogue, users and log are read anew where their files have changed; the store's events are then counted anew.
        """
        with self._reloading:
            path, changes, world = bundle or self._bundles[arm], self._changes, self._world
            if stamp_of(self.config) != world.stamp:
                world = World.read(self.config)
            lives = {arm: self._load(arm, path, changes, world)}
            if world is not self._world:
                others = {name: live for name, live in self.lives.items() if name != arm}
                for live in others.values():
                    world.refuse_other_spaces(live.predictor.packed.features)
                lives |= {name: self._load(name, path, changes, world, before) for name, before in others.items()}
            tally = self.tally if world is self._world else self._replayed(lives[FIRST], world)
            with self._changing:
                for ad_id in [name for name, change in self._changes.items() if changes.get(name) is not change]:
                    # changed since: this arm's bundle has not seen it
                    lives = {name: self._with(name, live, ad_id, self._changes, world) for name, live in lives.items()}
                lives = {name: lives.get(name, live) for name, live in self.lives.items()}
                self._bundles[arm], self._world = path, world
                self._swap(lives, self._changes, tally)
        return lives[arm]

    def erase(self, user_id: str) -> int:
        """Take away everything that the store holds of a user and forget it here at once; returns how many events."""
        with self._changing:
            tally, before = self.tally, self.store.epoch()
            names = dict.fromkeys((user_id, self.names.inside(user_id, self.lives)))  # also of before there were pseudonyms
            all_erased = {name: self.store.erase(name) for name in names}
            for name, erased in all_erased.items():
                tally.forget(self.live, name, erased.events)
            epochs = sum(erased.epochs for erased in all_erased.values())
            if before == tally.epoch and self.store.epoch() == before + epochs:
                tally.epoch += epochs  # nobody else took anything away: there is nothing to count anew
        return sum(len(erased.events) for erased in all_erased.values())

    def close(self) -> None:
        """Stop counting, keep the sums for the next start, let go of the store."""
        self.follower.close()
        self._snapshots.follow(self.tally, self.live, at_least=_SLICE)
        self._snapshots.close()
        self.store.close()

    # ------------------------------------------------------------------------------------------- inside

    def _encoded(self, setting: str, cell: str) -> dict[str, list[float]]:
        """The vector of a picture or sound by the fingerprint of each encoder that is served. Raises RefusedError where it is
        none."""
        readers = [live.predictor.packed.media.get(setting) for live in self.lives.values()]
        thing = MEDIA[setting].FILES.THING
        if not any(readers):
            raise RefusedError([Place(f"body.{setting}", f"the bundle reads no {thing}s")])
        found: dict[str, list[float]] = {}
        for reader in readers:
            if reader is None or reader.encoder.fingerprint in found:
                continue
            files = replace(reader.spec.files(getattr(self.config, f"{thing}s"), beneath=True), stores=())
            try:
                vector = MediaVectors(reader.encoder, files, keep=False).one(cell)
            except MediaError as error:
                raise RefusedError([Place(f"body.{setting}", f"the {thing} {error}")]) from None
            found[reader.encoder.fingerprint] = vector.tolist()
        return found

    def _changed(self, ad_id: str, ad: dict[str, Any] | None, number: int) -> tuple[dict[str, Live], dict[str, Change]]:
        """The bundles over the catalogue after a change, and all changes."""
        changes = {**self._changes, ad_id: self._changes.get(ad_id, UNCHANGED).then(ad, number)}
        return {arm: self._with(arm, live, ad_id, changes, self._world) for arm, live in self.lives.items()}, changes

    def _stored(self, ad_id: str) -> dict[str, Any]:
        """An ad as a change holds it."""
        return _in_micros(self.ad(ad_id).model_dump())

    def _tried(self, arm: str, live: Live, tried: dict[str, dict[str, Any]]) -> Live:
        """An arm's bundle over a catalogue that nobody else is served from."""
        changes = self._changes
        for ad_id, ad in tried.items():
            changes = {**changes, ad_id: changes.get(ad_id, UNCHANGED).then(ad, 0)}
            live = self._with(arm, live, ad_id, changes, self._world)
        return live

    def _with(self, arm: str, live: Live, ad_id: str, changes: dict[str, Change], world: World) -> Live:
        """A bundle after the change of one ad. It is made of that ad; only one with a new column makes all anew."""
        changed = live.with_change(ad_id, changes[ad_id], self.turns.stand_back)
        return changed or self._load(arm, self._bundles[arm], changes, world, live)

    def _load(
        self, arm: str, bundle: Path, changes: dict[str, Change] | None = None, world: World | None = None,
        before: Live | None = None,
    ) -> Live:  # fmt: skip
        """An arm's bundle over the changed catalogue; the loaded one of `before`, if given."""
        changes, world = self._changes if changes is None else changes, world or self._world
        known = self.lives[FIRST].ranker.campaigns if hasattr(self, "_served") and world is self._world else None
        return Live.load(
            self.config, bundle, world, changes, before=before, campaigns=known, onnx=arm == FIRST, pause=self.turns.stand_back
        )

    def _swap(self, lives: dict[str, Live], changes: dict[str, Change], tally: Tally | None = None) -> None:
        """Serve other bundles, or another catalogue."""
        tally = tally or self.tally
        tally.grow(lives[FIRST])
        self._changes, self._served = changes, (lives, tally)

    def _replayed(self, live: Live, world: World, *, from_snapshot: bool = False) -> Tally:
        """All events of the store: counted from the first, or from where the store's snapshot ends."""
        limited = any(policy.limits.user_lists is not None for policy in self.config.policies.values())
        definition = definition_of(world, live, counts_lists=limited)
        epoch = self.store.epoch()  # before the events: those that go away meanwhile are seen by it
        made = partial(Tally, live, counts_lists=limited, epoch=epoch, definition=definition)
        tally = made(NOTHING_KEPT)
        if not (from_snapshot and self._snapshots.restore(tally, live)):
            tally = made(self.store.kept())
        self._count(tally, live, _AT_ONCE)
        return tally

    def _recount(self) -> None:
        """Count all events anew, where some that were counted are no more; answers go on meanwhile."""
        with self._reloading:
            world = replace(self._world, asof=self._world.asof.anew())
            tally = self._replayed(self.live.joined_to(world.asof), world)
            with self._changing:
                self._world = world
                self._swap({arm: live.joined_to(world.asof) for arm, live in self.lives.items()}, self._changes, tally)

    def _count(self, tally: Tally, live: Live, limit: int) -> None:
        with ThreadPoolExecutor(1, "reader") as reader:  # the next slice is read while this one is counted
            piece = self.store.after(tally.last, limit)
            while piece.last > tally.last:
                following = reader.submit(self.store.after, piece.last, limit)
                tally.take(live, piece)
                piece = following.result()

    def _follow(self) -> int:
        """Take in what this server or others over the same store recorded: changed ads first, events of new ads need them."""
        for ad_id, (number, ad) in self.store.ads(self._polled).items():
            with self._changing:
                known = self._changes.get(ad_id, UNCHANGED)
                if number > known.number and (ad is None or usable(ad)):
                    self._swap(*self._changed(ad_id, ad, number))
                self._polled = number
        if self.store.epoch() != self.tally.epoch:
            self._recounting.start()
        while True:
            tally = self.tally
            epoch, piece = tally.epoch, self.store.after(tally.last, _SLICE)
            self.turns.stand_back()
            with self._changing:
                if tally is not self.tally or epoch != tally.epoch:  # replaced, or somebody was forgotten meanwhile
                    continue
                if piece.last > tally.last:
                    tally.take(self.live, piece)
                    continue
                self._snapshots.follow(tally, self.live)
                return tally.last


def _in_micros(ad: dict[str, Any]) -> dict[str, Any]:
    return ad | {name: micros(ad[name]) for name in ("starts_at", "ends_at")}


def _bundle_of(config: ServeConfig, arm: str) -> Path:
    return config.bundle if arm == FIRST or config.challenger is None else config.challenger.bundle
