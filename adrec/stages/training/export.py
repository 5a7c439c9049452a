"""`adrec export`: the bundle's network as ONNX files, compared with torch on the user's own rows."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from adrec.bundle import open_bundle
from adrec.config.base import save_config
from adrec.config.training.export import ExportConfig
from adrec.data.batches.collate import Collator
from adrec.data.disk.outputs import EXPORT
from adrec.data.disk.writing import folder_aside
from adrec.errors import DataError
from adrec.inference.onnx.backend import onnx_predictor
from adrec.inference.onnx.exporting import TOLERANCE, Exported, export, refuse_gap
from adrec.inference.packing import unpack
from adrec.inference.predictor import Predictor
from adrec.inference.score_source import open_source
from adrec.terminal import Terminal

USUAL = 0.99
"""Share of the rows whose scores must be torch's to TOLERANCE."""
PARITY_ROWS = 2000  # compared with torch: the largest gap of more is hardly larger


@dataclass(frozen=True)
class ExportResult:
    """Sizes of the files, and largest differences to torch."""

    output: str
    exported: Exported
    rows: int
    score_difference: float
    """of calibrated scores, encoder and scorer together, fp32"""
    beyond: float
    """share of rows whose score differs by more than TOLERANCE: trees that split where a cosine differs in its last bits"""
    int8_score_difference: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {**vars(self), "exported": vars(self.exported)}

    def render(self) -> Iterable[RenderableType]:
        """A table of parity."""
        table = Table(title=f"Parity with torch, {self.rows:,} rows", title_justify="left", show_header=False)
        table.add_row("scorer: largest difference of a logit", f"{self.exported.scorer_difference:.1e}")
        if self.exported.encoder_difference is not None:
            table.add_row("encoder: largest difference of an element", f"{self.exported.encoder_difference:.1e}")
        table.add_row("both: largest difference of a score", f"{self.score_difference:.1e}")
        if self.beyond:
            table.add_row(f"rows that differ by more than {TOLERANCE:g}, by trees beside the network", f"{self.beyond:.2%}")
        if self.exported.int8_cosine is not None and self.int8_score_difference is not None:
            table.add_row("int8 encoder: mean cosine to fp32", f"{self.exported.int8_cosine:.4f}")
            table.add_row("int8: largest difference of a score", f"{self.int8_score_difference:.1e}")
        widths = self.exported.widths
        cut = f"nothing: {widths['history']} clicks and {widths['skipped']} skipped ads, as the bundle, and all values of lists"
        table.add_row("what the graphs cut", cut)
        for name, size in self.exported.sizes.items():
            table.add_row(name, f"{size / 1e6:.1f} MB")
        table.add_row("output", self.output)
        yield table


def run(config: ExportConfig, terminal: Terminal) -> ExportResult:
    """Export and compare. Raises DataError where there is no row to compare."""
    bundle = open_bundle(config.bundle)
    packed = unpack(bundle)
    predictor = Predictor(packed, cache=config.cache)
    source = open_source(config, predictor)
    examples = next((chunk.examples for chunk in source.chunks(0) if len(chunk.examples) > 1), None)
    if examples is None:
        raise DataError("export compares at least two rows with torch; the rows given are fewer.")
    examples = examples.take(np.arange(min(PARITY_ROWS, len(examples))))
    catalogs = source.catalogs
    examples = predictor.matched(examples, catalogs, terminal)
    collate = Collator(catalogs.ads, catalogs.users, catalogs.ad_texts, catalogs.user_texts, catalogs.queries, tasks=())
    batch = collate(examples, np.arange(len(examples)))
    expected = predictor.score_examples(examples, catalogs, baselines=False).score
    with folder_aside(config.output, EXPORT) as folder, terminal.progress("Exporting", unit="files"):
        exported = export(predictor, batch, folder, int8=config.int8, bundle=bundle.fingerprint)
        differences = []
        for int8 in (False, True) if config.int8 else (False,):
            twin = onnx_predictor(packed, folder, int8=int8, cache=folder / "cache")
            theirs = open_source(config, twin)
            difference = twin.score_examples(examples, theirs.catalogs, baselines=False).score
            differences.append(np.abs(difference - expected))
        # Trees beside the network may split between two values of a cosine that differ in their last bits: a few rows do.
        refuse_gap(float(np.quantile(differences[0], USUAL)), TOLERANCE, "scorer.onnx and encoder.onnx", "scores")
        shutil.rmtree(folder / "cache", ignore_errors=True)
        save_config(config, folder / "config.yaml")
    beyond = float((differences[0] > TOLERANCE).mean())
    largest = [float(difference.max()) for difference in differences]
    return ExportResult(str(config.output), exported, len(examples), largest[0], beyond, largest[1] if config.int8 else None)
