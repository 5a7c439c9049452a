"""Impression shards by split: in order, whole requests only, with bounded memory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adrec.data.disk.writing import link_file
from adrec.prepare.output.entities import canonical
from adrec.schema import PREPARED_IMPRESSIONS, SPLITS, WEIGHT

_GROUP_ROWS = 65_536


@dataclass
class SplitCounts:
    """What a split holds."""

    rows: int = 0
    requests: int = 0
    clicks: int = 0
    labelled: int = 0
    """rows whose click is known"""
    first: str | None = None
    last: str | None = None
    shards: int = 0
    impressions: int = 0
    """that the rows of a log of counts stand for; then clicks and labelled count impressions too"""

    def add(self, batch: pa.RecordBatch, requests: int) -> None:
        """Take in rows that follow those before."""
        self.rows += batch.num_rows
        self.requests += requests
        if WEIGHT in batch.schema.names:
            self._add_counts(batch)
        elif "click" in batch.schema.names:
            click = batch.column("click")
            self.clicks += pc.sum(pc.equal(click, 1)).as_py() or 0
            self.labelled += len(click) - click.null_count
        if "shown_at" not in batch.schema.names:
            return
        ends = pc.min_max(batch.column("shown_at"))
        first, last = (f"{np.datetime64(ends[end].value, 'us')}Z" for end in ("min", "max"))
        self.first = min(self.first or first, first)
        self.last = max(self.last or last, last)

    def as_dict(self) -> dict[str, Any]:
        """Counts with the click rate; `impressions` in a log of counts only."""
        counts = asdict(self) | {"click_rate": self.clicks / self.labelled if self.labelled else None}
        return counts if self.impressions else {key: value for key, value in counts.items() if key != "impressions"}

    def _add_counts(self, batch: pa.RecordBatch) -> None:
        weight = batch.column(WEIGHT).to_numpy()
        self.impressions += int(weight.sum())
        if "click" in batch.schema.names:
            click = np.asarray(batch.column("click").cast(pa.float64()).to_numpy(zero_copy_only=False))
            self.clicks += int(weight[click == 1].sum())
            self.labelled += int(weight[~np.isnan(click)].sum())


class SplitWriter:
    """Writes batches in row order to impressions/{train,valid,test}. Close it to finish the last shards."""

    def __init__(self, folder: Path, *, rows_per_shard: int, earlier: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """`earlier`: what the splits hold already, by `as_dict`, where rows are appended."""
        self._shards = []
        for split in SPLITS:
            known = (earlier or {}).get(split, {})
            counts = SplitCounts(**{key: known[key] for key in asdict(SplitCounts()) if key in known})
            self._shards.append(_Shards(folder / "impressions" / split, rows_per_shard, counts))

    def add(self, batch: pa.RecordBatch, part: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> None:
        """Rows of part 0, 1, 2 go to train, valid, test. `request` is dropped."""
        for number, shards in enumerate(self._shards):
            mask = part == number
            if mask.all():
                shards.add(batch)
            elif mask.any():
                shards.add(batch.filter(pa.array(mask)))

    def link(self, file: Path, part: int, batch: pa.RecordBatch) -> None:
        """A whole file that was written before, with rows of one part: `batch` has request, shown_at and click of it."""
        self._shards[part].link(file, batch)

    def close(self) -> dict[str, dict[str, Any]]:
        """Finish the shards. Returns what each split that has rows now holds."""
        for shards in self._shards:
            shards.end_shard()
        return {
            split: shards.counts.as_dict() for split, shards in zip(SPLITS, self._shards, strict=True) if shards.counts.rows
        }


class _Shards:
    """The shards of one split. Rows wait until a row group is full; a shard ends where a request does."""

    def __init__(self, folder: Path, rows_per_shard: int, counts: SplitCounts) -> None:
        self._folder, self._limit, self.counts = folder, rows_per_shard, counts
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._shard_rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._last_request = -1

    def add(self, batch: pa.RecordBatch) -> None:
        """Cut the rows where a shard is full and a request begins."""
        requests = batch.column("request").to_numpy()
        opens = requests != np.concatenate([[self._last_request], requests[:-1]])
        self.counts.add(batch, int(opens.sum()))
        self._last_request = int(requests[-1])
        starts = np.flatnonzero(opens)
        begin = 0
        while begin < len(requests):
            # The first request that begins at or behind the limit begins the next shard.
            full = begin + max(self._limit - self._shard_rows, 0)
            at = int(np.searchsorted(starts, max(full, begin + (self._shard_rows == 0))))
            end = int(starts[at]) if at < len(starts) else len(requests)
            self._hold(batch.slice(begin, end - begin))
            if end < len(requests):
                self.end_shard()
            begin = end

    def link(self, file: Path, batch: pa.RecordBatch) -> None:
        """The next shard is an earlier file."""
        self.end_shard()
        requests = batch.column("request").to_numpy()
        self.counts.add(batch, int(np.count_nonzero(np.diff(requests)) + 1))
        self._last_request = int(requests[-1])
        link_file(file, self._folder / f"part-{self.counts.shards:05d}.parquet")
        self.counts.shards += 1

    def end_shard(self) -> None:
        """Close the current file, if there is one."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self.counts.shards += 1
        self._shard_rows = 0

    def _hold(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        self._waiting.append(canonical(batch.drop_columns(["request"]), PREPARED_IMPRESSIONS))
        self._waiting_rows += batch.num_rows
        self._shard_rows += batch.num_rows
        if self._waiting_rows >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting)
        self._waiting, self._waiting_rows = [], 0
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._folder / f"part-{self.counts.shards:05d}.parquet"
            self._writer = pq.ParquetWriter(file, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=_GROUP_ROWS)
