"""`adrec events`: what the server recorded, as a SCORED table that `adrec evaluate` reads; retention, erasure and backups."""

import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import RenderableType
from rich.table import Table

from adrec.config.data.preprocess import PrivacySettings
from adrec.config.inference.serve import EventsConfig, StoreConfig
from adrec.data.disk.checks import check_rows
from adrec.data.disk.outputs import SCORES, marked
from adrec.data.disk.tables import write_table
from adrec.data.disk.writing import write_aside
from adrec.errors import DataError
from adrec.prepare.staging.privacy import KEY_VARIABLE, load_key, pseudonym
from adrec.schema import CONVERSION_SCORE, LABEL_OF_SCORE, NOBODY, PROPENSITY_GIVEN_ABOVE, SCORED, TIMESTAMP
from adrec.serve.store import Store, events_table, open_store
from adrec.serve.store.upkeep import copied
from adrec.terminal import Terminal

_CHUNK = 50_000
_ORDER = ("request_id", "position", "ad_id")
_KEYS = ["request_id", "user_id", "ad_id"]


@dataclass(frozen=True)
class EventsResult:
    """What was written."""

    output: str | None
    impressions: int
    clicks: int
    left_out: int
    """impressions without the request id and score of their list"""
    lone_clicks: int
    """clicks whose impression was not recorded"""
    arms: dict[str, tuple[int, int]]
    """arm → impressions, clicks"""
    upkeep: dict[str, int]
    """restored, erased, dropped and backed up events, where they were asked for"""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return vars(self)

    def render(self) -> Iterable[RenderableType]:
        """One line for each thing done, and one an arm."""
        for what, count in self.upkeep.items():
            yield f"{what}: {count:,} events"
        if self.output is None:
            return
        table = Table(title=f"{self.impressions:,} impressions, {self.clicks:,} clicks", title_justify="left")
        for name in ("arm", "impressions", "clicks", "click rate"):
            table.add_column(name, justify="left" if name == "arm" else "right")
        for arm, (shown, clicked) in self.arms.items():
            table.add_row(arm, f"{shown:,}", f"{clicked:,}", f"{clicked / shown:.4f}")
        yield table
        if self.left_out or self.lone_clicks:
            yield (
                f"left out: {self.left_out:,} impressions without the request_id and score of their list,"
                f" {self.lone_clicks:,} clicks without an impression"
            )
        yield f"output: {self.output}"


def run(config: EventsConfig, terminal: Terminal) -> EventsResult:
    """Look after the store as asked, then join clicks to impressions and write. Raises DataError where none can be used, and
    where there is no store: only a server makes one, and a backup that is restored.
    """
    if config.redis is None and config.restore is None and not config.store.exists():
        raise DataError(f"{config.store}: no such store. Name the one that the server writes to: --store FILE, or --redis URL.")
    store = open_store(config)
    try:
        upkeep = _kept_up(config, store)
        if config.output is None:
            return EventsResult(None, 0, 0, 0, 0, {}, upkeep)
        with terminal.progress("Reading events", unit="events") as advance:
            events = _read(store, advance)
    finally:
        store.close()
    is_click = pc.equal(events["kind"], "click")
    # The lists of a bundle that learns conversions alone promise nothing else.
    score = "score" if pc.any(pc.is_valid(events["score"])).as_py() else CONVERSION_SCORE
    told = pc.and_(pc.is_valid(events["request_id"]), pc.is_valid(events[score]))
    is_shown = pc.equal(events["kind"], "impression")
    shown, clicked = _first(events.filter(pc.and_(is_shown, told))), _first(events.filter(is_click)).select(_KEYS)
    if len(shown) == 0:
        raise DataError(
            "events: no impression carries the request_id and score of its list. Send them with the events, as /v1/rank told."
        )
    converted = _first(events.filter(pc.equal(events["kind"], "conversion"))).select(_KEYS)
    table = _scored(shown, clicked, converted, score)
    check_rows(table, SCORED, where=str(config.output), cure="The server recorded that: send scores as /v1/rank tells them.")
    metadata = {**(marked(table.schema, "scored").metadata or {})}
    if score == CONVERSION_SCORE:
        metadata[LABEL_OF_SCORE] = b"conversion"
    with write_aside(config.output, SCORES) as aside:
        write_table(table.replace_schema_metadata(metadata), aside)
    by_arm = table.group_by("arm").aggregate([("click", "count"), ("click", "sum")]).sort_by("arm")
    arms = zip(*(by_arm[name].to_numpy().tolist() for name in ("arm", "click_count", "click_sum")), strict=True)
    clicks = int(pc.sum(table["click"]).as_py())
    return EventsResult(
        output=str(config.output),
        impressions=len(table),
        clicks=clicks,
        left_out=int(pc.sum(pc.and_(is_shown, pc.invert(told))).as_py()),
        lone_clicks=len(clicked) - clicks,
        arms={arm: (count, total) for arm, count, total in arms},
        upkeep=upkeep,
    )


