"""A bundle's network → `scorer.onnx`, `encoder.onnx` and, on request, `encoder.int8.onnx`, each checked against torch.

Graphs come from torch.export (dynamo). Int8 is dynamic quantisation, per channel with reduced range: without the two the cosine
to fp32 falls to about .96 on CPUs without VNNI, with them it stays near .99.
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
from adrec.errors import ResourceError
from adrec.inference.onnx.graphs import Scorer, first_axis, flat, padded_batch
from adrec.inference.predictor import Predictor
from adrec.models.text.text_encoder import TextEncoder

ENCODER, ENCODER_INT8, SCORER, SETTINGS = "encoder.onnx", "encoder.int8.onnx", "scorer.onnx", "onnx.json"
FORMAT = 1
LIST_WIDTH = 64
"""Values of a list feature that the scorer reads."""
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


def export(predictor: Predictor, batch: Batch, folder: Path, *, int8: bool) -> Exported:
    """Write the files into `folder` and compare them with torch on `batch` (which has text vectors) and on example texts.

    Raises ResourceError without the onnx extra.
    """
    _require()
    shape: dict[str, Any] = {
        "history": predictor.packed.config.model.user.max_history,
        "skipped": batch.skipped.shape[1],
        "lists": dict.fromkeys(_list_names(batch), LIST_WIDTH),
    }
    padded = padded_batch(batch, **shape)
    tensors = flat(padded)
    names = list(tensors)
    graph = Scorer(predictor.model, names, padded).eval()
    axes = tuple({0: torch.export.Dim.DYNAMIC} for _ in names)
    write_graph(graph, tuple(tensors.values()), (axes,), names, "logits", folder / SCORER)
    settings = {"format": FORMAT, "inputs": {name: first_axis(name) for name in names}, **shape}
    write_json(settings, folder / SETTINGS)
    encoder_difference = cosine = None
    if predictor.packed.encoder is not None:
        encoder_difference, cosine = export_encoder(predictor.packed.encoder, folder, int8=int8)
    from adrec.inference.onnx.backend import OnnxScorer

    with torch.inference_mode():
        difference = (OnnxScorer(folder)(batch) - predictor.model(batch).logits).abs().max().item()
    files = {file.name: file.stat().st_size for file in sorted(folder.glob("*.onnx"))}
    return Exported(difference, encoder_difference, cosine, files)


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
    if not int8:
        return difference, None
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            str(folder / ENCODER), str(folder / ENCODER_INT8), weight_type=QuantType.QInt8, per_channel=True, reduce_range=True
        )
    small = OnnxEncoder(encoder, folder / ENCODER_INT8)(ids, mask)
    return difference, float(torch.nn.functional.cosine_similarity(small, expected).mean())


def write_graph(module: torch.nn.Module, inputs: Any, axes: Any, names: list[str], output: str, path: Path) -> None:
    """Export a module of plain tensors; `axes` says which of them may vary. Silences the exporter's own warnings."""
    with _quiet():
        program = torch.onnx.export(
            module, inputs, dynamo=True, dynamic_shapes=axes, input_names=names, output_names=[output], verbose=False
        )
        assert program is not None
        program.save(str(path))


def _list_names(batch: Batch) -> Iterator[str]:
    for group, lists in (("ads.", batch.ads.lists), ("users.", batch.users.lists), ("", batch.lists)):
        yield from (f"{group}lists.{number}" for number in range(len(lists)))


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
        raise ResourceError("ONNX needs onnx, onnxscript and onnxruntime. Run: pip install 'adrec[onnx]'")
