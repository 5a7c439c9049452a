"""A bundle's network → `scorer.onnx`, `encoder.onnx` and, on request, `encoder.int8.onnx`, each checked against torch.

Graphs come from torch.export (dynamo). Int8 has a scale for each token and each column of weights (`int8.quantised`).
"""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adrec.bundle import write_json
from adrec.data.batches.collate import Batch
from adrec.errors import DataError, ResourceError, install_hint
from adrec.inference.onnx.graphs import FORMAT, SETTINGS, Scorer, first_axis, flat, is_list, padded_batch
from adrec.inference.onnx.int8 import quantised
from adrec.inference.predictor import Predictor
from adrec.models.text.text_encoder import TextEncoder

ENCODER, ENCODER_INT8, SCORER = "encoder.onnx", "encoder.int8.onnx", "scorer.onnx"
TOLERANCE = 1e-4
"""Largest difference to torch that passes: of logits, and of vector elements in units of the largest."""
LEAST_COSINE = 0.95
"""Mean cosine of int8 vectors to those of fp32 below which they are others."""
_EXAMPLES = ("half price on running shoes this week", "五折 跑步鞋 本周", "a")


@dataclass(frozen=True)
class Exported:
    """Largest differences to torch on the rows given, and file sizes in bytes."""

    scorer_difference: float
    """of logits"""
    encoder_difference: float | None
    """of vector elements, fp32"""
    int8_cosine: float | None
    """mean cosine of int8 to fp32 vectors"""
    sizes: dict[str, int]
    widths: dict[str, int]
    """places that a row has for clicks and skipped ads: the bundle's own, so that nothing is cut; lists have any number"""


def export(predictor: Predictor, batch: Batch, folder: Path, *, int8: bool, bundle: str | None = None) -> Exported:
    """Write the files into `folder` and compare them with torch on `batch` (which has text vectors) and on example texts.

    `bundle`: the fingerprint of what is exported; another is then refused.

    Raises ResourceError without the onnx extra, DataError where a graph does not give what torch gives.
    """
    _require()
    user = predictor.packed.config.model.user
    # Examples hold at most as many skipped ads as clicks; a model that reads none has one place that it does not look at.
    shape = {"history": user.max_history, "skipped": user.max_history if user.skipped else 1}
    padded = padded_batch(batch, **shape, lists=2)
    tensors = flat(padded)
    names = list(tensors)
    graph = Scorer(predictor.model, names, padded).eval()
    dynamic = torch.export.Dim.DYNAMIC
    axes = tuple({0: dynamic, 1: dynamic} if is_list(name) else {0: dynamic} for name in names)
    write_graph(graph, tuple(tensors.values()), (axes,), names, "logits", folder / SCORER)
    settings = {"format": FORMAT, "bundle": bundle, "inputs": {name: first_axis(name) for name in names}, **shape}
    write_json(settings, folder / SETTINGS)
    encoder_difference = cosine = None
    if predictor.packed.encoder is not None:
        encoder_difference, cosine = export_encoder(predictor.packed.encoder, folder, int8=int8)
    from adrec.inference.onnx.backend import OnnxScorer

    with torch.inference_mode():
        difference = (OnnxScorer(folder)(batch) - predictor.model(batch).logits).abs().max().item()
    refuse_gap(difference, TOLERANCE, SCORER, "logits")
    files = {file.name: file.stat().st_size for file in sorted(folder.glob("*.onnx"))}
    return Exported(difference, encoder_difference, cosine, files, shape)


def export_encoder(encoder: TextEncoder, folder: Path, *, int8: bool) -> tuple[float, float | None]:
    """The encoder alone: largest difference to torch, and the mean cosine of int8 to fp32 (None without)."""
    from adrec.inference.onnx.backend import OnnxEncoder

    ids, mask = encoder.tokenize(list(_EXAMPLES))
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    # The bundle's encoder runs where the predictor put it; the graph is made on the CPU.
    write_graph(encoder.cpu(), (ids, mask), (dynamic, dynamic), ["input_ids", "attention_mask"], "vectors", folder / ENCODER)
    with torch.inference_mode():
        expected = encoder(ids, mask)
        difference = (OnnxEncoder(encoder, folder / ENCODER)(ids, mask) - expected).abs().max().item()
    refuse_gap(difference, TOLERANCE * max(1.0, expected.abs().max().item()), ENCODER, "vectors")
    if not int8:
        return difference, None
    import onnx

    onnx.save(quantised(onnx.load(folder / ENCODER)), folder / ENCODER_INT8)
    small = OnnxEncoder(encoder, folder / ENCODER_INT8)(ids, mask)
    cosine = float(torch.nn.functional.cosine_similarity(small, expected).mean())
    refuse_gap(1 - cosine, 1 - LEAST_COSINE, ENCODER_INT8, "directions of vectors")
    return difference, cosine


def write_graph(module: torch.nn.Module, inputs: Any, axes: Any, names: list[str], output: str, path: Path) -> None:
    """Export a module of plain tensors; `axes` says which of them may vary. Silences the exporter's own warnings."""
    with _quiet():
        program = torch.onnx.export(
            module, inputs, dynamo=True, dynamic_shapes=axes, input_names=names, output_names=[output], verbose=False
        )
        assert program is not None
        program.save(str(path))


def refuse_gap(difference: float, most: float, file: str, what: str) -> None:
    """Raise DataError where `what` the file gives differs from torch's by more than `most`."""
    if not difference <= most:  # NaN is refused too
        raise DataError(
            f"{file}: its {what} differ from torch's by {difference:.2g}, at most {most:.2g} passes. Nothing was written: "
            "score with torch, or export with other versions of torch and onnxruntime."
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about packages that it does not need; what matters is compared afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _require() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        raise ResourceError(f"ONNX needs onnx, onnxscript and onnxruntime. Run: {install_hint('onnx')}")
