"""Questions to a prepared folder: histories and counters of any rows at any moment, as preprocess would attach them.

Moments behind the log are answered by its state, earlier ones by a replay. The rows point into tables of their own, which
may hold other ads and users than the log, in another order: what they share with it is known by identifier.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.asof.event_layers import LayeredLog
from adrec.asof.events import TIME, EventRows
from adrec.asof.history import EventLog, Histories, joined
from adrec.asof.keys import KeyColumns, codes_of, make_key
from adrec.asof.measure import counter_columns
from adrec.asof.recent import RecentLog
from adrec.asof.replay import Replay, logged_events
from adrec.asof.spec import counter_names, plan_keys
from adrec.asof.state import State, add_sums, new_state, settings_of, sums_name
from adrec.data.arrays import places, with_row
from adrec.schema import as_of_column
from adrec.specs import CounterSpec, HistorySpec

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LogFiles:
    """Where a log and its state lie, and what they were made with."""

    state: Path | None
    """None: nothing has happened yet"""
    impressions: Sequence[Path]
    ads: pa.Table
    """rows by the log's ad_index"""
    users: pa.Table
    """rows by the log's user_index"""
    counters: Sequence[CounterSpec]
    history: HistorySpec
    as_of: Sequence[str] = ()
    """columns of the impressions that hold a column of the ads or users as of the row"""

    @classmethod
    def empty(cls) -> "LogFiles":
        """A log that is still to come: whoever serves without one learns from events alone."""
        ads, users = (pa.table({key: pa.array([], pa.string())}) for key in ("ad_id", "user_id"))
        return cls(None, [], ads, users, [], HistorySpec(max_clicks=10_000))


@dataclass
class _Shared:
    """What all views of a log have in common."""

    state: State
    behind: Replay
    """answers for moments behind the log"""
    live: State
    """sums of what happened since"""
    clicks: RecentLog
    """since the log ended, as rows of the catalogue"""
    skips: RecentLog
    lock: threading.Lock
    inside: Replay | None = None
    """answers for moments of the log, made when one is asked for"""


