"""Everything known before each impression, out of core: history and counters attached to a stream of impressions.

Three passes. Forward in time: counters whose key holds many users (ad, category, position, ...), while the rows are spread
over parts by user. Part by part: counters whose key holds a user, and history. Forward again: results join the rows.
Memory is one part and the states of the first kind, disk about the rows twice, whatever the number of rows. What later rows
need is saved with `save`; a new Past that takes it up gives later rows exactly what one pass over everything gives.
"""

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.asof.events import EventRows, advance, impressions, join, move_late
from adrec.asof.history import HistoryReport, read_given, spans
from adrec.asof.keys import KeyColumns
from adrec.asof.partitions import UserParts, integers, less_own
from adrec.asof.spec import CLICKED, CONVERTED, KeyCounters, history_matches, measure_counters, plan_keys, sum_name
from adrec.asof.spool import REQUEST, ROW, PartWriter, give_back_memory, moments, to_row_order, to_time_order
from adrec.asof.state import Carried, check_later, load_state, save_overall
from adrec.asof.sums import MICROSECONDS_AN_HOUR
from adrec.config.features import CounterSpec, HistoryConfig
from adrec.errors import DataError

Ints = NDArray[np.int64]
Arrays = dict[str, NDArray[np.generic]]
STEP_ROWS = 131_072
PARTS = 64
_ASSEMBLED_ITEMS = 2_000_000


