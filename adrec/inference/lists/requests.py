"""Requests in order of time, block by block: from the prepared folder's impressions, its users, or a table of requests.

A request is one row: who asks, when, in which scenario, with which query and history. Memory is one block of requests,
for `users_at` also the clicks' columns of the prepared folder.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.asof.sums import MICROSECONDS_AN_HOUR
from adrec.data.arrays import combined
from adrec.data.examples import run_codes
from adrec.data.prepared import Prepared
from adrec.data.tables import iter_batches
from adrec.errors import DataError
from adrec.schema import IMPRESSIONS, SPLITS, TIMESTAMP, TableSpec

REQUESTS = TableSpec(
    "requests",
    tuple(column for column in IMPRESSIONS.columns if column.name in {"user_id", "request_id", "scenario", "query", "history"}),
)
"""A table of requests; `shown_at` beside them where requests have moments."""
_NOT_A_REQUEST = {"row_id", "position", "propensity", "click", "conversion", "rating", "dwell_seconds", "true_probability"}


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


def users_at(prepared: Prepared, moment: int | None) -> Iterator[pa.Table]:
    """Each user of the folder once, at `moment` (microseconds; None: just after the last impression), history before it.

    The history is that of the user's last earlier request and the clicks of that request.
    """
    light = ["user_index", "ad_index", "shown_at", "click", "request_id"]
    kept = [name for name in light if name in prepared.columns]
    table = _concat(prepared, kept)
    time = pc.cast(table["shown_at"], pa.int64()).to_numpy()
    moment = int(time.max()) + 1 if moment is None else moment
    user = table["user_index"].to_numpy()
    earlier = np.flatnonzero(time < moment)
    last = np.full(len(prepared.users()), -1, dtype=np.int64)
    np.maximum.at(last, user[earlier], earlier)
    with_hours = "history_hours" in prepared.columns
    wanted = ["history_index", "history_length", *(["history_hours"] if with_hours else [])]
    taken = _concat(prepared, wanted).take(pa.array(np.where(last >= 0, last, 0), mask=last < 0))
    clicked = _clicks_of_request(table, last)
    user = table["user_index"].to_numpy()[clicked]
    lists = combined(taken["history_index"])
    history = _appended(lists, user, table["ad_index"].to_numpy()[clicked], pa.int32())
    if with_hours:
        # The lists' ages were told at the last request; until `moment` all of them grow by as much.
        since = np.where(last >= 0, moment - time[np.maximum(last, 0)], 0) / MICROSECONDS_AN_HOUR
        grown = np.repeat(since, _lengths(combined(taken["history_hours"])))
        ages = pc.list_flatten(combined(taken["history_hours"])).to_numpy(zero_copy_only=False) + grown
        aged = pa.ListArray.from_arrays(pa.array(_ends(_lengths(combined(taken["history_hours"]))), pa.int32()), pa.array(ages))
    else:
        aged = pa.ListArray.from_arrays(
            pa.array(_ends(_lengths(lists)), pa.int32()), pa.array(np.full(int(_lengths(lists).sum()), np.nan))
        )
    hours = _appended(aged, user, (moment - time[clicked]) / MICROSECONDS_AN_HOUR, pa.float32())
    known = pc.fill_null(combined(taken["history_length"]), 0).to_numpy(zero_copy_only=False)
    ids = combined(prepared.users()["user_id"])
    yield pa.table(
        {
            "user_id": ids,
            "request_id": ids,
            "user_index": pa.array(np.arange(len(last)), pa.int32()),
            "shown_at": pa.array(np.full(len(last), moment), TIMESTAMP),
            "history_index": history,
            "history_hours": hours,
            "history_length": pa.array(known + np.bincount(user, minlength=len(last)), pa.int32()),
        }
    )


def table_requests(path: Path, moment: int | None, *, batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """Rows of a requests table. Raises DataError where it has no moments and none is given, or is not in order of time."""
    row, last = 0, -(2**62)
    for batch in iter_batches(path, REQUESTS, batch_rows=batch_rows):
        table = pa.Table.from_batches([batch])
        if "shown_at" not in table.column_names:
            if moment is None:
                raise DataError(f"{path}: no column 'shown_at'. Add it, or give the moment in the config ('at').")
            table = table.append_column("shown_at", pa.array(np.full(len(table), moment), TIMESTAMP))
        time = pc.cast(combined(table["shown_at"]).cast(TIMESTAMP), pa.int64())
        if time.null_count:
            raise DataError(
                f"{path}: row {row + int(pc.index(time.is_null(), True).as_py()) + 1}: 'shown_at' is empty. Fill it."
            )
        falls = np.flatnonzero(np.diff(time.to_numpy(), prepend=last) < 0)
        if len(falls):
            raise DataError(f"{path}: row {row + int(falls[0]) + 1}: 'shown_at' is before the row above. Sort by 'shown_at'.")
        if len(table):
            last, row = int(time[-1].as_py()), row + len(table)
        if "request_id" not in table.column_names:
            table = table.append_column("request_id", table["user_id"])
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


def _concat(prepared: Prepared, columns: list[str]) -> pa.Table:
    """Columns of all impressions, in order of time."""
    batches = [batch for split in SPLITS for batch in prepared.iter(split, columns)]
    return pa.Table.from_batches(batches)


def _clicks_of_request(table: pa.Table, last: np.ndarray) -> np.ndarray:
    """Rows of the clicks in the requests whose last row is `last` (U,)."""
    if "click" not in table.column_names:
        return np.zeros(0, dtype=np.int64)
    request = run_codes(table["request_id"])
    clicked = np.flatnonzero(pc.fill_null(pc.equal(table["click"], 1), False).to_numpy(zero_copy_only=False))
    user = table["user_index"].to_numpy()[clicked]
    found: np.ndarray = clicked[(last[user] >= 0) & (request[clicked] == request[np.maximum(last[user], 0)])]
    return found


def _appended(lists: pa.Array, user: np.ndarray, value: np.ndarray, kind: pa.DataType) -> pa.Array:
    """U lists with the values (user, value) at their ends."""
    lengths = _lengths(lists)
    owner = np.concatenate([np.repeat(np.arange(len(lengths)), lengths), user])
    order = np.argsort(owner, kind="stable")
    values = np.concatenate([pc.list_flatten(lists).to_numpy(zero_copy_only=False), value])
    offsets = _ends(lengths + np.bincount(user, minlength=len(lengths)))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values[order]).cast(kind, safe=False))


def _lengths(lists: pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), dtype=np.int64)


def _ends(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])
