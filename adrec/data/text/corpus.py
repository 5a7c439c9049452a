"""The pretraining corpus as tokens: each text once, with the word that every token belongs to.

Either `datasets` tokenises the Parquet file once into a memory-mapped Arrow file, or, where the disk has no room for that,
texts are tokenised again whenever a batch reaches their chunk of the file. In both cases memory does not grow with the tokens:
a few bytes a text stay (its length, language and kind).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adrec.data.arrays import ends, ranges
from adrec.data.disk.tables import check_schema, parquet_files, parquet_schema
from adrec.data.text.packing import PackedTokens, lay_out
from adrec.data.text.segmenter import chinese_segmenter
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
HELD_OUT = "md5_number_lower(text) % 20 = 0"
"""SQL over `text`: the twentieth of all texts that is kept for measuring, by its hash."""
CHUNK_TEXTS = 131_072
"""Texts that are packed and shuffled together; of a streamed corpus, texts in memory at once."""
_HAN = "㐀-䶿一-鿿豈-﫿"
_WORD = re.compile(rf"[{_HAN}]+|[^\W{_HAN}]+|[^\w\s]")


class Tokens(Protocol):
    """Where the tokens of a corpus come from."""

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flat tokens and flat words of some texts, both int64, in the order of `rows`."""


@dataclass(frozen=True)
class Corpus:
    """Tokenised texts. `lengths` (N,) int64 counts tokens, special ones included; `language`, `kind` (N,) are strings.

    Texts `c * chunk` to `(c + 1) * chunk - 1` are chunk `c`: reading within one chunk is cheap.
    """

    tokens: Tokens
    lengths: np.ndarray
    language: np.ndarray
    kind: np.ndarray
    held_out: np.ndarray
    chunk: int = CHUNK_TEXTS

    def __len__(self) -> int:
        """Number of texts N."""
        return len(self.lengths)

    def token_lists(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flat tokens (T,), flat words (T,), lengths (rows,) of some texts, int64, in the order of `rows`."""
        tokens, words = self.tokens.take(rows)
        return tokens, words, self.lengths[rows]

    def packed(self, rows: np.ndarray, sizes: np.ndarray, *, capacity: int, pad_id: int) -> PackedTokens:
        """A batch: `rows` are texts in order, `sizes` (B,) how many of them each row of the batch holds."""
        return lay_out(self.token_lists(rows), sizes, capacity=capacity, pad_id=pad_id)


@dataclass(frozen=True)
class MappedTokens:
    """Tokens in a memory-mapped `datasets.Dataset` with columns tokens, words (both list<int32>)."""

    table: Any

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Tokens."""
        taken = self.table.with_format("arrow")[rows]
        return _flat(taken["tokens"]), _flat(taken["words"])


class StreamedTokens:
    """Tokens made from Parquet files on the fly; the last chunk asked for stays in memory."""

    def __init__(self, files: Sequence[Path], tokenizer: Any, *, max_tokens: int, chunk: int) -> None:
        self.tokenizer, self.max_tokens, self.chunk = tokenizer, max_tokens, chunk
        self.groups = [(file, group) for file in files for group in range(pq.read_metadata(file).num_row_groups)]
        sizes = [pq.read_metadata(file).row_group(group).num_rows for file, group in self.groups]
        self.bounds = ends(np.array(sizes, np.int64))
        self._kept: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None  # chunk, tokens, words, offsets

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Tokens. `rows` of several chunks are read chunk after chunk."""
        chunks = rows // self.chunk
        if len(rows) and (chunks != chunks[0]).any():
            parts = [self.take(chunk) for chunk in np.split(rows, np.flatnonzero(np.diff(chunks)) + 1)]
            return np.concatenate([chunk[0] for chunk in parts]), np.concatenate([chunk[1] for chunk in parts])
        if not len(rows):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        tokens, words, offsets = self.read(int(chunks[0]))
        starts = offsets[rows - chunks[0] * self.chunk]
        places = ranges(starts, offsets[rows - chunks[0] * self.chunk + 1] - starts)
        return tokens[places].astype(np.int64), words[places].astype(np.int64)

    def read(self, chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flat tokens and words (int32) of a chunk, and where each of its texts begins and ends."""
        if self._kept is None or self._kept[0] != chunk:
            texts = self.column("text", chunk).to_numpy(zero_copy_only=False)
            made = tokenise(texts, self.tokenizer, max_tokens=self.max_tokens)
            lengths = np.fromiter(map(len, made["tokens"]), np.int64, len(texts))
            flat = np.concatenate(made["tokens"]), np.concatenate(made["words"])
            self._kept = (chunk, *flat, ends(lengths))
        return self._kept[1:]

    def column(self, name: str, chunk: int) -> pa.Array:
        """One column of a chunk's texts, read from the row groups that hold them."""
        start, stop = chunk * self.chunk, min((chunk + 1) * self.chunk, int(self.bounds[-1]))
        first = int(np.searchsorted(self.bounds, start, side="right")) - 1
        last = int(np.searchsorted(self.bounds, stop, side="left"))
        parts = [pq.ParquetFile(file).read_row_group(group, columns=[name])[name] for file, group in self.groups[first:last]]
        whole = pa.chunked_array([piece for part in parts for piece in part.chunks])
        return whole.slice(start - int(self.bounds[first]), stop - start).combine_chunks()


def open_corpus(
    path: Path,
    tokenizer: Any,
    *,
    max_tokens: int,
    cache: Path,
    streamed: bool = False,
    chunk: int = CHUNK_TEXTS,
) -> Corpus:
    """Tokenise `corpus.parquet` (once: kept in `cache` by content of the file and settings). Texts are cut at `max_tokens`.

    `streamed` keeps no tokens on disk: one pass counts them, and batches make them anew.
    Raises DataError where the corpus is empty or all or none of it is held out.
    """
    files = parquet_files(path)
    check_schema(parquet_schema(files[0]), CORPUS, where=str(path))
    if not sum(pq.read_metadata(file).num_rows for file in files):
        raise DataError(f"{path}: the corpus is empty. Preprocess data that has ad texts.")
    if streamed:
        corpus = _streamed(StreamedTokens(files, tokenizer, max_tokens=max_tokens, chunk=chunk))
    else:
        corpus = _mapped(path, tokenizer, max_tokens=max_tokens, cache=cache, chunk=chunk)
    held_out = corpus.held_out
    if held_out.all() or not held_out.any():
        raise DataError(f"{path}: {int(held_out.sum())} of {len(held_out)} texts are held out: some must be, and some not.")
    return corpus


def _mapped(path: Path, tokenizer: Any, *, max_tokens: int, cache: Path, chunk: int) -> Corpus:
    import datasets

    datasets.disable_progress_bars()
    files = [str(file) for file in parquet_files(path)]
    raw = datasets.Dataset.from_parquet(files, cache_dir=str(cache), columns=list(CORPUS.names))
    table = raw.map(
        lambda batch: tokenise(batch["text"], tokenizer, max_tokens=max_tokens),
        batched=True,
        remove_columns=["text"],
        new_fingerprint=_fingerprint(path, tokenizer, max_tokens),
        features=datasets.Features(
            {
                **{name: raw.features[name] for name in ("language", "kind", "held_out")},
                "tokens": datasets.List(datasets.Value("int32")),
                "words": datasets.List(datasets.Value("int32")),
            }
        ),
    )
    arrow = table.data
    return Corpus(
        tokens=MappedTokens(table),
        lengths=pc.list_value_length(arrow.column("tokens")).to_numpy().astype(np.int64),
        language=arrow.column("language").to_numpy(),
        kind=arrow.column("kind").to_numpy(),
        held_out=arrow.column("held_out").to_numpy().astype(bool),
        chunk=chunk,
    )


def _streamed(source: StreamedTokens) -> Corpus:
    count = int(source.bounds[-1])
    chunks = range(-(-count // source.chunk))
    lengths = np.concatenate([np.diff(source.read(number)[2]) for number in chunks])
    names = {}
    for name in ("language", "kind"):
        coded = pa.chunked_array([source.column(name, number) for number in chunks]).dictionary_encode().combine_chunks()
        names[name] = coded.dictionary.to_numpy(zero_copy_only=False)[coded.indices.to_numpy()][:count]
    held_out = np.concatenate([source.column("held_out", number).to_numpy(zero_copy_only=False) for number in chunks])
    return Corpus(
        tokens=source,
        lengths=lengths[:count],
        language=names["language"],
        kind=names["kind"],
        held_out=held_out[:count].astype(bool),
        chunk=source.chunk,
    )


def texts_of(path: Path, rows: np.ndarray) -> list[str]:
    """The texts at some row numbers, rising; reads no further than the last of them."""
    texts: list[str] = []
    first = 0
    for file in parquet_files(path):
        for batch in pq.ParquetFile(file).iter_batches(columns=["text"]):
            if len(texts) == len(rows):
                return texts
            inside = rows[(rows >= first) & (rows < first + len(batch))] - first
            texts.extend(batch.column(0).take(pa.array(inside)).to_numpy(zero_copy_only=False))
            first += len(batch)
    return texts


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


def _fingerprint(path: Path, tokenizer: Any, max_tokens: int) -> str:
    import hashlib

    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for file in parquet_files(path):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    digest.update(f"words 1 {max_tokens}".encode())
    return digest.hexdigest()[:32]
