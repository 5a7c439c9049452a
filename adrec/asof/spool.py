"""Scratch files of the out-of-core pass: rows in time order and back, users in parts, results put together again."""

import ctypes
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.data.hashing import hash_strings, mix
from adrec.errors import DataError

Ints = NDArray[np.int64]
Columns = dict[str, NDArray[np.generic]]
ROW, REQUEST = "#row", "#request"
"""Added columns: position in the input, and a hash of (user, request)."""
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


def to_time_order(batches: Iterable[pa.RecordBatch], step_rows: int) -> Iterator[pa.Table]:
    """Rows that come request by request (by first moment), in the order of shown_at, ties as they came.

    Holds back the rows later than the newest request's first moment: later requests may still go before them.
    Adds ROW and REQUEST. Raises DataError when the input is in another order.
    """
    held: pa.Table | None = None
    count, previous_request, previous_time, watermark = 0, 0, np.iinfo(np.int64).min, np.iinfo(np.int64).min
    for table in _gather(batches, step_rows):
        time, request = moments(table), _request_hash(table)
        opens = request != np.concatenate([[previous_request if count else ~request[0]], request[:-1]])
        earlier = np.concatenate([[previous_time], time[:-1]])
        firsts = np.concatenate([[watermark], time[opens]])
        if (~opens & (time < earlier)).any() or (firsts[1:] < firsts[:-1]).any():
            raise DataError(
                "impressions: not in time order. Sort by each request's first shown_at, then request_id, then shown_at."
            )
        previous_request, previous_time, watermark = int(request[-1]), int(time[-1]), int(firsts[-1])
        table = table.append_column(ROW, pa.array(count + np.arange(len(time)))).append_column(REQUEST, pa.array(request))
        count += len(time)
        held = pa.concat_tables([held, table]) if held is not None and held.num_rows else table
        held = _sorted(held, moments(held))
        ready = int(np.searchsorted(moments(held), watermark, side="right"))
        yield held.slice(0, ready).combine_chunks()
        held = held.slice(ready).combine_chunks()
    if held is not None and held.num_rows:
        yield held


def to_row_order(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Back to the order of ROW, which is dropped. Holds back rows whose predecessors are still to come."""
    held: pa.Table | None = None
    count = 0
    for table in tables:
        held = pa.concat_tables([held, table]) if held is not None and held.num_rows else table
        held = _sorted(held, held[ROW].to_numpy())
        ready = int((held[ROW].to_numpy() == count + np.arange(held.num_rows)).sum())
        count += ready
        if ready:
            yield held.slice(0, ready).drop_columns([ROW])
        held = held.slice(ready)


def give_back_memory() -> None:
    """Hand freed memory back to the system. glibc keeps the holes that large arrays leave, more of them the longer a run is."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def moments(table: pa.Table) -> Ints:
    """shown_at in microseconds, int64 (N,)."""
    return np.asarray(table["shown_at"].cast(pa.int64()).to_numpy(), dtype=np.int64)


class PartWriter:
    """Rows spread over part files by a part number, their order kept within each."""

    def __init__(self, folder: Path, parts: int) -> None:
        self.folder = folder
        self.parts = parts
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, part: Ints, columns: Mapping[str, NDArray[np.generic]]) -> None:
        """Append N rows; part (N,) in [0, parts)."""
        order = np.argsort(part.astype(np.uint16), kind="stable")
        bounds = np.searchsorted(part[order], np.arange(self.parts + 1))
        ordered = {name: values[order] for name, values in columns.items()}
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            start, stop = bounds[number], bounds[number + 1]
            batch = pa.record_batch({name: pa.array(values[start:stop]) for name, values in ordered.items()})
            if number not in self._writers:
                self._writers[number] = pa.ipc.new_stream(str(self._path(number)), batch.schema, options=_OPTIONS)
            self._writers[number].write_batch(batch)

    def close(self) -> None:
        """End every file."""
        for writer in self._writers.values():
            writer.close()

    def read(self, number: int) -> Columns | None:
        """All rows of one part, then its file is gone; None where it has none."""
        if number not in self._writers:
            return None
        with pa.ipc.open_stream(pa.OSFile(str(self._path(number)))) as reader:
            table = reader.read_all()
        self._path(number).unlink()
        return {name: table[name].to_numpy() for name in table.column_names}

    def _path(self, number: int) -> Path:
        return self.folder / f"rows-{number:03d}.arrow"


def write_results(path: Path, columns: Mapping[str, NDArray[np.generic]], *, batch_rows: int) -> None:
    """A part's results, `#at` ascending, in batches for PartCursor, which holds one at a time."""
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    with pa.ipc.new_stream(str(path), table.schema, options=_OPTIONS) as writer:
        writer.write_table(table, max_chunksize=batch_rows)


class PartCursor:
    """Reads one part's results in step with the rows."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_stream(pa.OSFile(str(path)))
        self._batch: Columns = {}
        self._used = 0

    def until(self, stop: int) -> Iterator[Columns]:
        """The next results with `#at` < stop, in pieces."""
        while True:
            if not self._batch or self._used == len(self._batch["#at"]):
                try:
                    batch = self._reader.read_next_batch()
                except StopIteration:
                    return
                self._batch = {name: batch.column(name).to_numpy() for name in batch.schema.names}
                self._used = 0
            end = int(np.searchsorted(self._batch["#at"], stop))
            if end > self._used:
                yield {name: values[self._used : end] for name, values in self._batch.items()}
                self._used = end
            if end < len(self._batch["#at"]):
                return


class GrowingFile:
    """One array on disk that grows at the end; read back by memory map."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.length = 0
        path.write_bytes(b"")

    def append(self, values: NDArray[np.generic]) -> None:
        """Add values at the end."""
        with self.path.open("ab") as handle:
            handle.write(np.ascontiguousarray(values, dtype=self.dtype).tobytes())
        self.length += len(values)

    def read(self) -> NDArray[np.generic]:
        """All of it, not in memory."""
        if not self.length:
            return np.zeros(0, dtype=self.dtype)
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.length,))


def _gather(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Tables of at least `rows` rows, except the last; none is empty."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        if batch.num_rows:
            waiting.append(batch)
            count += batch.num_rows
        if count >= rows:
            yield pa.Table.from_batches(waiting)
            waiting, count = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _request_hash(table: pa.Table) -> Ints:
    """A request belongs to one user; rows of one user at one moment are a request where none is named."""
    user = mix(table["user_index"].to_numpy().astype(np.uint64) + np.uint64(1))
    named = mix(moments(table).view(np.uint64))
    if "request_id" in table.column_names:
        given = table["request_id"].cast(pa.large_string()).combine_chunks()
        named = np.where(given.is_valid().to_numpy(zero_copy_only=False), hash_strings(given), named)
    return mix(user ^ named).view(np.int64)


def _sorted(table: pa.Table, order_by: Ints) -> pa.Table:
    if (np.diff(order_by) >= 0).all():
        return table
    return table.take(pa.array(np.argsort(order_by, kind="stable")))
