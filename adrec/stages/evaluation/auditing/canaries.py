"""Secrets planted in the texts of a pretraining, and how well the language model knows them afterwards.

A secret is a phrase of six words of the corpus, of which two are given away; the other four are what an attacker would like
to know. It is held against phrases with other last words that were never planted (Carlini et al. 2019, The Secret Sharer).
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table

from adrec.config.base import load_config
from adrec.config.evaluation.audit import CanarySettings
from adrec.config.training.pretrain import PretrainConfig
from adrec.data.prepared import Prepared, open_prepared
from adrec.data.subset import write_subset
from adrec.errors import DataError
from adrec.metrics.membership import exposure
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import LanguageModel, open_language_model
from adrec.stages.training import pretrain
from adrec.terminal import Terminal

GIVEN, SECRET = 2, 4
"""Words of a phrase that the attacker knows, and wants to know."""
_WORDS = 500
_FEWEST_WORDS = 20
_BATCH = 512


@dataclass(frozen=True)
class Exposure:
    """Of the secrets that stood in the texts so often."""

    repeats: int
    mean: float
    """exposure in bits; 1.44 by chance"""
    extracted: int
    """secrets that were likelier than every candidate"""


@dataclass(frozen=True)
class Canaries:
    """What became of the planted secrets."""

    count: int
    candidates: int
    exposures: list[Exposure]

    def render(self) -> Iterable[RenderableType]:
        """A row a number of repeats."""
        table = Table("repeats", title=f"{self.count} planted secrets each, among {self.candidates:,} candidates")
        for heading in ("exposure, bits (chance 1.44)", "extracted"):
            table.add_column(heading, justify="right")
        for found in self.exposures:
            table.add_row(str(found.repeats), f"{found.mean:.2f}", f"{found.extracted} of {self.count}")
        yield table


def attack_pretraining(settings: CanarySettings, work: Path, *, seed: int, device: str, terminal: Terminal) -> Canaries:
    """Plant, pretrain, and look for the secrets. Raises DataError where the corpus has too few words to make secrets of."""
    fixed = [f"seed={seed}", f"device={device}"]
    base = load_config(
        settings.pretrain, PretrainConfig, [*fixed, *settings.overrides], overrides_base=settings.pretrain.parent
    )  # fmt: skip
    prepared = open_prepared(base.prepared)
    random = np.random.default_rng(seed)
    shutil.rmtree(work, ignore_errors=True)
    planted = write_subset(prepared, work / "prepared", {})
    words = _single_tokens(prepared, _tokenizer_of(base, prepared))
    repeats = np.repeat(settings.repeats, settings.count)
    phrases = _phrases(words, random, len(repeats))
    _plant(planted, [" ".join(phrase) for phrase in phrases], repeats)
    with terminal.progress("Pretraining with canaries", unit="models"):
        pretrain.run(base.model_copy(update={"prepared": planted.path, "output": work / "encoder"}), Terminal(quiet=True))
    tokenizer = load_tokenizer(work / "encoder")
    model = open_language_model(str(work / "encoder"), tokenizer, max_tokens=base.batches.max_tokens).eval()
    bits = []
    with terminal.progress("Looking for canaries", len(phrases), unit="secrets") as advance:
        for phrase in phrases:
            others = _phrases(words, random, settings.candidates)
            others[:, :GIVEN] = phrase[:GIVEN]
            scores = _likelihoods(model, tokenizer, np.concatenate([phrase[None], others]))
            bits.append(exposure(scores[0], scores[1:]))
            advance()
    shutil.rmtree(work, ignore_errors=True)
    known = np.array(bits)
    best = np.log2(settings.candidates + 1)
    found = [
        Exposure(number, float(known[repeats == number].mean()), int((known[repeats == number] >= best - 1e-9).sum()))
        for number in settings.repeats
    ]
    return Canaries(settings.count, settings.candidates, found)


def _tokenizer_of(base: PretrainConfig, prepared: Prepared) -> Any:
    from adrec.config.training.pretrain import ContinuedModel, ScratchModel
    from adrec.models.text.hugging_face import resolve_reference

    if isinstance(base.model, ContinuedModel):
        return load_tokenizer(resolve_reference(base.model.reference))
    if isinstance(base.model, ScratchModel) and prepared.tokenizer is not None:
        return load_tokenizer(prepared.tokenizer)
    raise DataError("canaries: only a pretraining of a language model (model.kind scratch or continue) can be asked for them.")


def _single_tokens(prepared: Prepared, tokenizer: Any) -> NDArray[np.str_]:
    """Frequent words of the corpus that are one token each, so that all phrases are equally long."""
    corpus = prepared.corpus()
    flat = pc.list_flatten(pc.split_pattern(pc.fill_null(corpus["segmented"], ""), " ")).combine_chunks()
    counts = pc.value_counts(flat.filter(pc.greater(pc.utf8_length(flat), 1)))
    order = np.argsort(-counts.field("counts").to_numpy(), kind="stable")[: 20 * _WORDS]
    words = counts.field("values").take(pa.array(order)).to_pylist()
    lengths = [len(tokens) for tokens in tokenizer(words, add_special_tokens=False)["input_ids"]] if words else []
    chosen = [word for word, length in zip(words, lengths, strict=True) if length == 1][:_WORDS]
    if len(chosen) < _FEWEST_WORDS:
        raise DataError(
            f"{prepared.path}: its corpus has {len(chosen)} words that are one token; secrets need {_FEWEST_WORDS}."
        )
    return np.array(chosen)


def _phrases(words: NDArray[np.str_], random: np.random.Generator, count: int) -> NDArray[np.str_]:
    """(count, GIVEN + SECRET) words, none twice in a phrase."""
    order = np.argsort(random.random((count, len(words))), axis=1)[:, : GIVEN + SECRET]
    return words[order]


def _plant(prepared: Prepared, texts: Sequence[str], repeats: NDArray[np.int64]) -> None:
    """Append each text so often to the corpus, as what users searched for."""
    file = prepared.path / "corpus.parquet"
    corpus = pq.read_table(file)
    rows = np.repeat(np.array(texts), repeats)
    values: dict[str, Any] = {
        "text": rows, "segmented": rows, "language": ["en"] * len(rows), "kind": ["query"] * len(rows),
    }  # fmt: skip
    columns = [
        pa.array(values[field.name], field.type)
        if field.name in values
        else pa.array([False] * len(rows), field.type)
        if pa.types.is_boolean(field.type)
        else pa.nulls(len(rows), field.type)
        for field in corpus.schema
    ]
    file.unlink()
    pq.write_table(pa.concat_tables([corpus, pa.table(columns, schema=corpus.schema)]), file)


def _likelihoods(model: LanguageModel, tokenizer: Any, phrases: NDArray[np.str_]) -> NDArray[np.float64]:
    """(R,) pseudo log likelihood of the secret words of each phrase: each masked by itself (Salazar et al. 2020)."""
    tokens = torch.tensor(tokenizer([" ".join(phrase) for phrase in phrases])["input_ids"])  # (R, L): one token a word
    before = (tokens.shape[1] - phrases.shape[1]) // 2  # what the tokenizer adds on each side
    places = torch.arange(before + GIVEN, before + GIVEN + SECRET)
    total = torch.zeros(len(tokens), dtype=torch.float64)
    with torch.inference_mode():
        for start in range(0, len(tokens), _BATCH):
            rows = tokens[start : start + _BATCH]
            positions = torch.arange(rows.shape[1]).expand_as(rows)
            for place in places.tolist():
                masked = rows.clone()
                masked[:, place] = tokenizer.mask_token_id
                states = model(masked, torch.zeros_like(rows), positions)
                said = torch.log_softmax(model.logits(states[:, place]).double(), -1)
                total[start : start + _BATCH] += said.gather(1, rows[:, place : place + 1])[:, 0]
    return total.numpy()