class Past:
    """Attaches `history_index`, `history_hours`, `history_length`, `skipped_index` and `counter_*` to impressions."""

    def __init__(
        self,
        *,
        ads: pa.Table,
        users: pa.Table | None = None,
        history: HistoryConfig,
        counters: Sequence[CounterSpec],
        work: Path,
        carried: Path | None = None,
        step_rows: int = STEP_ROWS,
        parts: int = PARTS,
    ) -> None:
        """`ads` and `users` in the order of their index; `work` an empty scratch folder; `carried` an earlier `save`.

        Raises DataError when `carried` was made with other counters or history settings.
        """
        self.ads, self.history, self.specs, self.work, self.step_rows = ads, history, list(counters), work, step_rows
        self.plans = plan_keys(self.specs, user_clicks=True)
        self.overall = [KeyCounters(plan) for plan in self.plans if not plan.of_user]
        self.carried: Carried = load_state(carried, self.overall, history, self.plans, parts)
        names = itertools.chain.from_iterable([plan.by for plan in self.plans] + [spec.by for spec in self.specs])
        self.keys = KeyColumns({"user", "ad", *names}, ads, users, self.carried.books)
        self.report = HistoryReport()
        self.last_moment = self.carried.last_moment
        self.parts = self.carried.parts
        work.mkdir(parents=True, exist_ok=True)

    def attach(
        self, batches: Iterable[pa.RecordBatch], part_done: Callable[[], None] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The same rows in the same order with the columns added; reads all of `batches` before the first comes out.

        Rows come request by request in order of the request's first moment, inside a request by shown_at, with
        `user_index`, `ad_index`, `shown_at`, optional `request_id`, `click`, `conversion`, `history` (lists of ad ids)
        and the columns that counters and history settings name. Other columns pass through; `history` does not.
        `part_done` is called after each of `parts` parts of the users, between the reading and the first batch.
        Raises DataError on another order, on rows earlier than a carried state, and on a missing column.
        """
        spool = PartWriter(self.work / "parts", self.carried.parts)
        rows_file = self.work / "rows.arrow"
        schema = self._forward(batches, spool, rows_file)
        spool.close()
        parts = UserParts(self.work, spool, self.plans, self.history, self.keys, self.carried, self.last_moment)
        parts.run(with_clicks=not self._given(schema) if schema else True, part_done=part_done or (lambda: None))
        save_overall(self.work / "state", self.overall, self.history, self.plans, self.carried, self.last_moment, self.keys)
        if schema is not None:
            assembled = to_row_order(self._assembled(rows_file, parts))
            for table in assembled:
                yield from table.to_batches()

    def save(self, folder: Path) -> None:
        """Put what later rows need into `folder` (replaced), once `attach` has begun to give rows."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.work / "state", folder)

    def _forward(self, batches: Iterable[pa.RecordBatch], spool: PartWriter, rows_file: Path) -> pa.Schema | None:
        """First pass: sums of keys that hold many users go beside the rows, the rows' keys to their user's part."""
        late = self.carried.late
        writer: pa.ipc.RecordBatchStreamWriter | None = None
        schema: pa.Schema | None = None
        at = 0
        for table in to_time_order(batches, self.step_rows):
            if not table.num_rows:
                continue
            batch = table.to_batches()[0]
            time = moments(table)
            check_later(int(time[0]), self.last_moment)
            self.last_moment = int(time[-1])
            rows, part_columns = self._events(batch, time)
            moved, moved_late = move_late(rows, self._late_moments(part_columns))
            sums, still_late = advance(self.overall, moved, _join(late, moved_late), self.last_moment)
            late = still_late
            part_columns["#at"] = at + np.arange(len(time))
            spool.write(part_columns["user"].astype(np.int64) % self.carried.parts, part_columns)
            table = table.append_column("#time", pa.array(time))
            for name, values in sums.items():
                table = table.append_column(f"#{name}", pa.array(values))
            if writer is None:
                schema = batch.schema
                writer = pa.ipc.new_stream(str(rows_file), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))
            writer.write_table(table, max_chunksize=self._assembly_rows())
            at += len(time)
            give_back_memory()
        if writer is not None:
            writer.close()
        self.carried.late = late
        return schema

    def _events(self, batch: pa.RecordBatch, time: Ints) -> tuple[EventRows, Arrays]:
        """The batch as events, and the columns from which its user's part makes them again."""
        user, ad = integers(batch, "user_index"), integers(batch, "ad_index")
        click, conversion = integers(batch, "click", -1), integers(batch, "conversion", -1)
        request = integers(batch, REQUEST)
        of_row = {name: self.keys.row_codes(name, batch) for name in self.keys.of_row}
        rows = impressions(time, request, self.keys.codes(user, ad, of_row), click, conversion)
        columns: Arrays = {
            "time": time, "request": request, "user": user.astype(np.int32), "ad": ad.astype(np.int32),
            "click": click.astype(np.int8), "conversion": conversion.astype(np.int8),
        }  # fmt: skip
        columns.update({f"code/{name}": codes.astype(np.int32) for name, codes in of_row.items()})
        for kind, column in ((CLICKED, self.history.clicked_at), (CONVERTED, self.history.converted_at)):
            if column is not None:
                if column not in batch.schema.names:
                    raise DataError(
                        f"history: column '{column}' is declared but not among the impressions. Keep it, or undeclare it."
                    )
                columns[f"late/{kind}"] = integers(batch, column, np.iinfo(np.int64).min)
        return rows, columns

    def _late_moments(self, columns: Arrays) -> dict[str, Ints]:
        return {
            kind: np.asarray(columns[f"late/{kind}"], dtype=np.int64)
            for kind in (CLICKED, CONVERTED)
            if f"late/{kind}" in columns
        }

    def _assembly_rows(self) -> int:
        items = self.history.max_clicks + self.history.max_skipped
        return int(np.clip(_ASSEMBLED_ITEMS // items, 256, self.step_rows))

    def _given(self, schema: pa.Schema) -> bool:
        has = "history" in schema.names
        if self.history.source == "given" and not has:
            raise DataError("history: source is 'given' but the impressions have no column 'history'. Map it, or use 'clicks'.")
        return has and self.history.source != "clicks"

    def _assembled(self, rows_file: Path, parts: UserParts) -> Iterator[pa.Table]:
        """Third pass, in time order: rows, their sums and their histories become the final columns."""
        at = 0
        with pa.ipc.open_stream(pa.OSFile(str(rows_file))) as reader:
            for batch in reader:
                found = parts.results(at, batch.num_rows)
                at += batch.num_rows
                yield self._finish(batch, found, parts)
                give_back_memory()

    def _finish(self, batch: pa.RecordBatch, found: Arrays, parts: UserParts) -> pa.Table:
        time = np.asarray(batch.column("#time").to_numpy())
        sums: Arrays = {name.removeprefix("#"): batch.column(name).to_numpy() for name in batch.schema.names if "|" in name}
        for name, own in found.items():
            if name.startswith("own/"):
                sums[name.removeprefix("own/")] = less_own(sums[name.removeprefix("own/")], own)
            elif "|" in name:
                sums[name] = own
        kept = [name for name in batch.schema.names if not name.startswith("#") and name != "history"]
        columns = {ROW: batch.column(ROW), **{name: batch.column(name) for name in kept}}
        ad = integers(batch, "ad_index")
        if self._given(batch.schema):
            self.report.source = "given"
            offsets, values, lengths = read_given(
                batch.column("history"), self.ads["ad_id"].combine_chunks(), self.history.max_clicks, self.report,
                requests=integers(batch, REQUEST), ads=ad, clicked=integers(batch, "click", -1) == 1,
            )  # fmt: skip
        else:
            row, place = spans(found["clicks/start"].astype(np.int64), found["clicks/end"].astype(np.int64))
            values = np.asarray(parts.clicks.ads[place], dtype=np.int32)
            hours = ((time[row] - parts.clicks.times[place]) / MICROSECONDS_AN_HOUR).astype(np.float32)
            offsets = np.searchsorted(row, np.arange(len(time) + 1))
            lengths = sums[sum_name(("user",), CLICKED, None)].astype(np.int64)
            self.report.count(integers(batch, REQUEST), lengths, self.history.max_clicks)
            columns["history_hours"] = _lists(offsets, hours)
        columns["history_index"] = _lists(offsets, values)
        columns["history_length"] = pa.array(lengths.astype(np.int32))
        if self.history.max_skipped:
            row, place = spans(found["skipped/start"].astype(np.int64), found["skipped/end"].astype(np.int64))
            skipped = np.asarray(parts.skipped.ads[place], dtype=np.int32)
            columns["skipped_index"] = _lists(np.searchsorted(row, np.arange(len(time) + 1)), skipped)

        def history_measure(name: str, measure: str) -> NDArray[np.float64]:
            return history_matches(self.keys.of_ad(name, self.ads.num_rows), ad, offsets, values, measure)

        for name, counter in measure_counters(self.specs, sums, time, history_measure).items():
            columns[name] = pa.array(counter)
        return pa.table(columns)


def _lists(offsets: Ints, values: NDArray[np.generic]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


def _join(one: EventRows | None, other: EventRows) -> EventRows:
    return other if one is None else join([one, other])
