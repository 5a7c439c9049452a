"""pretrain-mlm with `model.kind: autoencoder`: ads in, short codes out, with what is lost beside PCA of the same width."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import RenderableType
from rich.table import Table
from safetensors.torch import save_file

from adrec.config.base import save_config
from adrec.config.training.pretrain import AutoencoderModel, PretrainConfig
from adrec.data.arrays import unit_rows
from adrec.data.device import resolve_device
from adrec.data.disk.outputs import ENCODER
from adrec.data.disk.tables import write_table
from adrec.data.disk.writing import folder_aside
from adrec.data.prepared import Prepared
from adrec.data.text.vector_cache import cached_vectors
from adrec.errors import AdrecError, DataError
from adrec.models.text.autoencoder import AdAutoencoder, AdErrors, AdInputs, code_loss
from adrec.models.text.text_encoder import encode_texts, load_text_encoder
from adrec.terminal import Terminal
from adrec.training.loop.loader import shuffled
from adrec.training.loop.optimizer import adamw_of

BATCH_ADS = 128
"""Ads a step: their cosines to each other are what `NEIGHBOUR_WEIGHT` keeps."""
NEIGHBOUR_WEIGHT = 100.0
"""Squared differences of cosines are some hundredth of the reconstruction errors."""

_HELD_OUT = 0.1
_NEIGHBOURS = 10


@dataclass(frozen=True)
class AutoencoderResult:
    """Errors on held-out ads. Recalls: the share of an ad's ten nearest (by text) that are among its ten nearest by code."""

    output: Path
    ads: int
    width: int
    text_width: int
    errors: dict[str, float]
    recall: float
    pca_recall: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {**vars(self), "output": str(self.output)}

    def render(self) -> Iterable[RenderableType]:
        """One table."""
        table = Table(title="Autoencoder, held-out ads", show_header=False)
        table.add_row("width", f"{self.text_width} to {self.width}")
        table.add_row("text, 1 - cosine", f"{self.errors['text']:.4f}")
        table.add_row("numeric, squared deviations", f"{self.errors['numeric']:.4f}")
        table.add_row("categories, nats", f"{self.errors['categorical']:.4f}")
        table.add_row("ten nearest kept", f"{self.recall:.1%} (PCA of the same width {self.pca_recall:.1%})")
        yield table
        yield f"codes: {self.output / 'codes.parquet'}"


def run_autoencoder(config: PretrainConfig, prepared: Prepared, terminal: Terminal) -> AutoencoderResult:
    """Raises DataError for fewer than 20 ads, AdrecError for a loss that is not finite."""
    settings = config.model
    assert isinstance(settings, AutoencoderModel)
    device = resolve_device(config.device)
    table = prepared.ads()
    if len(table) < 20:
        raise DataError(f"{prepared.path}: {len(table)} ads are too few for an autoencoder; 20 are the least.")
    inputs, cardinalities = _inputs(settings, prepared, table, device, terminal)
    torch.manual_seed(config.seed)
    model = AdAutoencoder(
        text_dimension=inputs.text.shape[1],
        numeric=inputs.numeric.shape[1],
        cardinalities=cardinalities,
        width=settings.width,
    ).to(device)
    order = np.random.default_rng(config.seed).permutation(len(table))
    held_out, training = np.split(order, [max(10, round(_HELD_OUT * len(table)))])
    text = inputs.text.numpy()
    directions, mean = _principal(text[training], settings.width)
    model.start_from(torch.from_numpy(directions).to(device), torch.from_numpy(mean).to(device))
    _fit(model, inputs, training, config, device, terminal)
    model.eval()
    with torch.inference_mode():
        errors = model.errors(_take(inputs, held_out, device))
        parts = np.array_split(np.arange(len(table)), max(1, len(table) // 8192))
        codes = np.concatenate([model(_take(inputs, part, device)).cpu().numpy() for part in parts])
    result = AutoencoderResult(
        output=config.output,
        ads=len(table),
        width=settings.width,
        text_width=inputs.text.shape[1],
        errors={name: float(value) for name, value in errors._asdict().items()},
        recall=_recall(codes, text, held_out),
        pca_recall=_recall((unit_rows(text) - mean) @ directions.T, text, held_out),
    )
    with folder_aside(config.output, ENCODER) as folder:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}, folder / "autoencoder.safetensors"
        )
        flat = pa.array(codes.reshape(-1), pa.float32())
        listed = pa.FixedSizeListArray.from_arrays(flat, settings.width)
        write_table(pa.table({"ad_id": table.column("ad_id"), "code": listed}), folder / "codes.parquet")
        save_config(config, folder / "config.yaml")
        (folder / "metrics.json").write_text(json.dumps(result.as_dict(), indent=2), encoding="utf-8")
    return result


