"""Batches of whole texts for objectives that work on one vector a text.

# U texts, T tokens, D width
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from adrec.data.arrays import ends
from adrec.data.text.packing import lay_out, pack
from adrec.models.text.language_model import LanguageModel
from adrec.models.text.pooling import Pool


class Texts(NamedTuple):
    """Padded texts, laid out as a LanguageModel reads them."""

    tokens: Tensor  # (U, T) int64
    texts: Tensor  # (U, T) int64: 0 on real tokens, -1 on padding
    positions: Tensor  # (U, T) int64


class PackedTexts(NamedTuple):
    """Texts laid out several to a row, and where each text's tokens stand in the rows, end to end."""

    tokens: Tensor  # (B, L) int64
    texts: Tensor  # (B, L) int64: number of the text in its row, -1 on padding
    positions: Tensor  # (B, L) int64
    places: Tensor  # (U, T) int64: flat place of token t of text u; its last token's place beyond its length
    mask: Tensor  # (U, T) int64: 1 on real tokens


class TokenTable:
    """Token ids of many texts, without special tokens, end to end: text i is `flat[offsets[i]:offsets[i + 1]]`."""

    def __init__(self, texts: Sequence[str], tokenizer: Any, *, max_tokens: int) -> None:
        encoded = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=max_tokens - 2)["input_ids"]
        lengths = np.fromiter((len(ids) for ids in encoded), np.int64, len(encoded))
        self.offsets = ends(lengths)
        self.flat = np.concatenate([np.asarray(ids, np.int64) for ids in encoded]) if encoded else np.empty(0, np.int64)
        self.cls, self.sep, self.pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        self.max_tokens = max_tokens

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.offsets) - 1

    def rows(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Token ids of each text with its special tokens."""
        return [self._framed(self.flat[self.offsets[n] : self.offsets[n + 1]]) for n in numbers]

    def joined(self, left: np.ndarray, right: np.ndarray) -> list[np.ndarray]:
        """[CLS] left [SEP] right [SEP] of each pair, the longer side cut where both do not fit."""
        rows = []
        room = self.max_tokens - 3
        for a, b in zip(left, right, strict=True):
            first, second = self.flat[self.offsets[a] : self.offsets[a + 1]], self.flat[self.offsets[b] : self.offsets[b + 1]]
            keep = max(room // 2, room - len(second))
            first = first[:keep]
            rows.append(np.concatenate([self._framed(first), second[: room - len(first)], [self.sep]]))
        return rows

    def batch(self, rows: Sequence[np.ndarray]) -> Texts:
        """Pad to the longest."""
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        mask = np.arange(lengths.max()) < lengths[:, None]
        tokens = np.full(mask.shape, self.pad, np.int64)
        tokens[mask] = np.concatenate(rows)
        positions = np.where(mask, np.arange(mask.shape[1]), 0)
        return Texts(torch.from_numpy(tokens), torch.from_numpy(np.where(mask, 0, -1)), torch.from_numpy(positions))

    def packed(self, rows: Sequence[np.ndarray]) -> PackedTexts:
        """Lay texts out in rows of 64 tokens or the longest text, so that hardly any padding is computed."""
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        capacity = max(64, int(lengths.max()))
        packs = pack(lengths, capacity, seed=0)
        tokens = np.concatenate([rows[number] for number in packs.rows])
        laid = lay_out(
            (tokens, np.full_like(tokens, -1), lengths[packs.rows]), np.diff(packs.offsets), capacity=capacity, pad_id=self.pad
        )
        real = np.flatnonzero(laid.texts >= 0)  # places of all tokens, in the order of packs.rows
        starts = np.empty_like(lengths)
        starts[packs.rows] = np.cumsum(lengths[packs.rows]) - lengths[packs.rows]
        steps = np.arange(int(lengths.max()))
        places = real[starts[:, None] + np.minimum(steps, lengths[:, None] - 1)]
        mask = (steps < lengths[:, None]).astype(np.int64)
        arrays = (laid.tokens, laid.texts, laid.positions, places, mask)
        return PackedTexts(*(torch.from_numpy(array) for array in arrays))

    def _framed(self, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([[self.cls], ids, [self.sep]])


def text_vectors(model: LanguageModel, pool: Pool, texts: PackedTexts) -> Tensor:
    """Vectors (U, D)."""
    states = model(texts.tokens, texts.texts, texts.positions).flatten(0, 1)  # (B L, D)
    return cast(Tensor, pool(states[texts.places], texts.mask))
