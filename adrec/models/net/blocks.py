"""Rows of a batch in blocks of one context, so that a history is gathered once a block and not once a row.

B rows, N blocks, K rows a block, H history, D width. A request of forty ads then reads its history five times instead of
forty; the padding is less than one block a context.
"""

from typing import NamedTuple

import torch
from torch import Tensor

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


def make_blocks(context: Tensor) -> Blocks:
    """Blocks of at most BLOCK_ROWS rows; `context` (B,) in any order. One row a context makes blocks of one."""
    if torch.compiler.is_exporting():
        # A graph cannot hold shapes that depend on values: there every row is a block of its own.
        rows = torch.arange(context.shape[0], device=context.device)
        return Blocks(context, rows[:, None], rows)
    order = torch.argsort(context, stable=True)
    counts = torch.bincount(context)
    size = max(min(BLOCK_ROWS, int(counts.max())), 1)
    first = torch.cumsum(counts, 0) - counts  # first place of each context in the order
    ordered = context[order]
    rank = torch.arange(len(context), device=context.device) - first[ordered]
    blocks_of = (counts + size - 1) // size
    block = (torch.cumsum(blocks_of, 0) - blocks_of)[ordered] + rank // size
    flat = block * size + rank % size
    place = torch.empty_like(flat)
    place[order] = flat
    row = torch.zeros(int(blocks_of.sum()) * size, dtype=torch.int64, device=context.device)
    row[flat] = order
    owner = torch.repeat_interleave(torch.arange(len(counts), device=context.device), blocks_of)
    return Blocks(owner, row.view(-1, size), place)
