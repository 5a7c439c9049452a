"""Rows of a batch in blocks of one context, so that a history is gathered once a block and not once a row.

B rows, N blocks, K rows a block, H history, D width. A request of forty ads then reads its history five times instead of
forty; the padding is less than one block a context. Made with the batch, on the processor: a device would have to be asked
how long its answer is, and wait.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adrec.data.arrays import Longs

BLOCK_ROWS = 8


class Blocks(NamedTuple):
    """Where each row lies."""

    context: Tensor
    """(N,) the context of each block"""
    row: Tensor
    """(N, K) the rows of each block; row 0 stands where there is none"""
    place: Tensor
    """(B,) index of each row among the N * K places"""

    def spread(self, rows: Tensor) -> Tensor:
        """(B, ...) → (N, K, ...)."""
        return rows[self.row]

    def gather(self, blocks: Tensor) -> Tensor:
        """(N, K, ...) → (B, ...)."""
        return blocks.flatten(0, 1)[self.place]


def make_blocks(context: Longs) -> Blocks:
    """Blocks of at most BLOCK_ROWS rows; `context` (B,) in any order. One row a context makes blocks of one."""
    order = np.argsort(context, kind="stable")
    counts = np.bincount(context)
    size = max(min(BLOCK_ROWS, int(counts.max(initial=0))), 1)
    first = np.cumsum(counts) - counts  # first place of each context in the order
    ordered = context[order]
    rank = np.arange(len(context)) - first[ordered]
    blocks_of = (counts + size - 1) // size
    flat = (np.cumsum(blocks_of) - blocks_of)[ordered] * size + rank
    place = np.empty(len(context), np.int64)
    place[order] = flat
    row = np.zeros(int(blocks_of.sum()) * size, np.int64)
    row[flat] = order
    owner = np.repeat(np.arange(len(counts)), blocks_of)
    return Blocks(torch.from_numpy(owner), torch.from_numpy(row.reshape(-1, size)), torch.from_numpy(place))


def blocks_of_one(context: Tensor) -> Blocks:
    """Every row (B,) a block of its own: an exported graph cannot hold shapes that depend on values."""
    rows = torch.arange(context.shape[0], device=context.device)
    return Blocks(context, rows[:, None], rows)
