"""Which rows an epoch trains on, and how they are grouped: everything is drawn from the generator passed in.

Down-sampling keeps every positive and a share of the negatives (undone exactly in calibration). Listwise losses take
each positive with K negatives of its own request (NRMS: Wu et al. 2019, section 2.3).
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adrec.data.arrays import Longs, ranges


class Draw(NamedTuple):
    """Rows of one pass, and the group of each. Rows of a group are contiguous."""

    rows: Longs
    """(M,) row numbers, repeats allowed"""
    group: Longs
    """(M,) 0, 1, 2, ... never decreasing"""


def every_row(request: NDArray[np.integer]) -> Draw:
    """All rows; a group is a request."""
    changed = np.diff(request, prepend=request[:1]) != 0
    return Draw(np.arange(len(request), dtype=np.int64), np.cumsum(changed).astype(np.int64))


def down_sampled(request: NDArray[np.integer], label: NDArray[np.float32], rate: float, generator: np.random.Generator) -> Draw:
    """All rows but for a share 1 - `rate` of the negatives, each dropped by its own draw."""
    kept = (label > 0) | (generator.random(len(label)) < rate)
    rows = np.flatnonzero(kept).astype(np.int64)
    return Draw(rows, every_row(request[rows]).group)


def positives_with_negatives(
    request: NDArray[np.integer], label: NDArray[np.float32], count: int, generator: np.random.Generator
) -> Draw:
    """Each positive with up to `count` negatives of its request, none twice; requests without both are left out."""
    positive = np.flatnonzero(label > 0)
    negative = np.flatnonzero(label == 0)
    starts = np.searchsorted(request[negative], request[positive], side="left")
    available = np.searchsorted(request[negative], request[positive], side="right") - starts
    positive, starts, available = positive[available > 0], starts[available > 0], available[available > 0]
    # A random key per (positive, negative of its request); the `count` smallest keys of each positive are its sample.
    pair_of = np.repeat(np.arange(len(positive)), available)
    pair = ranges(starts, available)
    order = np.lexsort((generator.random(len(pair)), pair_of))
    rank = np.arange(len(pair)) - np.repeat(np.cumsum(available) - available, available)
    chosen = order[rank < count]
    group = np.concatenate([np.arange(len(positive)), pair_of[chosen]])
    rows = np.concatenate([positive, negative[pair[chosen]]])
    by_group = np.argsort(group, kind="stable")
    return Draw(rows[by_group].astype(np.int64), group[by_group].astype(np.int64))


def drawn_rows(request: NDArray[np.integer], label: NDArray[np.float32], negatives: int | None, rate: float) -> float:
    """How many rows a pass draws: exact but for down-sampling, where it is the expected number."""
    if negatives is not None:
        negative = request[label == 0]
        positive = request[label > 0]
        available = np.searchsorted(negative, positive, side="right") - np.searchsorted(negative, positive, side="left")
        available = available[available > 0]
        return float(np.minimum(available, negatives).sum() + len(available))
    positives = int((label > 0).sum())
    return positives + rate * (len(label) - positives)


def split_into(draw: Draw, count: int, generator: np.random.Generator | None) -> list[Draw]:
    """Exactly `count` batches of whole groups, none empty, as equal in rows as groups allow; shuffled with a generator.

    Where there are fewer groups than batches, groups are used again. Raises ValueError where there is no group at all.
    """
    starts = np.flatnonzero(np.diff(draw.group, prepend=-1))
    if len(starts) == 0:
        raise ValueError("there is no group to make batches of")
    lengths = np.diff(np.append(starts, len(draw.group)))
    order = np.arange(len(starts)) if generator is None else generator.permutation(len(starts))
    order = np.resize(order, max(len(order), count))
    ends = np.cumsum(lengths[order])
    cuts = np.searchsorted(ends, np.linspace(0, ends[-1], count + 1)[1:-1], side="left") + 1
    step = np.arange(1, count)
    cuts = np.clip(np.maximum.accumulate(cuts - step), 0, len(order) - count) + step  # strictly rising: none empty
    parts = [order[first:last] for first, last in pairwise([0, *cuts, len(order)])]
    return [Draw(draw.rows[ranges(starts[part], lengths[part])], np.repeat(part, lengths[part])) for part in parts]
