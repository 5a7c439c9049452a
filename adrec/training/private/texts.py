"""What users wrote as units of privacy: all of one user's texts in one row, and Poisson samples of users.

# U users, L tokens a row, M masked places
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from adrec.data.arrays import Longs, ends, ranges
from adrec.data.prepared import Prepared
from adrec.errors import DataError
from adrec.privacy.noise import Noise
from adrec.training.mlm_module import Feed

_RANDOM, _SAME = 0.1, 0.1
"""Of the places that are predicted: shares that show another token, and their own (Devlin et al. 2019)."""


class UserTexts(NamedTuple):
    """Rows of one user each."""

    tokens: Tensor
    """(U, L) with masks"""
    texts: Tensor
    """(U, L) number of the text in its row, -1 padding"""
    positions: Tensor
    """(U, L) from 0 in each text"""
    places: Tensor
    """(U, M) that are predicted"""
    labels: Tensor
    """(U, M)"""
    weight: Tensor
    """(U, M) one over the user's places, 0 for padding"""


class TextStep(NamedTuple):
    """One step: a sample of users in parts, and a batch of public texts."""

    users: tuple[UserTexts, ...]
    public: Any


def texts_of_users(prepared: Prepared) -> tuple[list[str], Longs, Longs]:
    """Distinct texts; and for each pair of a user of the training rows and a text of his, the user 0, 1, ... and the text.

    His interests, and what he searched for in the training rows. Raises DataError where there is none.
    """
    if not prepared.has.user:
        raise DataError(f"{prepared.path}: its log names no users, so their texts cannot be told apart.")
    names = ["user_index", *(["query"] if "query" in prepared.columns else [])]
    rows = pa.Table.from_batches(list(prepared.iter("train", names)))
    own = rows["user_index"].combine_chunks().cast(pa.int64())
    people = pc.unique(own)
    parts = [pa.table({"user": people, "text": prepared.users()["text"].combine_chunks().take(people)})]
    if "query" in names:
        parts.append(pa.table({"user": own, "text": rows["query"].combine_chunks().cast(pa.string())}))
    pairs = pa.concat_tables(parts).group_by(["user", "text"]).aggregate([])
    pairs = pairs.filter(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(pairs["text"].fill_null(""))), 0))
    if not len(pairs):
        raise DataError(
            f"{prepared.path}: no user has interests or queries; there is nothing private to learn. Leave out `privacy`."
        )
    coded = pairs["text"].combine_chunks().dictionary_encode()
    user = np.unique(pairs["user"].to_numpy(), return_inverse=True)[1].astype(np.int64)
    order = np.argsort(user, kind="stable")
    return coded.dictionary.to_pylist(), user[order], coded.indices.to_numpy().astype(np.int64)[order]


@dataclass(frozen=True)
class TextPlan:
    """Every step each user takes part with probability `rate`, with as many of his texts, in a new order, as a row holds.

    `tokens` are those of each distinct text, special ones included; `user`, `text` (P,) come from `texts_of_users`.
    """

    tokens: Sequence[NDArray[np.int64]]
    user: Longs
    text: Longs
    rate: float
    count: int
    most_tokens: int
    at_once: int
    share: float
    """of the tokens that are predicted"""
    mask_id: int
    pad_id: int
    ordinary: Longs
    noise: Noise
    public: Feed

    @property
    def users(self) -> int:
        """How many there are."""
        return int(self.user[-1]) + 1

    @property
    def expected(self) -> float:
        """Users a step, on average."""
        return self.rate * self.users

    def plan(self, epoch: int) -> Sequence[int]:
        """The steps."""
        return range(self.count)

    def collate(self, step: int, generator: np.random.Generator) -> TextStep:
        """One step's sample, and the next public batch."""
        chosen = np.flatnonzero(self.noise.chosen(np.full(self.users, self.rate)))
        starts = np.searchsorted(self.user, np.arange(self.users + 1))
        parts = np.array_split(chosen, max(1, -(-len(chosen) // self.at_once)))
        epoch, at = divmod(step, len(self.public.plan(0)))
        public = self.public.collate(self.public.plan(epoch)[at], generator)
        return TextStep(tuple(self._rows(part, starts, generator) for part in parts if len(part)), public)

    def _rows(self, users: Longs, starts: Longs, generator: np.random.Generator) -> UserTexts:
        rows = np.full((len(users), self.most_tokens), self.pad_id, np.int64)
        texts, positions = np.full(rows.shape, -1, np.int64), np.zeros(rows.shape, np.int64)
        counts = starts[users + 1] - starts[users]
        pairs = ranges(starts[users], counts)
        row = np.repeat(np.arange(len(users)), counts)
        pairs = pairs[np.lexsort((generator.random(len(pairs)), row))]
        lengths = np.array([len(self.tokens[text]) for text in self.text[pairs]], np.int64)
        flat = np.concatenate([self.tokens[text] for text in self.text[pairs]])
        first = ends(lengths)[:-1]
        begins = ends(counts)
        within = first - np.repeat(first[begins[:-1]], counts)  # where in its row a text begins
        column = np.repeat(within, lengths) + ranges(np.zeros_like(lengths), lengths)
        kept = column < self.most_tokens
        place = (np.repeat(row, lengths)[kept], column[kept])
        rows[place] = flat[kept]
        texts[place] = np.repeat(np.arange(len(pairs)) - np.repeat(begins[:-1], counts), lengths)[kept]
        positions[place] = ranges(np.zeros_like(lengths), lengths)[kept]
        width = int((texts >= 0).sum(1).max())
        return self._masked(rows[:, :width], texts[:, :width], positions[:, :width], generator)

    def _masked(self, rows: Longs, texts: Longs, positions: Longs, generator: np.random.Generator) -> UserTexts:
        can = (texts >= 0) & np.isin(rows, self.ordinary)
        most = max(1, int(np.ceil(self.share * rows.shape[1])))
        wanted = np.minimum(np.ceil(self.share * can.sum(1)).astype(np.int64), most)  # (U,)
        places = np.argsort(np.where(can, generator.random(rows.shape), 2.0), axis=1)[:, :most]
        real = np.arange(places.shape[1]) < wanted[:, None]
        labels = np.take_along_axis(rows, places, 1)
        draw = generator.random(places.shape)
        shown = np.where(draw < _RANDOM, generator.choice(self.ordinary, places.shape), self.mask_id)
        shown = np.where((draw > 1.0 - _SAME) | ~real, labels, shown)
        masked = rows.copy()
        np.put_along_axis(masked, places, shown, 1)
        weight = np.where(real, 1.0 / np.maximum(wanted, 1)[:, None], 0.0).astype(np.float32)
        return UserTexts(
            *(torch.from_numpy(np.ascontiguousarray(part)) for part in (masked, texts, positions, places, labels, weight))
        )
