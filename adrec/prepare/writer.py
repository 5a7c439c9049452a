"""Impression shards by split: in order, whole requests only, with bounded memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.prepare.entities import canonical
from adrec.schema import PREPARED_IMPRESSIONS, SPLITS

_GROUP_ROWS = 131_072


class SplitWriter:
    """Writes batches in row order to impressions/{train,valid,test}. Close it to finish the last shards."""

    def __init__(self, folder: Path, *, rows_per_shard: int) -> None:
        self._shards = [_Shards(folder / "impressions" / split, rows_per_shard) for split in SPLITS]

    def add(self, batch: pa.RecordBatch, part: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> None:
        """Rows of part 0, 1, 2 go to train, valid, test; other parts are left out. `request` is dropped."""
        for number, shards in enumerate(self._shards):
            mask = part == number
            if mask.all():
                shards.add(batch)
            elif mask.any():
                shards.add(batch.filter(pa.array(mask)))

    def close(self) -> dict[str, int]:
        """Rows written by split."""
        return {split: shards.close() for split, shards in zip(SPLITS, self._shards, strict=True)}


class _Shards:
    """The shards of one split. Rows wait until a row group is full; a shard ends where a request does."""

    def __init__(self, folder: Path, rows_per_shard: int) -> None:
        self._folder, self._limit = folder, rows_per_shard
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._shard_rows = self._rows = self._shard = 0
        self._writer: pq.ParquetWriter | None = None
        self._last_request = -1

    def add(self, batch: pa.RecordBatch) -> None:
        requests = batch.column("request").to_numpy()
        start = 0
        while start < len(requests):
            # The first row, at or past the limit, at which a new request begins.
            room = self._limit - self._shard_rows
            end = len(requests)
            if room < len(requests) - start:
                at = max(start + room, start)
                before = requests[at - 1] if at > 0 else self._last_request
                later = np.flatnonzero(requests[at:] != before) if at < len(requests) else np.zeros(0, np.int64)
                end = at + int(later[0]) if len(later) else len(requests)
            self._hold(batch.slice(start, end - start))
            self._last_request = int(requests[end - 1]) if end > start else self._last_request
            if end < len(requests):
                self._end_shard()
            start = end

    def close(self) -> int:
        self._end_shard()
        return self._rows

    def _hold(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        self._waiting.append(canonical(batch.drop_columns(["request"]), PREPARED_IMPRESSIONS))
        self._waiting_rows += batch.num_rows
        self._shard_rows += batch.num_rows
        self._rows += batch.num_rows
        if self._waiting_rows >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting)
        self._waiting, self._waiting_rows = [], 0
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._folder / f"part-{self._shard:05d}.parquet"
            self._writer = pq.ParquetWriter(file, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=_GROUP_ROWS)

    def _end_shard(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._shard += 1
        self._shard_rows = 0
