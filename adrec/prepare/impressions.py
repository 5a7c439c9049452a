"""Events in order, with their history and counters, into shards by split."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.config.preprocess import PreprocessConfig
from adrec.prepare.engine import columns_of, fetch
from adrec.prepare.timeline import Events, HistoryLog, HistoryReport, read_given, spans
from adrec.prepare.writer import SplitWriter
from adrec.terminal import Terminal

_DROPPED = {"part", "history"}


def write_impressions(
    connection: duckdb.DuckDBPyConnection, config: PreprocessConfig, folder: Path, terminal: Terminal
) -> tuple[dict[str, int], HistoryReport]:
    """All shards. Returns the rows of each split, and what was found about histories."""
    ad_ids = fetch(connection, "SELECT ad_id FROM ads ORDER BY ad_index")["ad_id"].combine_chunks()
    user_ids = fetch(connection, "SELECT user_id FROM users ORDER BY user_index")["user_id"].combine_chunks()
    queries = fetch(connection, "SELECT query, text FROM queries") if "query" in columns_of(connection, "events") else None
    columns = columns_of(connection, "events")
    given = "history" in columns and config.history.source != "clicks"
    report = HistoryReport(source="given" if given else "clicks")
    history = None if given else _log(connection)
    total = connection.execute("SELECT count(*) FROM events").fetchall()[0][0]
    writer = SplitWriter(folder, rows_per_shard=config.rows_per_shard)
    row = 0
    with terminal.progress("writing impressions", total) as advance:
        for batch in _ordered(connection):
            part = batch.column("part").to_numpy()
            made = {column: batch.column(column) for column in batch.schema.names if column not in _DROPPED}
            made["row_id"] = pa.array(np.arange(row, row + batch.num_rows))
            row += batch.num_rows
            made["user_id"] = user_ids.take(batch.column("user_index"))
            made["ad_id"] = ad_ids.take(batch.column("ad_index"))
            made["request_id"] = _request_ids(made)
            if queries is not None:
                place = pc.index_in(batch.column("query"), value_set=queries["query"].combine_chunks())
                made["query"] = queries["text"].combine_chunks().take(place)
            made |= _given(batch, ad_ids, config, report) if history is None else _clicked(batch, history, config, report)
            writer.add(pa.RecordBatch.from_pydict(made), part)
            advance(batch.num_rows)
    return writer.close(), report


def _ordered(connection: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    yield from connection.cursor().sql("SELECT * FROM events").to_arrow_reader(65_536)


def _request_ids(made: dict[str, pa.Array]) -> pa.Array:
    moment = pc.cast(pc.cast(made["shown_at"], pa.int64()), pa.string())
    default = pc.binary_join_element_wise(made["user_id"], moment, "@")
    return pc.coalesce(made["request_id"], default) if "request_id" in made else default


def _log(connection: duckdb.DuckDBPyConnection) -> HistoryLog:
    clicks = fetch(connection, "SELECT user_index, ad_index, epoch_us(shown_at) AS time, request FROM events WHERE click = 1")
    return HistoryLog(None, Events(*(clicks[name].to_numpy().astype(np.int64) for name in clicks.column_names)))


def _given(batch: pa.RecordBatch, ad_ids: pa.Array, config: PreprocessConfig, report: HistoryReport) -> dict[str, pa.Array]:
    found = read_given(
        batch.column("history"),
        ad_ids,
        config.history.max_clicks,
        report,
        requests=batch.column("request").to_numpy().astype(np.int64),
        ads=batch.column("ad_index").to_numpy().astype(np.int64),
        clicked=pc.fill_null(pc.equal(batch.column("click"), 1), False).to_numpy(zero_copy_only=False),
    )
    return {
        "history_index": pa.ListArray.from_arrays(pa.array(found.offsets.astype(np.int32)), pa.array(found.ads)),
        "history_length": pa.array(found.lengths.astype(np.int32)),
    }


def _clicked(batch: pa.RecordBatch, log: HistoryLog, config: PreprocessConfig, report: HistoryReport) -> dict[str, pa.Array]:
    user, time, request = (
        np.asarray(values, np.int64)
        for values in (batch.column("user_index").to_numpy(), pc.cast(batch.column("shown_at"), pa.int64()).to_numpy(),
                       batch.column("request").to_numpy())
    )  # fmt: skip
    seen = log.windows(user, time, request, 1 << 40, spread=np.zeros(len(user), np.bool_))
    lengths = seen.end - seen.start
    report.count(request, lengths, config.history.max_clicks)
    start = np.maximum(seen.start, seen.end - config.history.max_clicks)
    row, place = spans(start, seen.end)
    offsets = pa.array(np.concatenate([[0], np.cumsum(seen.end - start)]).astype(np.int32))
    hours = (time[row] - log.time[place]) / 3.6e9
    return {
        "history_index": pa.ListArray.from_arrays(offsets, pa.array(log.ad[place].astype(np.int32))),
        "history_hours": pa.ListArray.from_arrays(offsets, pa.array(hours.astype(np.float32))),
        "history_length": pa.array(lengths.astype(np.int32)),
    }
