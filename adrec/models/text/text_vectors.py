"""Texts as the click model reads them: vectors of a frozen encoder, each distinct text encoded once and cached, or tokens.

`TextReader` is made once a command; it turns a catalog, or queries, into what `adrec.data.batches.collate` asks for.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from adrec.data.arrays import cells_with_row, with_row
from adrec.data.batches.collate import QueryInputs, TextInputs, Texts, padded
from adrec.data.examples import Catalog
from adrec.data.ragged import Ragged
from adrec.data.text.vector_cache import RecentVectors, cached_vectors
from adrec.models.text.sentence import Role
from adrec.models.text.text_encoder import TextEncoder, encode_texts

Progress = Callable[..., AbstractContextManager[Callable[..., None]]]
"""(description, total, unit=) -> what shows how far it is while the block runs: `Terminal.progress`."""
MOST_PHRASES = 8
"""Interests read apart; what a longer list has beyond them is read as one text."""
_BETWEEN_PHRASES = r"\s*(?:[,;|，；、\n]|\[SEP\])\s*"


class TextReader:
    """`encoder` None: no text at all. `as_tokens`: the encoder is part of the model and is trained."""

    def __init__(
        self,
        encoder: TextEncoder | None,
        *,
        as_tokens: bool = False,
        device: str | torch.device = "cpu",
        batch_tokens: int = 8192,
        cache: Path | None = None,
        use_cache: bool = True,
        keep_typed: bool = True,
        bf16: bool = False,
    ) -> None:
        """`bf16`: as `encode_texts` has it; such vectors are cached apart from exact ones.

        `keep_typed` false: vectors of what people type, queries and interests, are held in memory and never written."""
        self.encoder, self.as_tokens = encoder, as_tokens
        self.device, self.batch_tokens, self.cache, self.use_cache = device, batch_tokens, cache, use_cache
        self.keep_typed, self._typed, self.bf16 = keep_typed, RecentVectors(), bf16

    def apart(self, *, exact: bool = False) -> "TextReader":
        """The same encoder, knowing and keeping no vector of any cache: for texts that nobody else reads.

        `exact`: in float32, as every machine computes it.
        """
        bf16 = self.bf16 and not exact
        return TextReader(self.encoder, device=self.device, batch_tokens=self.batch_tokens, use_cache=False, bf16=bf16)

    @property
    def width(self) -> int:
        """Width of the vectors; 0 without text."""
        return self.encoder.dimension if self.encoder is not None else 0

    def vectors(
        self, texts: Sequence[str], progress: Progress | None = None, what: str = "texts", *, typed: bool = False
    ) -> NDArray[np.float32]:
        """(N, D) float32; (N, 0) without an encoder. typed: people wrote them for nobody else; they are read as queries."""
        if self.encoder is None or len(texts) == 0:
            return np.zeros((len(texts), self.width), np.float32)

        role: Role = "query" if typed else "document"

        def encode(missing: list[str]) -> NDArray[np.float32]:
            return self._encode(missing, role, progress, what)

        if typed and not self.keep_typed:
            return self._typed(texts, encode)
        if self.use_cache:
            fingerprint = self.encoder.fingerprint + ("-bf16" if self.bf16 else "")
            fingerprint += f"-{role}" if typed and self.encoder.reading.tells_roles_apart else ""
            return cached_vectors(texts, fingerprint=fingerprint, encode=encode, folder=self.cache)
        return encode(list(texts))

    def read(
        self, catalog: Catalog, used: NDArray[np.integer] | None = None, progress: Progress | None = None, what: str = "ads"
    ) -> tuple[Catalog, TextInputs]:
        """The catalog with its vectors (where frozen), and what gives its rows to a batch.

        Rows `used` (all where None) are read now, others when a batch asks for them.
        """
        rows = np.arange(len(catalog)) if used is None else np.asarray(used)
        if self.as_tokens and self.encoder is not None:
            return catalog, _Tokens(self, catalog.texts, "query" if what == "interests" else "document")
        vectors = _Vectors(self, catalog.texts, typed=what == "interests")
        vectors.ensure(rows, progress, what)
        return catalog.with_vectors(vectors.values), vectors

    def interests(
        self,
        users: Catalog,
        used: NDArray[np.integer] | None = None,
        progress: Progress | None = None,
        *,
        apart: bool,
    ) -> TextInputs:
        """What gives the users' interests to a batch: each by itself, (N, P, D), or with `apart` false all as one text.

        Someone who likes coffee and running is near to ads of either; one vector of both is far from each. A model whose
        encoder is trained (`as_tokens`) reads them as one text, in training and afterwards.
        """
        if not apart or self.as_tokens:
            return self.read(users, used, progress, "interests")[1]
        phrases = _Phrases(self, users.texts)
        phrases.ensure(np.arange(len(users)) if used is None else np.asarray(used), progress, "interests")
        return phrases

    def queries(self, texts: Sequence[str], progress: Progress | None = None) -> QueryInputs:
        """What gives queries to a batch; those among `texts` are encoded now, others when they turn up."""
        if self.as_tokens and self.encoder is not None:
            encoder = self.encoder
            return lambda asked: Texts(None, *encoder.tokenize(asked, "query"))
        recent = RecentVectors()

        def give(asked: Sequence[str]) -> Texts:
            return Texts(torch.from_numpy(recent(asked, lambda new: self.vectors(new, progress, "queries", typed=True))))

        give(texts)
        return give

    def _encode(self, texts: list[str], role: Role, progress: Progress | None, what: str) -> NDArray[np.float32]:
        assert self.encoder is not None
        encode = partial(
            encode_texts, self.encoder, texts,
            device=self.device, batch_tokens=self.batch_tokens, bf16=self.bf16, role=role,
        )  # fmt: skip
        if progress is None:
            return encode()
        with progress(f"Encoding {what}", len(texts), unit="texts") as advance:
            return encode(advance=advance)


class _Vectors:
    """Vectors of a catalog's texts, made where a row is asked for the first time. Rows never asked for cost no memory."""

    def __init__(self, reader: TextReader, texts: pa.StringArray, *, typed: bool = False) -> None:
        self.reader, self.texts, self.typed = reader, texts, typed
        self.values = np.zeros((len(texts), reader.width), np.float32)
        self.known = np.zeros(len(texts), bool)

    def ensure(self, rows: NDArray[np.integer], progress: Progress | None = None, what: str = "texts") -> None:
        """Encode those of `rows` that are not there yet."""
        new = np.unique(rows[~self.known[rows]])
        if len(new) == 0:
            return
        self.values[new] = self.reader.vectors(_strings(self.texts.take(pa.array(new))), progress, what, typed=self.typed)
        self.known[new] = True

    def with_row(self, row: int, own: "_Vectors") -> "_Vectors":
        """The same with the one text of `own` at `row`, or behind the last."""
        other = copy(self)
        other.texts = cells_with_row(self.texts, row, own.texts)
        other.values, other.known = with_row(self.values, row, own.values), with_row(self.known, row, own.known)
        return other

    def __call__(self, rows: NDArray[np.int64]) -> Texts:
        self.ensure(rows)
        return Texts(torch.from_numpy(self.values[rows]))