def _inputs(
    settings: AutoencoderModel, prepared: Prepared, table: pa.Table, device: str, terminal: Terminal
) -> tuple[AdInputs, list[int]]:
    encoder = load_text_encoder(settings.reference)
    texts = [str(text) for text in table.column("text").to_numpy()]
    with terminal.progress("encoding ads", len(set(texts)), unit="texts") as advance:
        vectors = cached_vectors(
            texts,
            fingerprint=encoder.fingerprint,
            encode=lambda some: encode_texts(encoder, some, device=device, advance=advance),
        )
    features = prepared.features()["ads"]
    arrays = features.transform(table)
    inputs = AdInputs(
        torch.from_numpy(vectors),
        torch.from_numpy(np.asarray(arrays.numeric, np.float32)),
        torch.from_numpy(np.asarray(arrays.categorical, np.int64)),
    )
    return inputs, [int(size) for size in features.cardinalities]


def _fit(
    model: AdAutoencoder, inputs: AdInputs, rows: np.ndarray, config: PretrainConfig, device: str, terminal: Terminal
) -> None:
    training = config.training
    batches = max(1, len(rows) // BATCH_ADS)
    total = batches * training.epochs if training.max_steps is None else min(batches * training.epochs, training.max_steps)
    made = adamw_of(training, [(model, training.learning_rate)], total_steps=total)
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    with terminal.progress("autoencoder", total, unit="steps") as advance:
        for step in range(total):
            epoch, place = divmod(step, batches)
            chosen = rows[shuffled(len(rows), seed=config.seed, epoch=epoch)[place::batches]]
            ads = _take(inputs, chosen, device)
            errors: AdErrors = model.errors(ads)
            neighbours = code_loss(model(ads), ads.text)
            loss = errors.text + errors.numeric + errors.categorical + NEIGHBOUR_WEIGHT * neighbours
            if not torch.isfinite(loss):
                raise AdrecError(f"step {step}: the loss is {float(loss.detach())}. Lower training.learning_rate.")
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            scheduler.step()
            advance()


def _take(inputs: AdInputs, rows: np.ndarray, device: str) -> AdInputs:
    picked = torch.from_numpy(rows)
    return AdInputs(*(part[picked].to(device) for part in inputs))


def _principal(text: np.ndarray, width: int, most: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """The `width` main directions (K, D) of the unit vectors, fewer where there are fewer, and their mean (D,)."""
    unit = unit_rows(text)
    mean = unit.mean(axis=0)
    _, _, directions = np.linalg.svd(unit[:most] - mean, full_matrices=False)
    return np.ascontiguousarray(directions[:width]), mean


def _recall(codes: np.ndarray, text: np.ndarray, rows: np.ndarray, most: int = 500) -> float:
    """Share of the nearest ads by text that are also nearest by code, averaged over some ads."""
    rows = rows[:most]

    def nearest(vectors: np.ndarray) -> np.ndarray:
        unit = unit_rows(vectors)
        cosines = unit[rows] @ unit.T
        cosines[np.arange(len(rows)), rows] = -np.inf
        return np.argpartition(-cosines, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]

    ours, true = nearest(codes), nearest(text)
    return float((ours[:, :, None] == true[:, None, :]).any(axis=2).mean())
