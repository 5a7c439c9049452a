"""`adrec score`: bundle + rows → SCORED Parquet, streamed in constant memory and resumable by part after a kill."""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import RenderableType
from rich.table import Table

from adrec.bundle import Bundle, open_bundle
from adrec.config.inference.score import ScoreConfig
from adrec.data.disk.outputs import SCORE_PARTS, SCORES
from adrec.data.disk.row_files import STANDARD_OUTPUT, row_format, row_writer, to_standard_output
from adrec.data.disk.tables import file_facts, iter_batches
from adrec.data.disk.writing import folder_aside, link_file, put_file, write_aside
from adrec.data.prepared import open_prepared
from adrec.inference.ahead import ahead
from adrec.inference.packing import how_to_read
from adrec.inference.score_source import count_rows, stage_rows
from adrec.inference.shards import part_path, score_shards
from adrec.prepare.own_files import files_of, with_standard_input
from adrec.schema import CATALOGUE_RANK, WEIGHT
from adrec.terminal import Terminal


@dataclass(frozen=True)
class ScoreResult:
    """What was scored."""

    output: str
    rows: int
    mean_score: float
    clicks: float | None
    """observed click rate, where the rows have labels"""
    cold_ad_rows: float | None
    """share of the rows; None where the log names no ads"""
    cold_user_rows: float | None
    columns: list[str]
    seconds: float
    resumed_rows: int
    is_preference: bool = False
    """whether the bundle learned from clicks alone: its scores order, and are no probabilities"""
    ranked_clicks: int | None = None
    """clicks that got a rank in the catalogue; None where none was asked for"""
    mean_rank: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return vars(self)

    def render(self) -> Iterable[RenderableType]:
        """A small table."""
        table = Table(show_header=False, title=f"Scored {self.rows:,} rows in {self.seconds:.1f} s", title_justify="left")
        table.add_row("mean preference" if self.is_preference else "mean score", f"{self.mean_score:.4f}")
        if self.ranked_clicks is not None:
            table.add_row("clicks ranked among all ads", f"{self.ranked_clicks:,}, mean rank {self.mean_rank:,.1f}")
        if self.clicks is not None and not self.is_preference:
            table.add_row("observed click rate", f"{self.clicks:.4f}")
        for of, share in (("ads", self.cold_ad_rows), ("users", self.cold_user_rows)):
            if share is not None:
                table.add_row(f"rows of cold {of}", f"{share:.1%}")
        if self.resumed_rows:
            table.add_row("rows kept from an interrupted run", f"{self.resumed_rows:,}")
        table.add_row("output", self.output)
        yield table


def run(config: ScoreConfig, terminal: Terminal) -> ScoreResult:
    """Score every row. A killed run goes on with the parts that are not finished; one on a pipe starts over."""
    if config.output == STANDARD_OUTPUT:
        terminal.leave_stdout()
        with tempfile.TemporaryDirectory(prefix="adrec-scores-") as folder:
            result = run(config.model_copy(update={"output": Path(folder) / "scored.csv"}), terminal)
            to_standard_output(Path(folder) / "scored.csv")
            return replace(result, output="standard output")
    if config.impressions is None or not config.impressions.is_standard_input:
        return _run(config, terminal)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.output.parent, prefix=f".{config.output.name}.input-") as folder:
        return _run(config.model_copy(update={"impressions": with_standard_input(config.impressions, Path(folder))}), terminal)


def _run(config: ScoreConfig, terminal: Terminal) -> ScoreResult:
    began = time.monotonic()
    bundle = open_bundle(config.bundle, verify=False)  # whoever loads its weights checks it
    if _learned(config, bundle):
        terminal.warn(f"{config.bundle} has learned the rows of '{config.split}': its figures there flatter it.")
    work = config.output.with_name(f".{config.output.name}.work")
    own = [file for table in (config.impressions, config.ads, config.users, config.history) for file in files_of(table)]
    inputs = file_facts((config.prepared, *own))
    _open_work(work, {"bundle": bundle.fingerprint, "rows": inputs, "config": _identity(config)})
    tables = stage_rows(config, *how_to_read(bundle), work)
    rows = count_rows(config, tables)
    parts = [part_path(work, number) for number in range(max(1, math.ceil(rows / config.shard_rows)))]
    missing = [number for number, chunk_file in enumerate(parts) if not chunk_file.exists()]
    resumed = sum(pq.read_metadata(chunk_file).num_rows for chunk_file in parts if chunk_file.exists())
    if resumed:
        terminal.tell(f"Scoring: goes on at row {resumed:,}")
    with terminal.progress("Scoring", rows, unit="rows", done=resumed) as advance:
        for scored in score_shards(config, tables, missing, work, terminal):
            advance(scored)
    facts = _put_parts(parts, config.output, bundle) if config.parts else _join(parts, config.output)
    shutil.rmtree(work, ignore_errors=True)
    return ScoreResult(output=str(config.output), seconds=time.monotonic() - began, resumed_rows=resumed,
                       is_preference="implicit" in bundle.manifest, **facts)  # fmt: skip


