"""Attention over a padded sequence. Masked places weigh exactly 0, and a sequence without any place gives 0, not NaN.

Shapes: N sequences, L places, D width, M heads; B queries in Z blocks of K. Masks are True for a real place.
"""

import math

import torch
from torch import Tensor, nn

from adrec.data.batches.blocks import Blocks


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis of the places that `mask` (broadcastable, bool) keeps; all 0 where it keeps none."""
    highest = logits.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    weights = torch.exp((logits - highest.detach()).masked_fill(~mask, -torch.inf))
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)


class AdditiveAttention(nn.Module):
    """One learned query: w_i = softmax_i(q . tanh(W x_i + b)), out = sum_i w_i x_i (Wu et al. 2019, NRMS, eq. 6-8)."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, hidden)
        self.query = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, L, D), (N, L) → (N, D)."""
        logits = self.query(torch.tanh(self.project(x))).squeeze(-1)  # (N, L)
        return torch.einsum("nl,nld->nd", masked_softmax(logits, mask), x)


class MultiHeadSelfAttention(nn.Module):
    """softmax(Q K' / sqrt(d)) V per head, concatenated and projected (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, *, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
        """(N, L, D), (N, L), bias (N, 1 or M, L, L) added to the logits → (N, L, D); rows of masked places mean nothing."""
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)  # (N, M, L, D/M)
        logits = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        if bias is not None:
            logits = logits + bias
        weights = self.dropout(masked_softmax(logits, mask[:, None, None, :]))
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).reshape(n, length, width))
        return mixed


class TargetAttention(nn.Module):
    """Weights from an MLP over [x, x - q, x * q, q], not normalised, so that their sum keeps the strength of interest.

    Deep Interest Network (Zhou et al. 2018, section 4.3), with x and q first brought to `hidden` floats by one common map.
    The layer is linear in its four parts, and those that do not need both x and q are computed once a place or a query.
    """

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(width, hidden)
        self.of_place = nn.Linear(hidden, hidden, bias=False)
        self.of_query = nn.Linear(hidden, hidden)
        self.of_product = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, mask: Tensor, query: Tensor, blocks: Blocks) -> Tensor:
        """Places (N, L, D), mask (N, L), queries (B, D), each a row of a block whose context is a sequence → (B, D).

        W [x, x - q, x * q, q] = (W1 + W2) x + (W4 - W2) q + W3 (x * q): three maps instead of four.
        """
        sequences, real = x[blocks.context], mask[blocks.context]  # (Z, L, D), (Z, L)
        places = self.narrow(x)  # (N, L, hidden)
        queries = blocks.spread(self.narrow(query))  # (Z, K, hidden)
        count, size, hidden = queries.shape
        # W3 (x * q) = (W3 diag(q)) x, a batched product without an intermediate of one vector a place and query.
        scaled = (self.of_product.weight * queries[:, :, None, :]).view(count, size * hidden, hidden)
        pairs = torch.bmm(scaled, places[blocks.context].transpose(1, 2)).view(count, size, hidden, -1)  # (Z, K, hidden, L)
        pairs = pairs + self.of_place(places).transpose(1, 2)[blocks.context][:, None] + self.of_query(queries)[..., None]
        weights = torch.einsum("h,zkhl->zkl", self.out.weight[0], nn.functional.silu(pairs)) + self.out.bias
        return blocks.gather(torch.bmm(weights.masked_fill(~real[:, None, :], 0.0), sequences))
