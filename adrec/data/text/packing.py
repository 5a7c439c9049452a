"""Many short texts to a row, so that no compute goes to padding; attention stays inside each text.

Best-fit packing over the histogram of lengths, after Krell et al., "Efficient Sequence Packing without Cross-contamination"
(2021): the cost depends on the number of distinct lengths, not of texts.

# N texts, P packs, B packs a batch, L tokens a pack
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adrec.data.arrays import ends, ranges


class Packs(NamedTuple):
    """Which texts lie in which pack: pack p holds `rows[offsets[p]:offsets[p + 1]]`."""

    rows: np.ndarray  # (N,) int64, a permutation of the texts
    offsets: np.ndarray  # (P + 1,) int64

    def __len__(self) -> int:
        """Number of packs P."""
        return len(self.offsets) - 1


class PackedTokens(NamedTuple):
    """A batch of packs. Texts are numbered from 0 inside each pack; padding has number -1 and stands at the end."""

    tokens: np.ndarray  # (B, L) int64
    words: np.ndarray  # (B, L) int64: number of the word over the whole batch, -1 on special tokens and padding
    texts: np.ndarray  # (B, L) int64
    positions: np.ndarray  # (B, L) int64, from 0 in each text


def pack(lengths: np.ndarray, capacity: int, *, seed: int) -> Packs:
    """Put every text (`lengths` (N,), all in 1..capacity) into a pack of at most `capacity` tokens, few packs in all.

    Texts of one length are interchangeable: `seed` shuffles them, then the packs.
    """
    if len(lengths) and (lengths.min() < 1 or lengths.max() > capacity):
        raise ValueError(f"lengths must lie in 1..{capacity}, found {lengths.min()}..{lengths.max()}")
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(lengths))
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    counts = np.bincount(lengths, minlength=capacity + 1)
    next_of = ends(counts)[: capacity + 1]  # where each length's texts begin in by_length
    blocks = []
    for repeats, parts in _strategies(counts, capacity):
        block = np.empty((repeats, len(parts)), np.int64)
        for column, length in enumerate(parts):
            start = next_of[length]
            block[:, column] = by_length[start : start + repeats]
            next_of[length] += repeats
        blocks.append(block)
    sizes = np.concatenate([np.full(len(block), block.shape[1]) for block in blocks]) if blocks else np.empty(0, np.int64)
    rows = np.concatenate([block.ravel() for block in blocks]) if blocks else np.empty(0, np.int64)
    starts = ends(sizes)
    order = generator.permutation(len(sizes))
    offsets = ends(sizes[order])
    return Packs(rows[ranges(starts[:-1][order], sizes[order])], offsets)


def joined(parts: Sequence[Packs]) -> Packs:
    """Packs of several runs of texts, one after the other."""
    texts = ends(np.array([len(part.rows) for part in parts], np.int64))
    return Packs(
        np.concatenate([part.rows + first for part, first in zip(parts, texts[:-1], strict=True)]),
        np.concatenate([[0], *(part.offsets[1:] + first for part, first in zip(parts, texts[:-1], strict=True))]),
    )


def _strategies(counts: np.ndarray, capacity: int) -> list[tuple[int, tuple[int, ...]]]:
    """(how many packs, lengths in each): longest first, each into the fullest pack with room, else into new packs."""
    by_room: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for length in range(capacity, 0, -1):
        left = int(counts[length])
        for room in range(length, capacity):
            while left and by_room.get(room):
                repeats, parts = by_room[room].pop()
                taken = min(repeats, left)
                if repeats > taken:
                    by_room[room].append((repeats - taken, parts))
                by_room.setdefault(room - length, []).append((taken, (*parts, length)))
                left -= taken
        fits = capacity // length
        if left // fits:
            by_room.setdefault(capacity - fits * length, []).append((left // fits, (length,) * fits))
        if left % fits:
            by_room.setdefault(capacity - (left % fits) * length, []).append((1, (length,) * (left % fits)))
    return [strategy for room in sorted(by_room) for strategy in by_room[room]]


def lay_out(
    token_lists: tuple[np.ndarray, np.ndarray, np.ndarray], sizes: np.ndarray, *, capacity: int, pad_id: int
) -> PackedTokens:
    """Lay texts out in rows of `capacity`. `token_lists` is (tokens, words, lengths): flat (T,), flat (T,), (texts,).

    `sizes` (B,) says how many texts each row takes. `words` are numbered per text and -1 on special tokens.
    """
    tokens, words, lengths = token_lists
    row_of_text = np.repeat(np.arange(len(sizes)), sizes)
    text_ends = np.cumsum(lengths)
    text_starts = text_ends - lengths
    first_text = np.cumsum(sizes) - sizes
    starts_in_row = text_starts - text_starts[first_text][row_of_text]
    text_of_token = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.arange(len(tokens)) - text_starts[text_of_token]
    place = (row_of_text * capacity + starts_in_row)[text_of_token] + positions
    # Words of different texts must not share a number: shift each text's by all that came before.
    words_in_text = np.maximum.reduceat(words, text_starts) + 1 if len(words) else np.empty(0, np.int64)
    shift = (np.cumsum(words_in_text) - words_in_text)[text_of_token]

    shape = (len(sizes), capacity)
    laid = PackedTokens(
        np.full(shape, pad_id, np.int64), np.full(shape, -1, np.int64), np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    )
    laid.tokens.ravel()[place] = tokens
    laid.words.ravel()[place] = np.where(words >= 0, words + shift, -1)
    laid.texts.ravel()[place] = text_of_token - np.repeat(first_text, sizes)[text_of_token]
    laid.positions.ravel()[place] = positions
    return laid
