"""Events in order, with all that was known before each of them, into shards by split."""

import itertools
from collections.abc import Collection
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adrec.asof.attach import Attach
from adrec.asof.partitions import Share, count_here
from adrec.asof.spec import counter_names
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.features import resolve_counters
from adrec.data.disk.engine import columns_of, fetch, making_room, one_row
from adrec.data.disk.tables import parquet_schema
from adrec.data.prepared import STATE
from adrec.data.shape import LogShape
from adrec.errors import DataError
from adrec.prepare.output.writer import SplitWriter
from adrec.schema import ADS, NOBODY, USERS
from adrec.specs import CounterSpec
from adrec.terminal import Terminal

_SOURCES = {"advertiser": "advertiser_id"}


def counters_of(connection: duckdb.DuckDBPyConnection, config: PreprocessConfig, shape: LogShape) -> list[CounterSpec]:
    """The declared counters, the usual ones as far as the tables have their columns.

    Raises DataError for one that is declared twice in different ways.
    """
    tables = ("events", "ads", "users")
    known = {column for table in tables for column in columns_of(connection, table)}
    counters = resolve_counters(config.counters, known - {"user_index", "ad_index", "part", "request"}, shape.lacking)
    settings: dict[str, tuple[float, bool]] = {}
    for spec in counters:
        wanted = (spec.prior_strength, spec.log1p)
        for column in counter_names([spec]):
            if settings.setdefault(column, wanted) != wanted:
                raise DataError(
                    f"counters: '{column}' is declared twice, with another prior_strength or log1p. Leave one out, or write "
                    "the list without `usual`, which may hold it."
                )
    return counters


def keyed_columns(connection: duckdb.DuckDBPyConnection, config: PreprocessConfig, shape: LogShape) -> list[str]:
    """Columns that counters are kept by, of whichever table."""
    counters = counters_of(connection, config, shape)
    return sorted({_SOURCES.get(key, key) for spec in counters for key in spec.by} - {"user", "ad"})


def open_attach(
    connection: duckdb.DuckDBPyConnection, config: PreprocessConfig, shape: LogShape, folder: Path, earlier: Path | None = None,
    share: Share = count_here,
) -> Attach:  # fmt: skip
    """What attaches histories and counters: the events of the engine, the ads and users written to `folder`. `share` counts by
    user, here or elsewhere.

    Raises DataError for an unknown column.
    """
    counters = counters_of(connection, config, shape)
    by = set(keyed_columns(connection, config, shape))
    ads, users = folder / "ads.parquet", folder / "users.parquet"
    known = {*columns_of(connection, "events"), *parquet_schema(ads).names, *parquet_schema(users).names}
    _refuse_unknown(by - known)
    return Attach(
        connection,
        ads=_keyed(ads, "ad_id", by),
        users=_keyed(users, "user_id", by),
        history=config.history.spec,
        counters=counters,
        state=folder / STATE,
        earlier=earlier,
        share=share,
    )


def write_impressions(
    connection: duckdb.DuckDBPyConnection,
    attach: Attach,
    writer: SplitWriter,
    terminal: Terminal,
    *,
    shape: LogShape,
    first_row: int = 0,
    memory_limit_gb: float | None = None,
) -> None:
    """Every row of table `events`, numbered from `first_row`, with history and counters, to `writer`."""
    keys, identifiers = attach.bytes_of_keys, _bytes_of_identifiers(connection)
    with making_room(connection, memory_limit_gb, keys), terminal.progress("counting by user", attach.rows) as advance:
        batches = attach.run(advance)
        first = next(batches, None)
    # Identifiers are read behind the counting, which may need the memory.
    with making_room(connection, memory_limit_gb, keys + identifiers):
        finisher = _Finisher(connection, shape, first_row)
        with terminal.progress("writing impressions", attach.rows) as advance:
            for batch in itertools.chain([first] if first is not None else [], batches):
                part = batch.column("part").to_numpy()
                writer.add(finisher.finish(batch), part)
                advance(batch.num_rows)


class _Finisher:
    """Adds row numbers and identifiers, and the cleaned query."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, shape: LogShape, first_row: int) -> None:
        self._row, self._first_row, self._shape = first_row, first_row, shape
        self._ads = _strings(connection, "ads", "ad_id", "ad_index")
        self._users = _strings(connection, "users", "user_id", "user_index")
        self._queries: tuple[pa.Array, pa.Array] | None = None
        if "query" in columns_of(connection, "events"):
            table = fetch(connection, "SELECT query, text FROM queries").combine_chunks()
            self._queries = (_array(table["query"]), _array(table["text"]))

    def finish(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with its last columns; `part` is gone, `request` stays for the writer. What the log does not name is left
        out, and null where some rows do not."""
        left_out = {"part"} | (set() if self._shape.time else {"shown_at"})
        made = {column: batch.column(column) for column in batch.schema.names if column not in left_out}
        made["row_id"] = pa.array(np.arange(self._row, self._row + batch.num_rows))
        self._row += batch.num_rows
        users = self._users.take(batch.column("user_index"))
        users = pc.if_else(pc.equal(users, NOBODY), pa.scalar(None, users.type), users)
        # A row of an unknown user, or without a moment, is a request by itself (drawn negatives are the click's). Of an append
        # the numbers go on behind all rows before.
        number = pc.add(pc.cast(batch.column("request"), pa.int64()), self._first_row)
        request = pc.binary_join_element_wise("", pc.cast(number, pa.string()), "@")
        if self._shape.user:
            made["user_id"] = users
        if self._shape.ad:
            made["ad_id"] = self._ads.take(batch.column("ad_index"))
        if self._shape.user and self._shape.time:
            moment = pc.cast(pc.cast(batch.column("shown_at"), pa.int64()), pa.string())
            request = pc.coalesce(pc.binary_join_element_wise(users, moment, "@"), request)
        made["request_id"] = pc.coalesce(made["request_id"], request) if "request_id" in made else request
        if self._queries is not None:
            raw, cleaned = self._queries
            made["query"] = cleaned.take(pc.index_in(batch.column("query"), value_set=raw))
        return pa.RecordBatch.from_pydict(made)


def _refuse_unknown(missing: Collection[str]) -> None:
    if missing:
        raise DataError(
            "\n".join(
                f"counters: column '{column}' is neither of the impressions, the ads nor the users. "
                "Declare it (keep, ad_columns, user_columns), or leave the counter out."
                for column in sorted(missing)
            )
        )


def _keyed(path: Path, key: str, wanted: Collection[str]) -> pa.Table:
    """The key and those of the wanted columns that there are, row by row as they were written: in index order."""
    return pq.read_table(path, columns=[key, *sorted(set(wanted) & set(parquet_schema(path).names) - {key})])


def _bytes_of_identifiers(connection: duckdb.DuckDBPyConnection) -> int:
    held = "coalesce(sum(strlen({0})), 0) + 4 * count(*)"
    parts = (f"(SELECT {held.format(spec.key)} FROM {spec.name})" for spec in (ADS, USERS))
    return int(one_row(connection, f"SELECT {' + '.join(parts)} AS n")["n"])


def _strings(connection: duckdb.DuckDBPyConnection, table: str, column: str, index: str) -> pa.Array:
    return _array(fetch(connection, f"SELECT {column} FROM {table} ORDER BY {index}")[column])


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
