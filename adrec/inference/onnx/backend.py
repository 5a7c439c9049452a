"""The Predictor on onnxruntime: the same object, with the network and the encoder replaced by exported graphs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adrec.bundle import open_bundle
from adrec.data.batches.collate import Batch
from adrec.errors import DataError, ResourceError, install_hint
from adrec.inference.click_model import ClickModel
from adrec.inference.golden import read_golden
from adrec.inference.onnx.graphs import FORMAT, SETTINGS, flat, padded_batch
from adrec.inference.packing import unpack
from adrec.inference.predictor import Predictor
from adrec.models.text.text_encoder import TextEncoder


def onnx_predictor(
    packed: ClickModel,
    folder: Path,
    *,
    int8: bool = False,
    cache: Path | None = None,
    keep_typed: bool = True,
    bundle: str | None = None,
) -> Predictor:
    """A predictor over a folder that `adrec export` wrote from the same bundle, whose fingerprint may be given.

    Raises DataError, ResourceError.
    """
    scorer = OnnxScorer(folder)
    if bundle is not None and scorer.bundle not in {None, bundle}:
        raise DataError(f"{folder}: exported from another bundle than the one named. Run 'adrec export' on that one.")
    encoder = None
    if packed.encoder is not None:
        encoder = OnnxEncoder(packed.encoder, folder / ("encoder.int8.onnx" if int8 else "encoder.onnx"))
    return Predictor(packed, cache=cache, network=scorer, encoder=encoder, keep_typed=keep_typed)


def predictor_of(
    bundle: Path, *, device: str, cache: Path | None, onnx: Path | None, int8: bool = False, keep_typed: bool = True
) -> Predictor:
    """The predictor that a config asks for: torch on `device`, or onnxruntime over the folder `onnx`."""
    if onnx is not None:
        opened = open_bundle(bundle)
        predictor = onnx_predictor(
            unpack(opened), onnx, int8=int8, cache=cache, keep_typed=keep_typed, bundle=opened.fingerprint
        )
        golden = read_golden(opened)
        if golden is not None and not int8:  # int8 vectors are others by what `adrec export` said
            predictor.check(golden, where=f"{onnx}, of {bundle}")
        return predictor
    return Predictor.load(bundle, device=device, cache=cache, keep_typed=keep_typed)


class OnnxScorer:
    """A batch with text vectors → (B, K) logits."""

    def __init__(self, folder: Path) -> None:
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            self.names: list[str] = list(settings["inputs"])
            self.shape: dict[str, Any] = {name: settings[name] for name in ("history", "skipped", "lists") if name in settings}
            self.bundle: str | None = settings.get("bundle")
            written = int(settings.get("format", FORMAT))
        except (OSError, ValueError, KeyError):
            raise DataError(f"{folder / SETTINGS}: missing or damaged. Run 'adrec export' again.") from None
        if written != FORMAT:
            raise DataError(f"{folder / SETTINGS}: written by another version of adrec. Run 'adrec export' again.")
        self.session = _session(folder / "scorer.onnx")

    def __call__(self, batch: Batch) -> Tensor:
        """The logits."""
        given = flat(padded_batch(batch, **self.shape))
        (logits,) = self.session.run(None, {name: given[name].numpy() for name in self.names})
        return torch.from_numpy(logits)


class OnnxEncoder(TextEncoder):
    """A text encoder whose vectors come from a graph; tokenizer and settings are those of `encoder`."""

    def __init__(self, encoder: TextEncoder, path: Path) -> None:
        super().__init__(
            backbone=torch.nn.Identity(),
            tokenizer=encoder.tokenizer,
            dimension=encoder.dimension,
            pooling=encoder.pooling,
            max_tokens=encoder.max_tokens,
            template=encoder.template,
            reading=replace(encoder.reading, width=None),
        )
        self.session = _session(path)
        self._fingerprint = f"{encoder.fingerprint}-{path.stem}"

    @property
    def fingerprint(self) -> str:
        """That of the encoder with the graph's name, so that cached vectors of fp32 and int8 are kept apart."""
        return self._fingerprint

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`input_ids`, `attention_mask` (U, T) int64 -> (U, D) float32."""
        given = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        (vectors,) = self.session.run(None, given)
        return torch.from_numpy(np.asarray(vectors, np.float32))


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ResourceError(f"ONNX needs onnxruntime. Run: {install_hint('onnx')}") from None
    if not path.exists():
        raise DataError(f"{path}: no such file. Run 'adrec export' to write it.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise DataError(f"{path}: not a whole ONNX file ({str(error).splitlines()[0][:120]}). Export it again.") from error
