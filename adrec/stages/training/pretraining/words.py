"""pretrain-mlm for word vectors: train them by word2vec, or take them from a file, as a light text encoder."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from adrec.config.base import save_config
from adrec.config.training.pretrain import PretrainConfig, VectorFileModel, Word2VecModel
from adrec.data.arrays import unit_rows
from adrec.data.disk.outputs import ENCODER
from adrec.data.disk.tables import read_table
from adrec.data.disk.writing import folder_aside
from adrec.data.prepared import Prepared
from adrec.errors import DataError
from adrec.models.text.hugging_face import resolve_file
from adrec.models.text.text_encoder import TextEncoder
from adrec.models.text.word_vectors import WordTokenizer, WordVectors, read_word_vectors, train_word2vec, words_of
from adrec.terminal import Terminal


@dataclass(frozen=True)
class WordVectorResult:
    """What the folder holds. `coverage` is the share of the held-out texts' words that have a vector."""

    output: Path
    words: int
    dimension: int
    coverage: float
    near: dict[str, list[str]]
    """Frequent words -> their nearest words."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {**vars(self), "output": str(self.output)}

    def render(self) -> Iterable[RenderableType]:
        """Nearest words of frequent words."""
        table = Table(title="Nearest words")
        table.add_column("word")
        table.add_column("nearest")
        for word, near in self.near.items():
            table.add_row(word, ", ".join(near))
        yield table
        yield f"{self.words:,} words of width {self.dimension}; {self.coverage:.1%} of held-out words have a vector"
        yield f"encoder: {self.output}"


def run_word_vectors(config: PretrainConfig, prepared: Prepared, terminal: Terminal) -> WordVectorResult:
    """Raises DataError for an empty corpus or a vector file that cannot be read."""
    corpus = read_table(prepared.path / "corpus.parquet", columns=["text", "held_out"])
    texts = corpus.column("text").to_numpy()
    held_out = corpus.column("held_out").to_numpy().astype(bool)
    if not len(texts):
        raise DataError(f"{prepared.path / 'corpus.parquet'}: the corpus is empty. Preprocess data that has ad texts.")
    with terminal.progress("word vectors", unit="texts"):
        words, vectors = _vectors(config, texts[~held_out], texts)
    encoder = TextEncoder(
        backbone=WordVectors.from_array(vectors),
        tokenizer=WordTokenizer(words),
        dimension=vectors.shape[1],
        pooling=config.pooling or "mean",
        max_tokens=config.batches.max_tokens,
        template=prepared.manifest.get("text_template"),
    )
    known = set(words)
    seen = [word in known for text in texts[held_out] for word in words_of(text)]
    result = WordVectorResult(
        output=config.output,
        words=len(words),
        dimension=vectors.shape[1],
        coverage=float(np.mean(seen)) if seen else 0.0,
        near=_nearest(words, vectors),
    )
    with folder_aside(config.output, ENCODER) as folder:
        encoder.save(folder)
        save_config(config, folder / "config.yaml")
        (folder / "metrics.json").write_text(json.dumps(result.as_dict(), ensure_ascii=False, indent=2), encoding="utf-8")
    return result


def _vectors(config: PretrainConfig, train: np.ndarray, texts: np.ndarray) -> tuple[list[str], np.ndarray]:
    model = config.model
    if isinstance(model, Word2VecModel):
        return train_word2vec(
            train,
            dimension=model.dimension,
            window=model.window,
            min_count=model.min_count,
            epochs=model.epochs,
            seed=config.seed,
        )
    assert isinstance(model, VectorFileModel)
    keep = {word for text in texts for word in words_of(text)} if model.corpus_words_only else None
    words, vectors = read_word_vectors(resolve_file(model.file), keep=keep)
    if not words:
        raise DataError(f"{model.file}: holds no vector of a word in the corpus.")
    return words, vectors


def _nearest(words: list[str], vectors: np.ndarray, *, shown: int = 10, near: int = 5) -> dict[str, list[str]]:
    unit = unit_rows(vectors)
    chosen = np.unique(np.linspace(0, min(len(words), 1000) - 1, shown).astype(int))
    cosines = unit[chosen] @ unit.T
    cosines[np.arange(len(chosen)), chosen] = -np.inf
    best = np.argsort(-cosines, axis=1)[:, : min(near, len(words) - 1)]
    return {words[row]: [words[other] for other in best[place]] for place, row in enumerate(chosen)}
