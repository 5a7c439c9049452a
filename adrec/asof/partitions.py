"""The second pass: one part of the users at a time, counters whose key holds a user, and history windows."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.asof.events import (
    EventRows,
    advance,
    events_from_arrays,
    events_to_arrays,
    impressions,
    join,
    move_late,
    own_sums,
    take,
)  # fmt: skip
from adrec.asof.history import Events, HistoryLog
from adrec.asof.keys import KeyColumns
from adrec.asof.spec import CLICKED, CONVERTED, KeyCounters, KeyPlan
from adrec.asof.spool import Columns, GrowingFile, PartCursor, PartWriter, write_results
from adrec.asof.state import Carried, counters_to_arrays, part_name, restore_counters, save_arrays, within
from adrec.config.features import HistoryConfig

Ints = NDArray[np.int64]
_CURSOR_ROWS = 131_072
"""Result rows in memory, over all parts."""


class LogFile:
    """History logs of all parts one behind the other, on disk."""

    def __init__(self, work: Path, name: str) -> None:
        self._ads = GrowingFile(work / f"{name}-ads.bin", np.int32)
        self._times = GrowingFile(work / f"{name}-times.bin", np.int64)
        self.ads: NDArray[np.generic] = np.zeros(0, dtype=np.int32)
        self.times: NDArray[np.generic] = np.zeros(0, dtype=np.int64)

    def append(self, log: HistoryLog) -> int:
        """Add one part's log; returns where it begins."""
        begin = self._ads.length
        self._ads.append(log.ad)
        self._times.append(log.time)
        return begin

    def finish(self) -> None:
        """Open for reading."""
        self.ads, self.times = self._ads.read(), self._times.read()


class UserParts:
    """Works through the parts and hands out their results in the order of the rows."""

    def __init__(
        self,
        work: Path,
        spool: PartWriter,
        plans: Sequence[KeyPlan],
        history: HistoryConfig,
        keys: KeyColumns,
        carried: Carried,
        last_moment: int | None,
    ) -> None:
        self.work, self.spool, self.plans, self.history, self.keys = work, spool, plans, history, keys
        self.carried, self.last_moment = carried, last_moment if last_moment is not None else 0
        self.clicks, self.skipped = LogFile(work, "clicks"), LogFile(work, "skipped")
        self._cursors: list[PartCursor] = []
        (work / "state").mkdir(parents=True, exist_ok=True)

    def run(self, *, with_clicks: bool, part_done: Callable[[], None]) -> None:
        """Work through every part: results and states go to disk."""
        for number in range(self.carried.parts):
            part_done()
            columns = self.spool.read(number)
            if columns is None:
                if self.carried.folder is not None and (self.carried.folder / part_name(number)).exists():
                    shutil.copyfile(self.carried.folder / part_name(number), self.work / "state" / part_name(number))
                continue
            path = self.work / "parts" / f"results-{number:03d}.arrow"
            found = self._part(number, columns, with_clicks=with_clicks)
            write_results(path, found, batch_rows=max(_CURSOR_ROWS // self.carried.parts, 64))
            self._cursors.append(PartCursor(path))
        self.clicks.finish()
        self.skipped.finish()

    def results(self, start: int, rows: int) -> Columns:
        """Results of rows `start` to `start + rows`, by name; what a part does not have is 0."""
        found: Columns = {}
        for cursor in self._cursors:
            for piece in cursor.until(start + rows):
                for name, values in piece.items():
                    if name not in found:
                        found[name] = np.zeros(rows, dtype=values.dtype)
                    found[name][piece["#at"] - start] = values
        return found

    def _part(self, number: int, columns: Columns, *, with_clicks: bool) -> Columns:
        state = self.carried.part(number)
        user, ad, time, request, click = (
            np.asarray(columns[name], dtype=np.int64) for name in ("user", "ad", "time", "request", "click")
        )
        of_row = {name: values.astype(np.int64) for name, values in within(columns, "code/").items()}
        rows = impressions(time, request, self.keys.codes(user, ad, of_row), click, columns["conversion"].astype(np.int64))
        late_moments = {
            kind: columns[f"late/{kind}"].astype(np.int64) for kind in (CLICKED, CONVERTED) if f"late/{kind}" in columns
        }
        rows, late = move_late(rows, late_moments)
        spread = _spread(request, time)
        results: Columns = {"#at": columns["#at"]}

        counters = [KeyCounters(plan) for plan in self.plans if plan.of_user]
        restore_counters(counters, state)
        waiting = within(state, "late/")
        pending = join([events_from_arrays(waiting), late]) if waiting else late
        sums, pending = advance(counters, rows, pending, self.last_moment)
        results.update(sums)
        if spread.any():
            self._take_off_own(results, rows, late, spread)

        kept = counters_to_arrays(counters)
        kept.update({f"late/{name}": values for name, values in events_to_arrays(pending).items()})
        clicked_at = np.maximum(late_moments.get(CLICKED, time), time)
        logs = [("skipped", self.skipped, click == 0, time, self.history.max_skipped)]
        if with_clicks:
            logs.append(("clicks", self.clicks, click == 1, clicked_at, self.history.max_clicks))
        for name, file, chosen, moment, limit in logs:
            if not limit:
                continue
            events = Events(user[chosen], ad[chosen], moment[chosen], request[chosen])
            log = HistoryLog(within(state, f"{name}/"), events)
            kept.update({f"{name}/{key}": values for key, values in log.carry(self.last_moment, limit).items()})
            start, end = log.windows(user, time, request, limit, spread=spread)
            begin = file.append(log)
            results[f"{name}/start"], results[f"{name}/end"] = begin + start, begin + end
        save_arrays(self.work / "state" / part_name(number), kept)
        return results

    def _take_off_own(self, results: Columns, rows: EventRows, late: EventRows, spread: NDArray[np.bool_]) -> None:
        """Requests with rows at several moments do not count themselves."""
        chosen = np.flatnonzero(spread)
        some = take(rows, chosen)
        late_of_them = take(late, np.isin(late.request, np.unique(some.request)))
        for name, own in own_sums([KeyCounters(plan) for plan in self.plans], some, late_of_them).items():
            if name in results:
                results[name] = results[name].copy()
                results[name][chosen] = less_own(results[name][chosen], own)
            else:
                results[f"own/{name}"] = np.zeros(len(spread), dtype=own.dtype)
                results[f"own/{name}"][chosen] = own


def less_own(total: NDArray[np.generic], own: NDArray[np.generic]) -> NDArray[np.generic]:
    """Sums without what the row's own request gave; fading sums may miss 0 by rounding, never below."""
    difference: NDArray[np.generic] = np.maximum(np.subtract(total, own), 0)
    return difference


def _spread(request: Ints, time: Ints) -> NDArray[np.bool_]:
    """Rows whose request has rows at more than one moment."""
    _, of_row = np.unique(request, return_inverse=True)
    first = np.full(int(of_row.max()) + 1, np.iinfo(np.int64).max)
    last = np.full(len(first), np.iinfo(np.int64).min)
    np.minimum.at(first, of_row, time)
    np.maximum.at(last, of_row, time)
    return np.asarray((last > first)[of_row])


def integers(batch: pa.RecordBatch, name: str, missing: int | None = None) -> Ints:
    """A column as int64 (N,); nulls, and a column that is absent, become `missing`."""
    if name not in batch.schema.names and missing is not None:
        return np.full(batch.num_rows, missing, dtype=np.int64)
    values = batch.column(name).cast(pa.int64())
    if missing is not None:
        values = pc.fill_null(values, missing)
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.int64)