def _learned(config: ScoreConfig, bundle: Bundle) -> bool:
    """Whether the rows to score are among those that the bundle was trained on."""
    if config.prepared is None or config.split not in bundle.manifest.get("learned_splits", ("train",)):
        return False
    return open_prepared(config.prepared).fingerprint == bundle.manifest.get("data_fingerprint")


def _join(parts: list[Path], output: Path) -> dict[str, Any]:
    """Put the parts end to end, row group by row group (one part is the output as it stands), and sum up what they hold."""
    facts = _facts(parts)
    if len(parts) == 1 and row_format(output) == "parquet":
        put_file(parts[0], output, SCORES)
        return facts
    schema = pq.read_schema(parts[0])
    with write_aside(output, SCORES) as aside, row_writer(aside, schema, "scored", called=output) as writer:
        for part in parts:
            file = pq.ParquetFile(part)
            for table in ahead(file.read_row_group(group) for group in range(file.num_row_groups)):
                writer.write_table(table)
    return facts


def _put_parts(parts: list[Path], output: Path, bundle: Bundle) -> dict[str, Any]:
    """The parts as files of a folder, and the manifest that names them; in a store the manifest comes last."""
    facts = _facts(parts)
    with folder_aside(output, SCORE_PARTS) as folder:
        for part in parts:
            link_file(part, folder / part.name)
        rows = {part.name: pq.read_metadata(part).num_rows for part in parts}
        manifest = {"scored": rows, "rows": facts["rows"], "bundle": bundle.fingerprint, "files": list(rows)}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return facts


def _facts(parts: list[Path]) -> dict[str, Any]:
    """Means over all rows."""
    columns = pq.read_schema(parts[0]).names
    sums = dict.fromkeys((name for name in ("score", "cold_ad", "cold_user", "click", CATALOGUE_RANK) if name in columns), 0.0)
    rows = labelled = ranked = 0
    weighed = scored = clicks = weighed_labels = 0.0  # of the impressions that rows of counts stand for
    counted = [WEIGHT] if WEIGHT in columns and pa.types.is_float64(pq.read_schema(parts[0]).field(WEIGHT).type) else []
    for part in parts:
        for batch in iter_batches(part, columns=[*sums, *counted]):
            rows += batch.num_rows
            for name in sums:
                sums[name] += pc.sum(pc.cast(batch[name], pa.float64())).as_py() or 0.0
            if "click" in sums:
                labelled += batch.num_rows - batch["click"].null_count
            if counted:
                weight = batch[WEIGHT]
                weighed += pc.sum(weight).as_py() or 0.0
                scored += pc.sum(pc.multiply(weight, pc.cast(batch["score"], pa.float64()))).as_py() or 0.0
                if "click" in sums:
                    clicks += pc.sum(pc.multiply(weight, pc.cast(batch["click"], pa.float64()))).as_py() or 0.0
                    weighed_labels += pc.sum(pc.if_else(pc.is_valid(batch["click"]), weight, 0.0)).as_py() or 0.0
            if CATALOGUE_RANK in sums:
                ranked += batch.num_rows - batch[CATALOGUE_RANK].null_count
    total = max(rows, 1)
    rate = sums["click"] / labelled if labelled else None
    if counted:
        rate = clicks / weighed_labels if weighed_labels else None
    return {
        "rows": rows,
        "mean_score": scored / weighed if weighed else sums["score"] / total,
        "clicks": rate,
        "cold_ad_rows": sums["cold_ad"] / total if "cold_ad" in sums else None,
        "cold_user_rows": sums["cold_user"] / total if "cold_user" in sums else None,
        "columns": columns,
        "ranked_clicks": ranked if CATALOGUE_RANK in sums else None,
        "mean_rank": sums[CATALOGUE_RANK] / ranked if ranked else None,
    }


def _identity(config: ScoreConfig) -> dict[str, Any]:
    """What decides a part: not how many workers share the parts."""
    return config.model_dump(mode="json", exclude={"workers", "threads", "cluster"})


def _open_work(work: Path, identity: dict[str, Any]) -> None:
    """Keep the parts of an interrupted run of the same bundle, rows and settings; drop those of any other."""
    record = work / "run.json"
    wanted = json.loads(json.dumps(identity))
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) == wanted:
        return
    shutil.rmtree(work, ignore_errors=True)
    with write_aside(record) as aside:
        aside.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
