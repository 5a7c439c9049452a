"""Requests in order of time, block by block: from the prepared folder's impressions, its users, or a table of requests.

A request is one row: who asks, when, in which scenario, with which query and history. Memory is one block of requests.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.data.arrays import combined
from adrec.data.disk.tables import iter_batches
from adrec.data.examples import run_codes
from adrec.data.prepared import Prepared
from adrec.errors import DataError
from adrec.inference.known import MADE_OF_ROWS, users_named
from adrec.schema import IMPRESSIONS, NOBODY, PROPENSITY, PROPENSITY_GIVEN_ABOVE, TIMESTAMP, TRUE_PROBABILITY, TableSpec

_OF_A_REQUEST = {"user_id", "request_id", "shown_at", "scenario", "query", "history"}
REQUESTS = TableSpec(
    "requests",
    tuple(
        replace(column, required=column.required and column.name != "shown_at")
        for column in IMPRESSIONS.columns
        if column.name in _OF_A_REQUEST
    ),
)
"""A table of requests; one without `shown_at` is ranked at one moment that the config names."""
_NOT_A_REQUEST = {"row_id", "position", PROPENSITY, PROPENSITY_GIVEN_ABOVE, *IMPRESSIONS.outcomes, TRUE_PROBABILITY}


def split_requests(prepared: Prepared, split: str, *, batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """The first impression of each request of a split, without its outcome."""
    columns = [name for name in prepared.columns if name not in _NOT_A_REQUEST]
    last: str | None = None
    for batch in prepared.iter(split, columns, batch_rows):
        table = pa.Table.from_batches([batch])
        if table.num_rows == 0:
            continue
        opens = np.diff(run_codes(table["request_id"]), prepend=-1) > 0
        opens[0] = table["request_id"][0].as_py() != last
        last = table["request_id"][table.num_rows - 1].as_py()
        yield table.filter(pa.array(opens))


def users_at(users: pa.Table, moment: int) -> Iterator[pa.Table]:
    """Each user of a table once, at `moment` (microseconds)."""
    ids = combined(users["user_id"])
    rows = np.flatnonzero(ids.to_numpy(zero_copy_only=False) != NOBODY)
    ids, index = ids.take(pa.array(rows)), pa.array(rows, pa.int32())
    moments = pa.array(np.full(len(ids), moment), TIMESTAMP)
    yield pa.table({"user_id": ids, "request_id": ids, "user_index": index, "shown_at": moments})


def without_numbers(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Requests of a prepared folder without what refers to its own ads and users: it is made anew over other tables."""
    for table in tables:
        yield table.drop_columns([name for name in table.column_names if name in MADE_OF_ROWS])


def table_requests(path: Path, moment: int | None, *, where: str = "", batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """Rows of a requests table. Raises DataError where it has no moments and none is given, or is not in order of time."""
    row, last = 0, -(2**62)
    for batch in iter_batches(path, REQUESTS, batch_rows=batch_rows):
        table = pa.Table.from_batches([batch])
        if "shown_at" not in table.column_names:
            if moment is None:
                raise DataError(f"{where or path}: no column 'shown_at'. Add it, or give the moment in the config ('at').")
            table = table.append_column("shown_at", pa.array(np.full(len(table), moment), TIMESTAMP))
        time = pc.cast(combined(table["shown_at"]).cast(TIMESTAMP), pa.int64())
        if time.null_count:
            raise DataError(
                f"{where or path}: row {row + int(pc.index(time.is_null(), True).as_py()) + 1}: 'shown_at' is empty. Fill it."
            )
        falls = np.flatnonzero(np.diff(time.to_numpy(), prepend=last) < 0)
        if len(falls):
            raise DataError(
                f"{where or path}: row {row + int(falls[0]) + 1}: 'shown_at' is before the row above. Sort by 'shown_at'."
            )
        if len(table):
            last, row = int(time[-1].as_py()), row + len(table)
        if "request_id" not in table.column_names:
            numbered = pa.array(np.arange(row - len(table), row)).cast(pa.string())
            users = users_named(table)
            table = table.append_column("request_id", pc.if_else(pc.equal(users, NOBODY), numbered, users))
        yield table.drop_columns([name for name in _NOT_A_REQUEST if name in table.column_names])


def blocks(tables: Iterable[pa.Table], rows: int, *, skip: int = 0) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `rows` (the last may be shorter), after leaving out the first `skip`."""
    waiting: list[pa.Table] = []
    held = 0
    for table in tables:
        if skip:
            left = min(skip, table.num_rows)
            table, skip = table.slice(left), skip - left
        waiting.append(table)
        held += table.num_rows
        while held >= rows:
            whole = pa.concat_tables(waiting, promote_options="default")
            yield whole.slice(0, rows)
            waiting, held = [whole.slice(rows)], held - rows
    if held:
        yield pa.concat_tables(waiting, promote_options="default")
