"""What was known at moments inside a log: its events are taken in again, in order of time, up to each moment that is asked for.

Questions that go forward in time cost one pass over the log in all; one that goes back starts anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.asof.events import TIME, EventRows, Log, is_counted, join_events, no_weights, read_events
from adrec.asof.keys import KeyColumns
from adrec.asof.state import State
from adrec.data.disk.engine import columns_of, name, open_memory_engine, parquet, stream
from adrec.specs import HistorySpec

Ints = NDArray[np.int64]
Arrays = dict[str, NDArray[np.generic]]
_BATCH_ROWS = 65_536
_MEMORY_GB = 0.3
"""For the sort, which stands beside a loaded model and spills what is more."""


class SortedEvents:
    """A stream of events in order of time, taken up to a moment."""

    def __init__(self, batches: Iterator[pa.RecordBatch], keys: KeyColumns) -> None:
        self._batches, self._keys = batches, keys
        self._held: EventRows | None = None

    def until(self, moment: int) -> Iterator[EventRows]:
        """The next events at or before `moment`, in pieces."""
        while True:
            if self._held is None or not len(self._held.time):
                batch = next(self._batches, None)
                if batch is None:
                    return
                self._held = read_events(batch, self._keys)
            end = int(np.searchsorted(self._held.time, moment, side="right"))
            piece, self._held = self._held.take(slice(0, end)), self._held.take(slice(end, None))
            if end:
                yield piece
            if len(self._held.time):
                return


class Replay:
    """Sums at any moments: a state that takes in events as far as each question goes."""

    def __init__(
        self,
        begin: Callable[[], State],
        events: Callable[[], Iterator[pa.RecordBatch]],
        keys: KeyColumns,
        users: Ints | None = None,
    ) -> None:
        """`begin` makes the state before the first event, `events` gives them in order of time, over the tables behind `keys`.

        users: codes of the only users that will be asked about; what others keep under keys of their own is left out.
        """
        self._new_state, self._new_events, self._keys = begin, events, keys
        self._users = None if users is None else np.unique(users)
        self._state, self._moment, self._events = self._anew()

    def sums(self, codes: Mapping[str, Ints], times: Ints) -> Arrays:
        """Sums before `times` (N,), in any order, by their names."""
        order = np.argsort(times, kind="stable")
        sorted_times = times[order]
        if len(order) and sorted_times[0] < self._moment:
            self._state, self._moment, self._events = self._anew()
        asked = EventRows(sorted_times, {key: values[order] for key, values in codes.items()}, no_weights(len(order)))
        results: list[Arrays] = []
        done = 0
        for events in self._events.until(int(sorted_times[-1]) - 1 if len(order) else self._moment):
            self._moment = int(events.time[-1])
            end = int(np.searchsorted(sorted_times, self._moment, side="right"))
            results.append(self._step(events, asked.take(slice(done, end))))
            done = end
        rest = asked.take(slice(done, None))
        results.append(self._state.peek(rest.codes, rest.time))
        back = np.argsort(order, kind="stable")
        return {key: np.concatenate([part[key] for part in results])[back] for key in results[0]}

    def _step(self, events: EventRows, asked: EventRows) -> Arrays:
        """Take in events; the sums before the rows asked about."""
        sums: Arrays = {}
        for of_user in (False, True):
            plans = [plan for plan in self._state.plans if plan.of_user == of_user]
            if not plans:
                continue
            known = events
            if of_user and self._users is not None:
                known = events.take(np.isin(events.codes["user"], self._users))
            rows = join_events([known, asked])
            found = self._state.step(rows, is_counted(rows.weights), plans)
            sums |= {key: values[len(known.time) :].copy() for key, values in found.items()}  # a view would keep all of them
        return sums

    def _anew(self) -> tuple[State, int, SortedEvents]:
        """Before anything has happened."""
        return self._new_state(), int(np.iinfo(np.int64).min), SortedEvents(self._new_events(), self._keys)


def logged_events(files: Sequence[Path], keys: KeyColumns, history: HistorySpec) -> Iterator[pa.RecordBatch]:
    """All events of prepared impressions, in order of time."""
    if not files:
        return
    with open_memory_engine(_MEMORY_GB) as connection:
        connection.execute("SET threads = 1")  # each holds row groups of every column
        relation = parquet(*files, options="union_by_name = true")
        log = Log(relation, columns_of(connection, f"SELECT * FROM {relation}"), history, keys.row_columns)
        yield from stream(connection, f"SELECT * FROM ({log.events()}) ORDER BY {name(TIME)}", batch_rows=_BATCH_ROWS)