def _scored(shown: pa.Table, clicked: pa.Table, converted: pa.Table, score: str) -> pa.Table:
    """One row for each of N impressions in the order of their lists, with what followed. `score`: the promise to judge by."""
    rows = shown
    for label, done in (("click", clicked), ("conversion", converted)):
        done = done.append_column(label, pa.array(np.ones(len(done)), pa.int8()))
        rows = rows.join(done, keys=_KEYS, join_type="left outer")
    first = rows.group_by("request_id").aggregate([("at", "min")])
    rows = rows.join(first, keys="request_id").sort_by([("at_min", "ascending"), *((name, "ascending") for name in _ORDER)])
    chance = np.clip(rows[score].to_numpy(), 1e-7, 1 - 1e-7)
    table = pa.table(
        {
            "user_id": rows["user_id"],
            "ad_id": rows["ad_id"],
            "request_id": rows["request_id"],
            "shown_at": rows["at_min"].cast(TIMESTAMP),
            "click": pc.fill_null(rows["click"], 0),
            "position": rows["position"],
            PROPENSITY_GIVEN_ABOVE: rows["propensity"],
            # of the calibrated score: the list gives no other
            "logit": pa.array(np.log(chance / (1 - chance)), pa.float32()),
            "score": rows[score].cast(pa.float32()),
            "arm": pc.fill_null(rows["arm"], "a"),
            "scenario": rows["scenario"],
        }
    )
    promised = pc.is_valid(rows[CONVERSION_SCORE])
    if pc.any(promised).as_py():
        table = table.append_column(CONVERSION_SCORE, rows[CONVERSION_SCORE].cast(pa.float32()))
    else:
        promised = pc.is_valid(rows["ad_id"])
    # A label is judged by its promise: of impressions without one it is not known. One that never came cannot be judged.
    conversion = pc.if_else(promised, pc.fill_null(rows["conversion"], 0), pa.scalar(None, pa.int8()))
    return table.append_column("conversion", conversion) if pc.sum(conversion).as_py() else table


def _kept_up(config: EventsConfig, store: Store) -> dict[str, int]:
    """What was asked for beside the table, in the order in which it makes sense: how many events each was about."""
    done: dict[str, int] = {}
    if config.restore is not None:
        if not config.restore.is_file():
            raise DataError(f"restore: {config.restore} is not there. Name a file that 'adrec events --backup' wrote.")
        with closing(open_store(StoreConfig(store=config.restore))) as source:
            done["restored"] = copied(source, store)
    if config.erase_user is not None:
        names = [config.erase_user]
        if os.environ.get(KEY_VARIABLE):  # a server of a pseudonymised log keeps events under it
            names.append(pseudonym(config.erase_user, load_key(PrivacySettings())))
        done["erased"] = sum(len(store.erase(name).events) for name in dict.fromkeys(names))
    if config.pseudonymise:
        key = load_key(PrivacySettings())
        done["under pseudonyms now"] = store.rename(lambda name: name if name == NOBODY else pseudonym(name, key))
    if config.keep_days is not None:
        moment = datetime.now(UTC) - timedelta(days=config.keep_days)
        done["taken away, their sums kept"] = store.drop_before(int(moment.timestamp() * 1e6))
    if config.erase_user is not None or config.keep_days is not None or config.pseudonymise:
        store.compact()
    if config.backup is not None:
        if config.backup.exists():
            raise DataError(f"backup: {config.backup} is there already. Name a file that is not there yet.")
        with write_aside(config.backup) as aside, closing(open_store(StoreConfig(store=aside))) as target:
            done["backed up"] = copied(store, target)
            target.compact()
    return done


def _read(store: Store, advance: Any) -> pa.Table:
    """All events, in the order of recording."""
    parts, last = [events_table([])], 0
    while (piece := store.after(last, _CHUNK)).last > last:
        last = piece.last
        parts.append(piece.events.select(parts[0].column_names))
        advance(len(piece.events))
    return pa.concat_tables(parts).combine_chunks()


def _first(events: pa.Table) -> pa.Table:
    """The first event of each ad in each request: what comes again is the same impression or click."""
    numbered = events.append_column("row", pa.array(np.arange(len(events))))
    rows = numbered.group_by(_KEYS).aggregate([("row", "min")])["row_min"]
    return events.take(rows.take(pc.sort_indices(rows)))
