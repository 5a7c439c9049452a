"""`adrec score`: bundle + rows → SCORED Parquet, streamed in constant memory and resumable by part after a kill."""

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import RenderableType
from rich.table import Table

from adrec.bundle import open_bundle
from adrec.config.score import ScoreConfig
from adrec.data.device import resolve_device
from adrec.data.tables import parquet_files, write_aside
from adrec.inference.onnx.backend import predictor_of
from adrec.inference.packing import unpack
from adrec.inference.predictor import Predictor, with_scores
from adrec.inference.score_source import Source, open_source
from adrec.terminal import Terminal
from adrec.training.trainer import work_folder


@dataclass(frozen=True)
class ScoreResult:
    """What was scored."""

    output: str
    rows: int
    mean_score: float
    clicks: float | None
    """observed click rate, where the rows have labels"""
    cold_ad_rows: float
    cold_user_rows: float
    columns: list[str]
    seconds: float
    resumed_rows: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return vars(self)

    def render(self) -> Iterable[RenderableType]:
        """A small table."""
        table = Table(show_header=False, title=f"Scored {self.rows:,} rows in {self.seconds:.1f} s", title_justify="left")
        table.add_row("mean score", f"{self.mean_score:.4f}")
        if self.clicks is not None:
            table.add_row("observed click rate", f"{self.clicks:.4f}")
        table.add_row("rows of cold ads, cold users", f"{self.cold_ad_rows:.1%}, {self.cold_user_rows:.1%}")
        if self.resumed_rows:
            table.add_row("rows kept from an interrupted run", f"{self.resumed_rows:,}")
        table.add_row("output", self.output)
        yield table


def run(config: ScoreConfig, terminal: Terminal) -> ScoreResult:
    """Score every row. A killed run goes on behind its last finished part."""
    began = time.monotonic()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    bundle = open_bundle(config.bundle)
    predictor = predictor_of(
        unpack(bundle), device=resolve_device(config.device), cache=config.cache, onnx=config.onnx, int8=config.onnx_int8
    )
    source = open_source(config, predictor)
    work = work_folder(config.output)
    _open_work(work, {"bundle": bundle.fingerprint, "rows": _fingerprint(config), "config": config.model_dump(mode="json")})
    parts = _finished(work)
    resumed = sum(pq.read_metadata(part).num_rows for part in parts)
    with terminal.progress("Scoring", source.rows, unit="rows") as advance:
        advance(resumed)
        for number, tables in enumerate(_shards(config, source, predictor, resumed, terminal), start=len(parts)):
            part = work / f"part-{number:06d}.parquet"
            with write_aside(part) as aside:
                rows = _write(tables, aside)
            parts.append(part)
            advance(rows)
    facts = _join(parts, config.output)
    shutil.rmtree(work, ignore_errors=True)
    return ScoreResult(output=str(config.output), seconds=time.monotonic() - began, resumed_rows=resumed, **facts)


def _shards(
    config: ScoreConfig, source: Source, predictor: Predictor, skip: int, terminal: Terminal
) -> Iterator[list[pa.Table]]:
    """Scored tables in groups of about `shard_rows` rows; one empty group where there are no rows at all."""
    waiting: list[pa.Table] = []
    count = 0
    for chunk in source.chunks(skip):
        scores = predictor.score_examples(
            chunk.examples,
            source.catalogs,
            batch_rows=config.batch_rows,
            baselines=config.baselines,
            terminal=terminal,
        )
        waiting.append(with_scores(chunk.table, chunk.examples, source.catalogs, scores))
        count += chunk.table.num_rows
        if count >= config.shard_rows:
            yield waiting
            waiting, count = [], 0
    if waiting:
        yield waiting


def _write(tables: list[pa.Table], path: Path) -> int:
    with pq.ParquetWriter(path, tables[0].schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    return sum(table.num_rows for table in tables)


def _join(parts: list[Path], output: Path) -> dict[str, Any]:
    """Put the parts end to end, row group by row group, and sum up what they hold."""
    sums = {"score": 0.0, "cold_ad": 0.0, "cold_user": 0.0, "click": 0.0}
    rows = labelled = 0
    schema = pq.read_schema(parts[0])
    with write_aside(output) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        for part in parts:
            file = pq.ParquetFile(part)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                writer.write_table(table)
                rows += table.num_rows
                for name in sums:
                    if name in table.column_names:
                        sums[name] += pc.sum(pc.cast(table[name], pa.float64())).as_py() or 0.0
                if "click" in table.column_names:
                    labelled += table.num_rows - table["click"].null_count
    total = max(rows, 1)
    return {
        "rows": rows,
        "mean_score": sums["score"] / total,
        "clicks": sums["click"] / labelled if labelled else None,
        "cold_ad_rows": sums["cold_ad"] / total,
        "cold_user_rows": sums["cold_user"] / total,
        "columns": schema.names,
    }


def _open_work(work: Path, identity: dict[str, Any]) -> None:
    """Keep the parts of an interrupted run of the same bundle, rows and settings; drop those of any other."""
    record = work / "run.json"
    wanted = json.loads(json.dumps(identity))
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) == wanted:
        return
    shutil.rmtree(work, ignore_errors=True)
    with write_aside(record) as aside:
        aside.write_text(json.dumps(wanted, indent=2), encoding="utf-8")


def _finished(work: Path) -> list[Path]:
    return sorted(work.glob("part-*.parquet"))


def _fingerprint(config: ScoreConfig) -> list[list[str | int]]:
    """Names, sizes and times of the files that are read: another input makes another run."""
    found: list[list[str | int]] = []
    for path in (config.prepared, config.impressions, config.ads, config.users, config.history):
        if path is not None:
            for file in parquet_files(path):
                facts = file.stat()
                found.append([str(file), facts.st_size, facts.st_mtime_ns])
    return found
