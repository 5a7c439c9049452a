"""Secrets planted in the texts of a pretraining, and how well the language model knows them afterwards.

A secret is a phrase of six words of the corpus, of which two are given away; the other four are what an attacker would like
to know. Exposure holds it against phrases with other last words that were never planted (Carlini et al. 2019, The Secret
Sharer). Extraction knows no candidates: the model fills the four places itself, by beam search over its whole vocabulary.
Under `privacy` each copy of a secret is what one user wrote.

# R rows, L tokens a row, B beams
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
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
from torch import Tensor

from adrec.config.base import load_config
from adrec.config.evaluation.audit import CanarySettings
from adrec.config.training.pretrain import PretrainConfig
from adrec.data.prepared import Prepared, open_prepared
from adrec.data.subset import write_subset
from adrec.data.text.corpus import ordinary_ids
from adrec.errors import DataError
from adrec.metrics.membership import exposure
from adrec.models.text.hugging_face import load_tokenizer
from adrec.models.text.language_model import LanguageModel, open_language_model
from adrec.schema import USERS
from adrec.stages.training import pretrain
from adrec.terminal import Terminal

GIVEN, SECRET = 2, 4
"""Words of a phrase that the attacker knows, and wants to know."""
_WORDS = 500
_FEWEST_WORDS = 20
_BATCH = 512
_BEAMS = 16


@dataclass(frozen=True)
class Exposure:
    """Of the secrets that stood in the texts so often."""

    repeats: int
    mean: float
    """exposure in bits; 1.44 by chance"""
    likeliest: int
    """secrets that were likelier than every candidate"""
    extracted: int
    """secrets that the model says by itself, to who knows their first words"""


@dataclass(frozen=True)
class Canaries:
    """What became of the planted secrets."""

    count: int
    candidates: int
    exposures: list[Exposure]

    def render(self) -> Iterable[RenderableType]:
        """A row a number of repeats."""
        table = Table("repeats", title=f"{self.count} planted secrets each, among {self.candidates:,} candidates")
        for heading in ("exposure, bits (chance 1.44)", "likeliest", "extracted"):
            table.add_column(heading, justify="right")
        for found in self.exposures:
            heard = (f"{secrets} of {self.count}" for secrets in (found.likeliest, found.extracted))
            table.add_row(str(found.repeats), f"{found.mean:.2f}", *heard)
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
    texts = np.repeat(np.array([" ".join(phrase) for phrase in phrases]), repeats)
    _plant(planted, texts)
    if base.privacy is not None:
        _plant_users(planted, texts)
    with terminal.progress("Pretraining with canaries", unit="models"):
        pretrain.run(base.model_copy(update={"prepared": planted.path, "output": work / "encoder"}), Terminal(quiet=True))
    tokenizer = load_tokenizer(work / "encoder")
    model = open_language_model(str(work / "encoder"), tokenizer, max_tokens=base.batches.max_tokens).eval()
    bits, said = [], []
    ordinary = torch.from_numpy(ordinary_ids(tokenizer))
    with terminal.progress("Looking for canaries", len(phrases), unit="secrets") as advance:
        for phrase in phrases:
            others = _phrases(words, random, settings.candidates)
            others[:, :GIVEN] = phrase[:GIVEN]
            tokens = _tokens(tokenizer, np.concatenate([phrase[None], others]))
            scores = _likelihoods(model, tokens, _places(tokens), tokenizer.mask_token_id)
            bits.append(exposure(scores[0], scores[1:]))
            said.append(torch.equal(_filled(model, tokens[0], ordinary, tokenizer.mask_token_id), tokens[0]))
            advance()
    shutil.rmtree(work, ignore_errors=True)
    known, extracted = np.array(bits), np.array(said)
    likeliest = known >= np.log2(settings.candidates + 1) - 1e-9
    found = []
    for number in settings.repeats:
        own = repeats == number
        found.append(Exposure(number, float(known[own].mean()), int(likeliest[own].sum()), int(extracted[own].sum())))
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


def _plant(prepared: Prepared, texts: NDArray[np.str_]) -> None:
    """Append them to the corpus, as what users searched for."""
    values = {"text": texts, "segmented": texts, "language": ["en"] * len(texts), "kind": ["query"] * len(texts)}
    _append(prepared.path / "corpus.parquet", values, len(texts))


def _plant_users(prepared: Prepared, texts: NDArray[np.str_]) -> None:
    """Append users whose only interest each text is, with a training row each: a private pretraining learns from users."""
    first = len(prepared.users())
    names = [f"canary-{number}" for number in range(len(texts))]
    _append(prepared.path / USERS.file, {"user_id": names, "text": texts, "segmented": texts}, len(texts))
    file = prepared.split_files("train")[-1]
    rows = pq.read_table(file).slice(0, 1).take(pa.array(np.zeros(len(texts), np.int64)))
    nobodys = {"user_id": names, "user_index": first + np.arange(len(texts)), "query": pa.nulls(len(texts))}
    for at, field in enumerate(rows.schema):
        if field.name in nobodys:
            rows = rows.set_column(at, field, pa.array(nobodys[field.name], field.type))
    pq.write_table(rows, file.with_name(f"{file.stem}-canaries.parquet"))


def _append(file: Path, values: Mapping[str, Any], count: int) -> None:
    """So many rows to a Parquet file that may be a link: `values` of some columns, false and null of the others."""
    table = pq.read_table(file)
    columns = [
        pa.array(values[field.name], field.type)
        if field.name in values
        else pa.array([False] * count, field.type)
        if pa.types.is_boolean(field.type)
        else pa.nulls(count, field.type)
        for field in table.schema
    ]
    file.unlink()
    pq.write_table(pa.concat_tables([table, pa.table(columns, schema=table.schema)]), file)


def _tokens(tokenizer: Any, phrases: NDArray[np.str_]) -> Tensor:
    """(R, L): a token a word, and what the tokenizer adds on each side."""
    return torch.tensor(tokenizer([" ".join(phrase) for phrase in phrases])["input_ids"])


def _places(tokens: Tensor) -> list[int]:
    """Where the secret words stand."""
    before = (tokens.shape[1] - GIVEN - SECRET) // 2
    return list(range(before + GIVEN, before + GIVEN + SECRET))


def _likelihoods(model: LanguageModel, tokens: Tensor, places: Sequence[int], mask: int) -> NDArray[np.float64]:
    """(R,) pseudo log likelihood of the secret words of each row: each masked by itself (Salazar et al. 2020)."""
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for start in range(0, len(tokens), _BATCH):
        rows = tokens[start : start + _BATCH]
        for place in places:
            masked = rows.clone()
            masked[:, place] = mask
            total[start : start + _BATCH] += _said(model, masked, place).gather(1, rows[:, place : place + 1])[:, 0]
    return total.numpy()


def _filled(model: LanguageModel, row: Tensor, ordinary: Tensor, mask: int) -> Tensor:
    """(L,) the row with other words in the secret places: those that the model says, given the words before them.

    Place after place, with the later ones masked; of the beams that are left the one of the greatest pseudo likelihood.
    """
    places = _places(row[None])
    beams = row.clone()[None]
    beams[:, places] = mask
    total = torch.zeros(1, dtype=torch.float64)
    for place in places:
        scores = (total[:, None] + _said(model, beams, place)[:, ordinary]).flatten()  # (B * ordinary tokens,)
        total, best = scores.topk(min(_BEAMS, len(scores)))
        beams = beams[best // len(ordinary)]
        beams[:, place] = ordinary[best % len(ordinary)]
    return beams[int(_likelihoods(model, beams, places, mask).argmax())]


@torch.inference_mode()
def _said(model: LanguageModel, rows: Tensor, place: int) -> Tensor:
    """(R, V) log probabilities of each token at a place."""
    positions = torch.arange(rows.shape[1]).expand_as(rows)
    states = model(rows, torch.zeros_like(rows), positions)
    return torch.log_softmax(model.logits(states[:, place]).double(), -1)
