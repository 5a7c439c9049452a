"""The pretraining corpus as tokens on disk: each text once, with the word that every token belongs to.

`datasets` reads the Parquet file and keeps the tokens in a memory-mapped Arrow file, so memory does not grow with the corpus.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adrec.data.packing import PackedTokens, lay_out
from adrec.data.segmenter import chinese_segmenter
from adrec.data.tables import check_schema, parquet_files, parquet_schema
from adrec.errors import DataError
from adrec.schema import Column, TableSpec

CORPUS = TableSpec(
    "corpus",
    (
        Column("text", pa.string(), True, "distinct text"),
        Column("language", pa.string(), True, "zh, en or other"),
        Column("kind", pa.string(), True, "ad, interests or query"),
        Column("held_out", pa.bool_(), True, "kept for measuring"),
    ),
)
_HAN = "㐀-䶿一-鿿豈-﫿"
_WORD = re.compile(rf"[{_HAN}]+|[^\W{_HAN}]+|[^\w\s]")


@dataclass(frozen=True)
class Corpus:
    """Tokenised texts. `lengths` (N,) int64 counts tokens, special ones included; `language`, `kind` (N,) are strings."""

    table: Any  # a datasets.Dataset with columns tokens, words (both list<int32>)
    lengths: np.ndarray
    language: np.ndarray
    kind: np.ndarray
    held_out: np.ndarray

    def __len__(self) -> int:
        """Number of texts N."""
        return len(self.lengths)

    def token_lists(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flat tokens (T,), flat words (T,), lengths (rows,) of some texts, int64, in the order of `rows`."""
        taken = self.table.with_format("arrow")[rows]
        return _flat(taken["tokens"]), _flat(taken["words"]), self.lengths[rows]

    def packed(self, rows: np.ndarray, sizes: np.ndarray, *, capacity: int, pad_id: int) -> PackedTokens:
        """A batch: `rows` are texts in order, `sizes` (B,) how many of them each row of the batch holds."""
        return lay_out(self.token_lists(rows), sizes, capacity=capacity, pad_id=pad_id)


def open_corpus(path: Path, tokenizer: Any, *, max_tokens: int, cache: Path, limit: int | None = None) -> Corpus:
    """Tokenise `corpus.parquet` (once: kept in `cache` by content of the file and settings). Texts are cut at `max_tokens`.

    `limit` takes the first so many texts. Raises DataError where the corpus is empty or all or none of it is held out.
    """
    import datasets

    files = parquet_files(path)
    check_schema(parquet_schema(files[0]), CORPUS, where=str(path))
    if not sum(pq.read_metadata(file).num_rows for file in files):
        raise DataError(f"{path}: the corpus is empty. Preprocess data that has ad texts.")
    datasets.disable_progress_bars()
    raw = datasets.Dataset.from_parquet([str(file) for file in files], cache_dir=str(cache), columns=list(CORPUS.names))
    if limit is not None:
        raw = raw.select(range(min(limit, len(raw))))
    table = raw.map(
        lambda batch: tokenise(batch["text"], tokenizer, max_tokens=max_tokens),
        batched=True,
        remove_columns=["text"],
        new_fingerprint=_fingerprint(path, tokenizer, max_tokens, limit),
        features=datasets.Features(
            {
                **{name: raw.features[name] for name in ("language", "kind", "held_out")},
                "tokens": datasets.List(datasets.Value("int32")),
                "words": datasets.List(datasets.Value("int32")),
            }
        ),
    )
    arrow = table.data
    held_out = arrow.column("held_out").to_numpy()
    if held_out.all() or not held_out.any():
        raise DataError(f"{path}: {int(held_out.sum())} of {len(held_out)} texts are held out: some must be, and some not.")
    return Corpus(
        table=table,
        lengths=pc.list_value_length(arrow.column("tokens")).to_numpy().astype(np.int64),
        language=arrow.column("language").to_numpy(),
        kind=arrow.column("kind").to_numpy(),
        held_out=held_out.astype(bool),
    )


def tokenise(texts: Sequence[str], tokenizer: Any, *, max_tokens: int) -> dict[str, list[Any]]:
    """`tokens` and `words` of each text. A word's number rises from 0 in each text; special tokens have -1."""
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_tokens, return_offsets_mapping=True, return_attention_mask=False
    )
    tokens = [np.asarray(ids, np.int32) for ids in encoded["input_ids"]]
    lengths = np.fromiter((len(ids) for ids in tokens), np.int64, len(tokens))
    flat = np.concatenate(tokens) if tokens else np.empty(0, np.int32)
    last = np.concatenate([np.asarray(offsets, np.int64)[:, 1] - 1 for offsets in encoded["offset_mapping"]])
    # All texts in one string, a line break between them: character c of text t stands at text_starts[t] + c.
    sizes = np.fromiter((len(text) + 1 for text in texts), np.int64, len(tokens))
    text_starts = np.cumsum(sizes) - sizes
    word_starts = word_positions("\n".join(texts))
    text_of = np.repeat(np.arange(len(tokens)), lengths)
    words = np.searchsorted(word_starts, text_starts[text_of] + last, side="right") - 1
    words = words - (np.searchsorted(word_starts, text_starts, side="left"))[text_of]
    words[np.isin(flat, tokenizer.all_special_ids) | (last < 0)] = -1
    bounds = np.cumsum(lengths)[:-1]
    return {"tokens": tokens, "words": np.split(words.astype(np.int32), bounds)}


def word_positions(text: str) -> np.ndarray:
    """Where each word of `text` starts, rising: runs of letters and digits, Chinese words by jieba, single marks."""
    starts: list[int] = []
    for match in _WORD.finditer(text):
        start = match.start()
        if match.end() - start > 1 and re.match(f"[{_HAN}]", match.group()):
            pieces = chinese_segmenter().lcut(match.group())
            starts.extend((start + np.cumsum([0, *map(len, pieces[:-1])])).tolist())
        else:
            starts.append(start)
    return np.asarray(starts, np.int64)


def ordinary_ids(tokenizer: Any) -> np.ndarray:
    """Token ids that are not special, sorted, int64."""
    return np.setdiff1d(np.fromiter(tokenizer.get_vocab().values(), np.int64), tokenizer.all_special_ids)


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.list_flatten(column).to_numpy(), np.int64)


def _fingerprint(path: Path, tokenizer: Any, max_tokens: int, limit: int | None) -> str:
    import hashlib

    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for file in parquet_files(path):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    digest.update(f"words 1 {max_tokens} {limit}".encode())
    return digest.hexdigest()[:32]
