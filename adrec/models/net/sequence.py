"""Causal readers of a history: the state after each click knows that click and those before it, and no later one.

Because no state sees what follows, each may be asked for the click that follows (`losses.next_click`). Both read the newest
`length` clicks: costs grow with its square, whatever the length of the history.

Shapes: C contexts, L places oldest first with padding at the end, D width, M heads.
"""

import torch
from torch import Tensor, nn

from adrec.models.net.attention import MultiHeadSelfAttention

BUCKETS = 24
"""Of the time between two clicks, in powers of two quarter hours: the last begins at 120 years."""


class CausalHistory(nn.Module):
    """What the two parts share: `states` of the newest `length` clicks."""

    length: int

    def states(self, x: Tensor, real: Tensor, hours: Tensor) -> Tensor:
        """(C, L, D), (C, L), age in hours (C, L) → (C, L, D)."""
        raise NotImplementedError


class SasRec(CausalHistory):
    """Self-attentive sequential recommendation (Kang and McAuley 2018): x = x + SA(LN(x)), x = x + FFN(LN(x)), a last LN.

    Places are counted from the oldest click that is read, so that a further click changes no earlier state.
    """

    def __init__(self, *, width: int, heads: int, length: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.length = length
        self.place = nn.Embedding(length, width)
        nn.init.normal_(self.place.weight, std=0.02)
        self.blocks = nn.ModuleList([_SasBlock(width=width, heads=heads, dropout=dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def states(self, x: Tensor, real: Tensor, hours: Tensor) -> Tensor:
        """(C, L, D), (C, L), (C, L) → (C, L, D)."""
        size = x.shape[1]
        causal = _earlier(size, x.device)
        bias = torch.zeros(causal.shape, device=x.device).masked_fill(~causal, -torch.inf)
        x = self.dropout(x + self.place.weight[:size])
        for block in self.blocks:
            x = block(x, real, bias)
        states: Tensor = self.norm(x)
        return states


class _SasBlock(nn.Module):
    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = MultiHeadSelfAttention(width=width, heads=heads, dropout=dropout)
        self.forward_layers = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.Dropout(dropout)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, real: Tensor, bias: Tensor) -> Tensor:
        x = x + self.dropout(self.mix(self.before(x), real, bias))
        mixed: Tensor = x + self.forward_layers(self.between(x))
        return mixed


class Hstu(CausalHistory):
    """Hierarchical sequential transduction unit (Zhai et al. 2024, section 3.2), a layer

        U, V, Q, K = split(SiLU(W1 LN(x)));   x = x + W2 (LN(SiLU(Q K' + b) V / length) * U)

    with a learned bias b of how many clicks and how much time lie between two clicks. Nothing is normalised over the places,
    so that ten clicks of a kind weigh more than one.
    """

    def __init__(self, *, width: int, heads: int, length: int, layers: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.length = length
        self.place = nn.Embedding(length, width)
        nn.init.normal_(self.place.weight, std=0.02)
        self.blocks = nn.ModuleList(
            [_HstuBlock(width=width, heads=heads, length=length, dropout=dropout) for _ in range(layers)]
        )
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def states(self, x: Tensor, real: Tensor, hours: Tensor) -> Tensor:
        """(C, L, D), (C, L), (C, L) → (C, L, D)."""
        size = x.shape[1]
        seen = _earlier(size, x.device) & real[:, None, :]  # (C, L, L)
        places = torch.arange(size, device=x.device)
        apart = (places[:, None] - places[None, :]).clamp(min=0)  # (L, L)
        gap = (hours[:, None, :] - hours[:, :, None]).abs()  # (C, L, L)
        bucket = torch.log2(4 * gap + 1).long().clamp(max=BUCKETS - 1)
        x = self.dropout(x + self.place.weight[:size])
        for block in self.blocks:
            x = block(x, seen, apart, bucket)
        states: Tensor = self.norm(x)
        return states


class _HstuBlock(nn.Module):
    def __init__(self, *, width: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.length = heads, length
        self.before = nn.LayerNorm(width)
        self.after = nn.LayerNorm(width, elementwise_affine=False)
        self.uvqk = nn.Linear(width, 4 * width)
        self.out = nn.Linear(width, width)
        self.apart, self.gap = nn.Embedding(length, heads), nn.Embedding(BUCKETS, heads)
        nn.init.zeros_(self.apart.weight)
        nn.init.zeros_(self.gap.weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor, apart: Tensor, bucket: Tensor) -> Tensor:
        n, length, width = x.shape
        u, v, q, k = nn.functional.silu(self.uvqk(self.before(x))).chunk(4, -1)
        v, q, k = (part.view(n, length, self.heads, width // self.heads).transpose(1, 2) for part in (v, q, k))
        bias = self.apart(apart) + self.gap(bucket)  # (C, L, L, M)
        weights = nn.functional.silu(q @ k.transpose(-1, -2) + bias.permute(0, 3, 1, 2)) / self.length
        weights = weights.masked_fill(~seen[:, None], 0.0)
        pooled = (weights @ v).transpose(1, 2).reshape(n, length, width)
        mixed: Tensor = x + self.out(self.dropout(self.after(pooled) * u))
        return mixed


def newest(mask: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Mask (C, H), real places first → the newest `limit` places of each history (C, L), oldest first, and whether each is
    one (C, L). L is `limit`, or H where that is less.
    """
    count = mask.sum(-1, keepdim=True)
    places = (count - limit).clamp(min=0) + torch.arange(min(limit, mask.shape[1]), device=mask.device)
    return places.clamp(max=mask.shape[1] - 1), places < count


def _earlier(size: int, device: torch.device) -> Tensor:
    """(L, L) True where the second place is not later than the first."""
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()