class AsOf:
    """What the log knew at a moment, for rows over a catalogue of ads. Usable from several threads."""

    def __init__(self, log: LogFiles, ads: pa.Table, *, asked_users: pa.Array | None = None) -> None:
        """ads: A rows that questions point into. asked_users: identifiers of the only users there will be questions about,
        which keeps a replay small. Raises DataError where the state is broken or was made with other settings.
        """
        self._log, self._specs, self._asked_users = log, list(log.counters), asked_users
        self._plans = plan_keys(self._specs)
        self._log_keys = KeyColumns({key for spec in self._specs for key in spec.by}, log.ads, log.users, log.as_of)
        state = self._end_of_log()
        behind = Replay(self._end_of_log, lambda: _to_come(state), self._log_keys)
        self._shared = _Shared(state, behind, new_state(self._plans), RecentLog(), RecentLog(), threading.Lock())
        self.names = counter_names(self._specs)
        self.max_clicks, self.max_skipped = log.history.max_clicks, log.history.max_skipped
        self._look_at(ads)

    def over(self, ads: pa.Table) -> "AsOf":
        """The same knowledge, which goes on being shared, for a catalogue whose first rows are those of this one."""
        other = copy(self)
        other._look_at(ads)
        return other

    def with_ad(self, row: int, ad: pa.Table) -> "AsOf":
        """The same knowledge for a catalogue with an ad (a table of one row) at `row`, or behind the last."""
        other = copy(self)
        other._keys = self._keys.with_ad(row, ad)
        in_log = places(ad["ad_id"], self._log.ads["ad_id"])[0]
        if in_log >= 0:
            other._row_of_ad = with_row(self._row_of_ad, int(in_log), np.array([row]))
        return other

    def anew(self) -> "AsOf":
        """The same log, of which nothing was recorded yet; what is recorded here reaches this one alone."""
        other = copy(self)
        other._shared = replace(self._shared, live=new_state(self._plans), clicks=RecentLog(), skips=RecentLog())
        return other

    def joined_to(self, other: "AsOf") -> "AsOf":
        """This catalogue with what was recorded in another view of the same log."""
        joined = copy(self)
        joined._shared = other._shared
        return joined

    @property
    def last_moment(self) -> int | None:
        """Of the log's rows, microseconds."""
        return self._shared.state.last_moment

    @property
    def settings(self) -> dict[str, Any]:
        """What decides what is summed, JSON-safe."""
        return settings_of(self._plans, self._log.history)

    @property
    def last_click(self) -> int | None:
        """Moment of the log's last click, microseconds."""
        return self._shared.state.clicks.last_moment

    @property
    def row_columns(self) -> list[str]:
        """Columns of the rows that counters may be kept by: all that the catalogue lacks."""
        return self._keys.row_columns

    @property
    def user_columns(self) -> set[str]:
        """Columns of a users table that counters may be kept by, now or as of a moment."""
        of_row = (as_of_column(name) for name in self._keys.row_columns)
        return {*self._keys.sources, *(source[1] for source in of_row if source is not None)} - {"user_id"}

    def keys(self, users: pa.Table) -> KeyColumns:
        """Codes of rows over the catalogue and `users`."""
        return self._keys.over(users)

    def _look_at(self, ads: pa.Table) -> None:
        self._row_of_ad = places(self._log.ads["ad_id"], ads["ad_id"])
        by = {key for spec in self._specs for key in spec.by}
        self._keys = KeyColumns(by, ads, pa.table({"user_id": pa.array([], pa.string())}), self._log.as_of)

    def clicks(self, users: Ints, times: Ints, limit: int) -> Histories:
        """The newest `limit` clicks of R users (codes) strictly before their moments (R,), as rows of the catalogue."""
        return self._histories(self._shared.state.clicks, self._shared.clicks, users, times, limit)

    def skips(self, users: Ints, times: Ints) -> Histories:
        """What they were shown and did not click, likewise, as many as the log's settings say."""
        return self._histories(self._shared.state.skips, self._shared.skips, users, times, self.max_skipped)

    def counters(
        self,
        keys: KeyColumns,
        codes: Mapping[str, Ints],
        *,
        times: Ints,
        ad: Ints,
        offsets: Ints,
        clicked: NDArray[np.integer],
        history_of_row: Ints,
    ) -> dict[str, NDArray[np.float32]]:
        """Every counter of N rows, float32 (N,). times (N,): the first moments of their requests; for the others see
        `counter_columns`. A key that nobody has seen has sums of 0.
        """
        return counter_columns(
            self._specs, self._sums(codes, times), keys,
            times=times, ad=ad, offsets=offsets, clicked=clicked, history_of_row=history_of_row,
        )  # fmt: skip

    def record(self, rows: EventRows, clicks: EventLog, skips: EventLog) -> None:
        """Take in what happened since: events for the counters, clicks and skips for the histories (rows of the catalogue).

        One thread at a time. Questions wait for the sums of these events alone to be joined to those before.
        """
        shared = self._shared
        fresh = shared.live.gathered(rows)
        with shared.lock:
            shared.live.merge(fresh)
        shared.skips.add(skips)
        if len(shared.skips) and len(clicks.ads):
            codes = np.repeat(clicks.users, np.diff(clicks.offsets))
            shared.skips.take_back(codes, clicks.ads.astype(np.int64), clicks.times)
        shared.clicks.add(clicks)

    def since(self) -> dict[str, NDArray[Any]]:
        """What was recorded, as arrays by name, for `go_on`. Called by the thread that records."""
        shared, arrays = self._shared, dict[str, NDArray[Any]]()
        for plan in self._plans:
            sums = shared.live.sums[plan.by].flat()
            arrays |= {f"{sums_name(plan)}/{name}": values for name, values in {"keys": sums.keys, **sums.columns}.items()}
        for kind, log in (("clicks", shared.clicks), ("skips", shared.skips)):
            arrays |= {f"{kind}/{name}": values for name, values in vars(log.whole()).items()}
        return arrays

    def go_on(self, arrays: Mapping[str, NDArray[Any]], row_of_ad: Ints) -> None:
        """Take in what `since` gave, whose ad i is row `row_of_ad[i]` of this catalogue, -1 where it lacks the ad.

        Nothing may have been recorded. Raises KeyError, ValueError or IndexError for arrays that are not of these settings.
        """
        bases, logs = {}, []
        for plan in self._plans:
            bases[plan.by] = base = plan.new_sums()
            for name, like in {"keys": base.keys, **base.columns}.items():
                values = arrays[f"{sums_name(plan)}/{name}"]
                if values.dtype != like.dtype or values.shape != (len(arrays[f"{sums_name(plan)}/keys"]), *like.shape[1:]):
                    raise ValueError(f"{sums_name(plan)}/{name} is of another kind")
                if name == "keys":
                    base.keys = values
                else:
                    base.columns[name] = values
        for kind in ("clicks", "skips"):
            acts = EventLog(**{field.name: arrays[f"{kind}/{field.name}"] for field in fields(EventLog)})
            row, codes = row_of_ad[acts.ads], np.repeat(acts.users, np.diff(acts.offsets))
            logs.append(EventLog.of(codes[row >= 0], row[row >= 0], acts.times[row >= 0]))
        shared = self._shared
        for by, base in bases.items():
            shared.live.sums[by].base = base
        shared.clicks.add(logs[0])
        shared.skips.add(logs[1])

    def forget(self, user: int, codes: Mapping[str, Ints]) -> None:
        """Drop what was recorded of a user (a code). codes: of all that was, by which the keys of the sums are known."""
        shared = self._shared
        with shared.lock:
            for plan in self._plans:
                if plan.of_user:
                    shared.live.sums[plan.by].forget(make_key(plan.by, codes, len(codes["user"])))
        for log in (shared.clicks, shared.skips):
            log.keep(lambda acts: acts.without(np.array([user])))

    def _sums(self, codes: Mapping[str, Ints], times: Ints) -> dict[str, NDArray[np.generic]]:
        last, shared = self.last_moment, self._shared
        is_inside = times <= (last if last is not None else np.iinfo(np.int64).min)
        parts, rows = [], []
        with shared.lock:
            if is_inside.any() and shared.inside is None:
                asked = codes_of(self._asked_users, "user_id") if self._asked_users is not None else None
                files, keys, history = self._log.impressions, self._log_keys, self._log.history
                events = partial(logged_events, files, keys, history)
                shared.inside = Replay(lambda: State(self._plans), events, keys, asked)
            for replay, mask in ((shared.inside, is_inside), (shared.behind, ~is_inside)):
                if replay is not None and (mask.any() or not len(times)):
                    rows.append(np.flatnonzero(mask))
                    parts.append(replay.sums({key: values[mask] for key, values in codes.items()}, times[mask]))
            since = shared.live.peek({key: values[~is_inside] for key, values in codes.items()}, times[~is_inside])
        back = np.argsort(np.concatenate(rows), kind="stable")
        sums = {key: np.concatenate([part[key] for part in parts])[back] for key in parts[0]} if parts[0] else {}
        add_sums(sums, since, np.flatnonzero(~is_inside))
        return sums

    def _end_of_log(self) -> State:
        log = self._log
        return State.load(log.state, self._plans, log.history) if log.state is not None else State(self._plans)

    def _histories(self, log: LayeredLog, live: RecentLog, users: Ints, times: Ints, limit: int) -> Histories:
        histories = log.histories(users, times, limit)
        row = (self._row_of_ad[histories.ads] if len(self._row_of_ad) else histories.ads).astype(np.int32)
        known = row >= 0
        if not known.all():  # ads that the catalogue lacks
            owner = np.repeat(np.arange(len(users)), np.diff(histories.offsets))[known]
            offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(users)))])
            histories = Histories(offsets, row[known], histories.times[known], histories.lengths)
        else:
            histories = histories._replace(ads=row)
        if len(live):
            histories = joined(histories, live.histories(users, times, limit), limit)
        return histories


def _to_come(state: State) -> Iterator[pa.RecordBatch]:
    """Clicks and conversions that happened after the last impression, in order of time."""
    if state.pending is not None:
        yield from state.pending.sort_by(TIME).to_batches()
