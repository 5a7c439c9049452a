"""Everything known before each impression of a log of any size: histories and counters, attached to the rows in order.

Two passes over the engine's table of events, whose sorting, partitioning and joining are DuckDB's. First the counters whose
key holds a user, a partition of the users after another, each in order of time; their sums go back into the order of the
rows. Then the rows in that order, beside counters whose key holds many users; histories are binary searches in the log of
clicks. Memory is a batch, one partition's state and the states of the second kind, whatever one user or one day holds.
The state of an earlier run is gone on from; the new one gives later rows exactly what one pass over everything gives.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.asof.event_layers import LayeredLog, write_layer
from adrec.asof.events import TIME, EventRows, Log, index_of, is_counted, join_events, read_events, read_weights
from adrec.asof.history import HistoryReport, read_given, report_given
from adrec.asof.keys import KeyColumns
from adrec.asof.layers import SumsWriter, layers_of, save_sums
from adrec.asof.measure import counter_columns
from adrec.asof.partitions import Partition, Share, count_here
from adrec.asof.replay import SortedEvents
from adrec.asof.spec import KeyPlan, plan_keys
from adrec.asof.state import PENDING, State, save_about, sums_name
from adrec.asof.sums import KeyedSums
from adrec.data.disk.engine import columns_of, give_back_memory, name, one_row, stream, text
from adrec.data.disk.writing import link_file
from adrec.errors import DataError
from adrec.schema import as_of_column
from adrec.specs import CounterSpec, HistorySpec

Ints = NDArray[np.int64]
Arrays = dict[str, NDArray[np.generic]]
BATCH_ROWS = 65_536
_PARTITION_ROWS = 262_144
_MOST_BITS = 12
_MOST_LAYERS = 16
"""Layers of a state; days are appended as such."""
_HISTORY_ITEMS = 4_000_000
"""Items of histories in memory at once."""
_INTERNAL = {"history", "started", "request"}


class Attach:
    """Attaches `history_index`, `history_hours`, `history_length`, `skipped_index` and `counter_*` to a table of events.

    The table holds, in this order: requests by their first moment `started`, inside a request by `shown_at`; columns
    `request` (int, contiguous), user_index, ad_index, started, shown_at and what counters and history settings name.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        *,
        ads: pa.Table,
        users: pa.Table,
        history: HistorySpec,
        counters: Sequence[CounterSpec],
        state: Path,
        earlier: Path | None = None,
        table: str = "events",
        batch_rows: int = BATCH_ROWS,
        partition_rows: int = _PARTITION_ROWS,
        share: Share = count_here,
    ) -> None:
        """ads and users in the order of their index; `state` a folder to write; `earlier` the state of a run before.
        `share` counts by user, here or elsewhere.

        Raises DataError where `earlier` was made with other settings, for columns that are not there, and for rows before
        the end of the earlier log.
        """
        self._connection, self._table, self._ads = connection, table, ads
        self._batch_rows, self._partition_rows = batch_rows, partition_rows
        self._history, self._specs, self._folder, self._share = history, list(counters), state, share
        self._plans = plan_keys(self._specs)
        self._earlier_folder = earlier
        self._earlier = State.load(earlier, self._plans, history) if earlier is not None else State(self._plans)
        self._columns = columns_of(connection, table)
        as_of = [column for column in self._columns if as_of_column(column) is not None]
        self._keys = KeyColumns({key for spec in self._specs for key in spec.by}, ads, users, as_of)
        self._keys.check(self._specs, self._columns)
        self._log = Log(table, self._columns, history, self._keys.row_columns)
        self._given = "history" in self._columns and history.source != "clicks"
        if history.source == "given" and not self._given:
            raise DataError("history: source is 'given' but the impressions have no column 'history'. Map it, or use 'clicks'.")
        if self._given and not self._columns["history"].endswith("[]"):
            raise DataError(
                f"impressions: column 'history' is {self._columns['history']}, expected a list of ad ids. "
                "Declare its separator in the source."
            )
        self.rows = int(one_row(connection, f"SELECT count(*) AS n FROM {table}")["n"])
        self.report = HistoryReport()
        self._kept = False
        self._last_moment = self._checked_moment()

    def run(self, advance: Callable[[int], None] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in order with the new columns, without `history`. The state is whole when the last batch is out.

        `advance` is called with the rows that the first pass has worked through, bit by bit.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._register()
        clicks, skips = self._write_logs()
        of_user = [plan for plan in self._plans if plan.of_user]
        names = self._count_by_user(of_user, advance)
        others = [plan for plan in self._plans if not plan.of_user]
        state = State(others, {plan.by: self._gone_on(plan) for plan in others}, clicks, skips)
        yield from self._finish(state, names)
        for plan in others:
            save_sums(state.sums[plan.by], self._folder / sums_name(plan))
        save_about(self._folder, self._plans, self._history, self._last_moment)

    @property
    def bytes_of_keys(self) -> int:
        """What the codes of ads and users take."""
        return sum(codes.nbytes for codes in (*self._keys.of_ad.values(), *self._keys.of_user.values()))

    # ------------------------------------------------------------------------------------------- what to read

    def _checked_moment(self) -> int | None:
        ends = one_row(
            self._connection, f"SELECT min(epoch_us(shown_at)) AS first, max(epoch_us(shown_at)) AS last FROM {self._table}"
        )
        last = self._earlier.last_moment
        if ends["first"] is not None and last is not None and ends["first"] < last:
            shown, before = (np.datetime64(value, "us") for value in (ends["first"], last))
            raise DataError(
                f"impressions: a row shown at {shown} UTC comes after rows up to {before} UTC were taken in. "
                "Append newer files only, or rebuild from all files."
            )
        return max((moment for moment in (ends["last"], last) if moment is not None), default=None)

    def _gone_on(self, plan: KeyPlan, low: int = 0, high: int = 1 << 63) -> KeyedSums:
        """Sums of a plan that go on from those of the earlier state with low <= key < high."""
        base = self._earlier.sums[plan.by].base
        if base is not None:
            base = base.between(low, high)
        return KeyedSums(len(plan.events), plan.half_lives, first=plan.first, base=base)

    def _register(self) -> None:
        """Tables `user_codes` and `late_events`: late clicks and conversions, those still to come from the earlier run too."""
        codes = self._keys.of_user["user"]
        users = pa.table({"user_index": pa.array(np.arange(len(codes)), pa.int32()), "code": codes})
        self._make("user_codes", "SELECT * FROM arrow_rows", users)
        late = self._log.events("shown_at > started")
        pending = self._earlier.pending
        union = f"{late} UNION ALL BY NAME SELECT * FROM arrow_rows" if pending is not None else late
        self._make("late_events", f"SELECT * FROM ({union}) ORDER BY {name(TIME)}", pending)
        to_come = f"SELECT * FROM late_events WHERE {name(TIME)} > {self._last_moment or 0}"
        self._connection.execute(f"COPY ({to_come}) TO {text(str(self._folder / PENDING))} (FORMAT parquet, COMPRESSION zstd)")
        self._connection.execute(f"DELETE FROM late_events WHERE {name(TIME)} > {self._last_moment or 0}")

    def _make(self, table: str, query: str, rows: pa.Table | None) -> None:
        """A table of the engine from a query over `arrow_rows`: cursors do not see what is registered."""
        if rows is not None:
            self._connection.register("arrow_rows", rows)
        self._connection.execute(f"CREATE OR REPLACE TABLE {table} AS {query}")
        if rows is not None:
            self._connection.unregister("arrow_rows")

    def _write_logs(self) -> tuple[LayeredLog, LayeredLog]:
        """The logs of clicks and skips, earlier acts among them, to the state's folder."""
        clicks = self._last_given() if self._given else self._log.clicks("rowid")
        skips = self._log.skips("rowid") if self._history.max_skipped else None
        return self._write_log("clicks", clicks), self._write_log("skips", skips)

    def _write_log(self, kind: str, acts: str | None) -> LayeredLog:
        if acts is None:
            return write_layer([], 0, self._folder / kind)
        now = (
            "SELECT u.code, CAST(a.ad_index AS INTEGER) AS ad_index, a.time, a.shown, a.row "
            f"FROM ({acts}) a JOIN user_codes u USING (user_index) WHERE u.code >= 0"
        )
        self._make("acts", now, None)
        count = int(one_row(self._connection, "SELECT count(*) AS n FROM acts")["n"])
        ordered = stream(
            self._connection.cursor(),
            "SELECT code, ad_index, time FROM acts ORDER BY code, time, shown, row",
            batch_rows=self._batch_rows,
        )
        # Of equal moments, what an earlier run took in comes first, in its order.
        earlier = self._earlier_folder / kind if self._earlier_folder is not None else None
        log = write_layer(ordered, count, self._folder / kind, earlier)
        self._connection.execute("DROP TABLE acts")
        return log

    def _last_given(self) -> str:
        """SQL of what may be taken as a user's clicks where histories come with the rows: the last one, and clicks since."""
        ids = pa.table({"ad_index": pa.array(np.arange(len(self._ads)), pa.int32()), "ad_id": self._ads["ad_id"]})
        self._make("given_ids", "SELECT * FROM arrow_rows", ids)
        last = (
            f"SELECT user_index, arg_max(history, rowid) AS history, epoch_us(arg_max(started, rowid)) AS started "
            f"FROM {self._table} WHERE history IS NOT NULL GROUP BY user_index"
        )
        items = (
            "SELECT user_index, started, unnest(history) AS ad_id, unnest(range(len(history))) - len(history) AS back "
            f"FROM ({last})"
        )
        given = (
            "SELECT i.user_index, g.ad_index, i.started + i.back AS time, i.started + i.back AS shown, i.back AS row "
            f"FROM ({items}) i JOIN given_ids g USING (ad_id)"
        )
        since = (
            f"SELECT c.* FROM ({self._log.clicks('rowid')}) c LEFT JOIN ({last}) l USING (user_index) "
            "WHERE l.started IS NULL OR c.shown >= l.started"
        )
        return f"{given} UNION ALL {since}"

    # ------------------------------------------------------------------------------------------- by user

    def _count_by_user(self, plans: Sequence[KeyPlan], advance: Callable[[int], None] | None) -> list[str]:
        """Table `user_sums`: the sums of `plans` before each row, by row; returns their names. The states are saved."""
        if not plans:
            return []
        bits = min(max(self.rows // self._partition_rows, 1).bit_length(), _MOST_BITS)
        shift = 63 - bits
        asked = (
            f"SELECT rowid AS row, epoch_us(started) AS {name(TIME)}, user_index, ad_index{self._log.carried}, "
            f"{self._log.weights('shown_at = started')} FROM {self._table}"
        )
        query = (
            f"SELECT e.*, CAST(greatest(u.code, 0) >> {shift} AS INTEGER) AS partition FROM ({asked} UNION ALL BY NAME "
            f"SELECT * FROM late_events) e JOIN user_codes u USING (user_index) ORDER BY partition, {name(TIME)}, row"
        )
        layers = self._linked_layers(plans)
        writers = {plan.by: SumsWriter(plan.new_sums(), self._folder / sums_name(plan), layers) for plan in plans}
        names: list[str] = []
        done = 0
        batches = stream(self._connection.cursor(), query, batch_rows=self._batch_rows)
        for counted in self._share(self._partitions(plans, batches, shift, is_layer=layers > 0)):
            if not layers:  # of users without rows today
                for plan in plans:
                    writers[plan.by].write(self._gone_on(plan, done << shift, counted.number << shift).flat())
            for row, sums in counted.rows:
                names = self._keep(row, sums)
                if advance is not None:
                    advance(len(row))
            give_back_memory()
            for plan in plans:
                own = counted.sums[plan.by]
                writers[plan.by].write(own if layers else own.flat())
            done = counted.number + 1
        for plan in plans:
            if not layers:
                writers[plan.by].write(self._gone_on(plan, done << shift, 1 << 63).flat())
            writers[plan.by].close()
        return names

    def _partitions(
        self, plans: Sequence[KeyPlan], batches: Iterator[pa.RecordBatch], shift: int, *, is_layer: bool
    ) -> Iterator[Partition]:
        """The partitions of users that have rows, each with what an earlier run knew of its users."""
        for number, pieces in itertools.groupby(_by_partition(batches), key=lambda piece: piece[0]):
            sums = {plan.by: self._gone_on(plan, number << shift, (number + 1) << shift) for plan in plans}
            for own in sums.values():
                own.is_layer = is_layer
            yield Partition(
                number, plans, sums, ((piece.column("row"), read_events(piece, self._keys)) for _, piece in pieces)
            )  # fmt: skip

    def _linked_layers(self, plans: Sequence[KeyPlan]) -> int:
        """Take over the layers of the earlier state, by hard link, unless they are many; how many lie there then."""
        if self._earlier_folder is None:
            return 0
        layers = {plan.by: layers_of(self._earlier_folder / sums_name(plan)) for plan in plans}
        count = len(next(iter(layers.values())))
        if count >= _MOST_LAYERS:  # a question goes through all of them: time for one
            return 0
        for plan in plans:
            for layer in layers[plan.by]:
                for file in layer.iterdir():
                    link_file(file, self._folder / sums_name(plan) / layer.name / file.name)
        return count

    def _keep(self, row: pa.Array, sums: Arrays) -> list[str]:
        """Put sums of rows, in any order, into table `user_sums`; late events, which have no row, ask for nothing."""
        asks = row.is_valid()
        columns = {"row": row, **{f"s{at}": pa.array(values) for at, values in enumerate(sums.values())}}
        rows = pa.table(columns).filter(asks)
        self._connection.register("arrow_sums", rows)
        if not self._kept:
            self._connection.execute("CREATE OR REPLACE TABLE user_sums AS SELECT * FROM arrow_sums")
        else:
            self._connection.execute("INSERT INTO user_sums SELECT * FROM arrow_sums")
        self._connection.unregister("arrow_sums")
        self._kept = True
        return list(sums)

    # ------------------------------------------------------------------------------------------- row by row

    def _finish(self, state: State, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows in order with everything that is known before them."""
        query = f"SELECT *, epoch_us(started) AS {name(TIME)}, {self._log.weights('shown_at = started')} FROM {self._table}"
        width = self._history.max_clicks + self._history.max_skipped
        batch_rows = int(np.clip(_HISTORY_ITEMS // width, 256, self._batch_rows))
        late = SortedEvents(stream(self._connection.cursor(), f"SELECT * FROM late_events ORDER BY {name(TIME)}"), self._keys)
        in_order = "SELECT * EXCLUDE (row) FROM user_sums ORDER BY row"
        by_user = _Aligned(stream(self._connection.cursor(), in_order) if names else iter(()))
        last_request = -1
        for batch in stream(self._connection.cursor(), query, batch_rows=batch_rows):
            codes = self._keys.codes(index_of(batch, "user_index"), index_of(batch, "ad_index"), batch)
            rows = EventRows(index_of(batch, TIME), codes, read_weights(batch))
            events = join_events([rows, *late.until(int(rows.time[-1]))])
            sums = state.step(events, is_counted(events.weights))
            sums = {key: values[: len(rows.time)] for key, values in sums.items()}
            sums |= dict(zip(names, by_user.next(len(rows.time)), strict=True)) if names else {}
            request = index_of(batch, "request")
            opens = np.diff(request, prepend=last_request) != 0
            last_request = int(request[-1])
            yield self._finished(batch, rows, sums, opens, state)
            give_back_memory()
        for events in late.until(self._last_moment or 0):
            state.step(events, is_counted(events.weights))

    def _finished(
        self, batch: pa.RecordBatch, rows: EventRows, sums: Arrays, opens: NDArray[np.bool_], state: State
    ) -> pa.RecordBatch:
        kept = [key for key in batch.schema.names if not key.startswith("#") and key not in _INTERNAL]
        columns = {key: batch.column(key) for key in [*kept, "request"]}
        ad, limit = index_of(batch, "ad_index"), self._history.max_clicks
        # A history is its request's: found once, and repeated for the rows.
        history_of_row = np.cumsum(opens) - opens[0]
        first = np.flatnonzero(np.diff(history_of_row, prepend=-1))
        users, times = rows.codes["user"], rows.time
        if self._given:
            logged = read_given(batch.column("history"), self._ads["ad_id"].combine_chunks(), limit)
            clicked = np.where(rows.weights["clicked"] > 0, ad, -1)
            report_given(self.report, logged, batch.column("history"), opens, clicked, limit)
            offsets, values, lengths = logged.offsets, logged.ads, logged.lengths
            history_of_row = np.arange(len(ad))
        else:
            history = state.clicks.histories(users[first], times[first], limit)
            offsets, values, lengths = history.offsets, history.ads, history.lengths[history_of_row]
            self.report.count(opens, lengths, limit)
            columns["history_hours"] = _lists(offsets, history.hours(times[first]), history_of_row)
        columns["history_index"] = _lists(offsets, values, history_of_row)
        columns["history_length"] = pa.array(lengths.astype(np.int32))
        if self._history.max_skipped:
            of_request = np.cumsum(opens) - opens[0]
            skips = state.skips.histories(users[first], times[first], self._history.max_skipped)
            columns["skipped_index"] = _lists(skips.offsets, skips.ads, of_request)
        counters = counter_columns(
            self._specs, sums, self._keys, times=times, ad=ad, offsets=offsets, clicked=values, history_of_row=history_of_row
        )
        columns |= {key: pa.array(values) for key, values in counters.items()}
        return pa.RecordBatch.from_pydict(columns)


class _Aligned:
    """Columns of a stream, cut into pieces of any length."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._held: list[pa.RecordBatch] = []
        self._rows = 0

    def next(self, rows: int) -> list[NDArray[np.generic]]:
        """The next `rows` rows, an array a column."""
        while self._rows < rows:
            self._held.append(next(self._batches))
            self._rows += self._held[-1].num_rows
        table = pa.Table.from_batches(self._held)
        self._held, self._rows = table.slice(rows).to_batches(), self._rows - rows
        return [column.to_numpy() for column in table.slice(0, rows).columns]


def _by_partition(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Pieces of one partition each, with its number."""
    for batch in batches:
        partition = batch.column("partition").to_numpy()
        starts = np.flatnonzero(np.diff(partition, prepend=-1))
        for low, high in zip(starts.tolist(), [*starts[1:].tolist(), len(partition)], strict=True):
            yield int(partition[low]), batch.slice(low, high - low)


def _lists(offsets: Ints, values: NDArray[np.generic], of_row: Ints) -> pa.ListArray:
    """R lists, one for each row."""
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
    return lists if len(of_row) == len(lists) else lists.take(pa.array(of_row))