def phrases(texts: pa.StringArray) -> pa.ListArray:
    """The interests that each text lists, what is beyond MOST_PHRASES as one; each is a text that is encoded."""
    lists = pc.split_pattern_regex(texts, _BETWEEN_PHRASES, max_splits=MOST_PHRASES - 1)
    return pa.ListArray.from_arrays(lists.offsets, pc.utf8_trim_whitespace(lists.flatten()))


class _Phrases:
    """Vectors of the phrases of each text, (N, P, D) with P the most that one of the rows has; zeros fill up."""

    def __init__(self, reader: TextReader, texts: pa.StringArray) -> None:
        lists = phrases(texts)
        coded = lists.values.dictionary_encode()
        self.distinct = _Vectors(reader, coded.dictionary, typed=True)
        self.lists = Ragged(lists.offsets.to_numpy().astype(np.int64), coded.indices.to_numpy())

    def ensure(self, rows: NDArray[np.integer], progress: Progress | None = None, what: str = "texts") -> None:
        """Encode the phrases of `rows` that are not there yet."""
        self.distinct.ensure(self.lists.take(rows).values, progress, what)

    def __call__(self, rows: NDArray[np.int64]) -> Texts:
        self.ensure(rows)
        places, there = padded(self.lists.take(rows))
        return Texts(torch.from_numpy(self.distinct.values[places] * there[..., None].astype(np.float32)))


class _Tokens:
    """Token ids of a catalog's texts, padded with the tokenizer's own padding id."""

    def __init__(self, reader: TextReader, texts: pa.StringArray, role: Role) -> None:
        assert reader.encoder is not None
        self.encoder, self.texts, self.role = reader.encoder, texts, role

    def with_row(self, row: int, own: "_Tokens") -> "_Tokens":
        """The same with the one text of `own` at `row`, or behind the last."""
        other = copy(self)
        other.texts = cells_with_row(self.texts, row, own.texts)
        return other

    def __call__(self, rows: NDArray[np.int64]) -> Texts:
        return Texts(None, *self.encoder.tokenize(_strings(self.texts.take(pa.array(rows))), self.role))


def texts_with_row(catalog: Catalog, texts: TextInputs, row: int, own: TextInputs) -> tuple[Catalog, TextInputs]:
    """What `TextReader.read` gave, with the one text of `own` at `row`, or behind the last; `catalog` has the row already."""
    if isinstance(texts, _Vectors) and isinstance(own, _Vectors):
        vectors = texts.with_row(row, own)
        return catalog.with_vectors(vectors.values), vectors
    assert isinstance(texts, _Tokens) and isinstance(own, _Tokens), "two ways of reading texts never meet"
    return catalog, texts.with_row(row, own)


def _strings(texts: pa.Array) -> list[str]:
    return [str(text) for text in texts.to_numpy(zero_copy_only=False)]
