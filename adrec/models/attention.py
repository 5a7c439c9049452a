"""Attention over a padded sequence. Masked places weigh exactly 0, and a sequence without any place gives 0, not NaN.

Shapes: N sequences, L places, D width, E query width, Z query vectors a sequence, M heads. Masks are True for a real place.
"""

import math

import torch
from torch import Tensor, nn


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

    Deep Interest Network (Zhou et al. 2018, section 4.3). The first layer is linear in its four parts, and the parts that do
    not need both x and q are computed once a place or once a query: the pairs cost one product less than a plain MLP.
    """

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.of_place = nn.Linear(width, hidden, bias=False)
        self.of_query = nn.Linear(width, hidden)
        self.of_product = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, mask: Tensor, query: Tensor, owner: Tensor) -> Tensor:
        """Places (N, L, D), mask (N, L), queries (B, D), owner (B,) into the N sequences → (B, D).

        W [x, x - q, x * q, q] = (W1 + W2) x + (W4 - W2) q + W3 (x * q): three maps instead of four.
        """
        places = self.of_place(x)[owner]  # (B, L, hidden)
        # W3 (x * q) = (W3 diag(q)) x, a batched product without the (B, L, D) intermediate.
        scaled = self.of_product.weight * query[:, None, :]  # (B, hidden, D)
        sequences = x[owner]  # (B, L, D)
        pairs = places + torch.bmm(sequences, scaled.transpose(1, 2)) + self.of_query(query)[:, None, :]
        weights = self.out(torch.nn.functional.silu(pairs)).squeeze(-1).masked_fill(~mask[owner], 0.0)  # (B, L)
        return torch.einsum("bl,bld->bd", weights, sequences)
