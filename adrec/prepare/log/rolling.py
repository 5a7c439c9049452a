"""A rolling split moves with the log: rows of the earlier test part go to validation, those of validation to training.

Training shards stay as they are. What moves costs what validation and test hold, however long the log is: a shard all of whose
rows go to one part is linked there, only one that a bound cuts is written again.
"""

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.config.data.preprocess import TimeSplit
from adrec.data.arrays import combined
from adrec.data.disk.engine import columns_of, name, parquet
from adrec.data.examples import run_codes
from adrec.data.prepared import shards_of
from adrec.prepare.log.append import Earlier
from adrec.prepare.log.splits import part_of
from adrec.prepare.output.writer import SplitWriter
from adrec.schema import DRAWN, WEIGHT

MOVED = ("valid", "test")
"""Splits whose rows may be another part's now."""


def read_moved(connection: duckdb.DuckDBPyConnection, earlier: Earlier, split: TimeSplit, labels: dict[str, str]) -> None:
    """Table `moved`: part, ad_index, user_index, shown_at, query, labels and their moments of the earlier rows of MOVED."""
    files = [file for part in MOVED for file in shards_of(earlier.folder, part)]
    columns = columns_of(connection, f"SELECT * FROM {parquet(files[0])}")
    wanted = [column for column in ("query", DRAWN, *labels, *labels.values()) if column in columns]
    selected = "".join(
        f", CAST({name(column)} AS {columns[column].removesuffix(' WITH TIME ZONE')}) AS {name(column)}" for column in wanted
    )
    started = "CAST(min(shown_at) OVER (PARTITION BY filename, request_id) AS TIMESTAMP)"
    rows = (
        f"SELECT {started} AS started, ad_index, user_index, CAST(shown_at AS TIMESTAMP) AS shown_at{selected} "
        f"FROM {parquet(*files, options='filename = true')}"
    )
    connection.execute(
        f"CREATE OR REPLACE TABLE moved AS SELECT CAST({part_of(split, 'started')} AS UTINYINT) AS part, "
        f"* EXCLUDE (started) FROM ({rows})"
    )


def no_moved(connection: duckdb.DuckDBPyConnection) -> None:
    """Table `moved` where no earlier row changes its part."""
    connection.execute(
        "CREATE OR REPLACE TABLE moved (part UTINYINT, ad_index INTEGER, user_index INTEGER, shown_at TIMESTAMP)"
    )


def move_shards(earlier: Earlier, split: TimeSplit, writer: SplitWriter) -> None:
    """Write the earlier rows of MOVED, in order, to the parts that are theirs now."""
    bounds = [bound for bound in (split.valid_from or split.test_from, split.test_from) if bound is not None]
    moments = np.array([bound.replace(tzinfo=None) for bound in bounds], "datetime64[us]").astype(np.int64)
    first = -2  # numbers of requests that no new row has, other in each file
    for file in (file for split_name in MOVED for file in shards_of(earlier.folder, split_name)):
        known = pq.read_schema(file).names
        wanted = [column for column in ("request_id", "shown_at", "click", WEIGHT) if column in known]
        ends = pq.read_table(file, columns=wanted)
        run = run_codes(ends["request_id"])
        opens = np.flatnonzero(np.diff(run, prepend=-1))
        shown = combined(ends["shown_at"]).cast(pa.int64()).to_numpy()
        split_name = np.searchsorted(moments, shown[opens], side="right")[run].astype(np.uint8)
        request = pa.array(first - run.astype(np.int64))
        first = first - int(run[-1]) - 1
        if split_name[0] == split_name[-1]:
            writer.link(file, int(split_name[0]), ends.append_column("request", request).combine_chunks().to_batches()[0])
            continue
        at = 0
        with pq.ParquetFile(file) as shard:
            for batch in shard.iter_batches(use_threads=False):
                stop = at + batch.num_rows
                writer.add(batch.append_column("request", request.slice(at, batch.num_rows)), split_name[at:stop])
                at = stop
