"""History → user vectors. Each part reads the clicked ads in its own way; `UserEncoder` composes any list of parts.

Shapes: C contexts (a user at a moment), H clicks oldest first with padding at the end, D width, B rows.
A part that needs no candidate gives (C, D) and so serves retrieval; `target` looks at the candidate and gives (B, D).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from adrec.data.batches.blocks import Blocks
from adrec.models.net.attention import AdditiveAttention, MultiHeadSelfAttention, TargetAttention
from adrec.models.net.sequence import CausalHistory, Hstu, SasRec, newest

Part = Literal["mean", "soft", "global", "local", "gru", "sasrec", "hstu", "target"]
PARTS: tuple[Part, ...] = ("mean", "soft", "global", "local", "gru", "sasrec", "hstu", "target")
CAUSAL: tuple[Part, ...] = ("sasrec", "hstu")
"""Parts with a state after each click, which the loss `next_click` teaches."""


class States(NamedTuple):
    """What a causal part made of the newest L clicks."""

    states: Tensor
    """(C, L, D) after each click; places of padding mean nothing"""
    places: Tensor
    """(C, L) int64, which clicks of the history they are, oldest first"""
    real: Tensor
    """(C, L) bool"""


class Read(NamedTuple):
    """Histories, read."""

    users: Tensor
    """(C, D) user vectors"""
    causal: tuple[States, ...]
    """of each causal part"""
    last: tuple[Tensor, ...]
    """(C, D) of each causal part: its last state"""


class MeanHistory(nn.Module):
    """The average click."""

    def forward(self, x: Tensor, mask: Tensor, hours: Tensor) -> Tensor:
        """(C, H, D), (C, H), (C, H) → (C, D)."""
        share = mask / mask.sum(-1, keepdim=True).clamp(min=1)
        return torch.einsum("ch,chd->cd", share.to(x.dtype), x)


class SoftHistory(nn.Module):
    """Additive attention with one learned query."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.pool = AdditiveAttention(width=width, hidden=width)

    def forward(self, x: Tensor, mask: Tensor, hours: Tensor) -> Tensor:
        """(C, H, D), (C, H), (C, H) → (C, D)."""
        pooled: Tensor = self.pool(x, mask)
        return pooled


class GlobalHistory(nn.Module):
    """Self-attention between all clicks, then additive attention: the user encoder of NRMS (Wu et al. 2019)."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.mix = MultiHeadSelfAttention(width=width, heads=heads, dropout=dropout)
        self.pool = AdditiveAttention(width=width, hidden=width)

    def forward(self, x: Tensor, mask: Tensor, hours: Tensor) -> Tensor:
        """(C, H, D), (C, H), (C, H) → (C, D)."""
        pooled: Tensor = self.pool(self.mix(x, mask), mask)
        return pooled


class LocalHistory(nn.Module):
    """Self-attention within the newest `window` clicks, told the order and the time between clicks.

    Each click carries a learned embedding of its distance from the newest; the logits between two clicks carry a learned
    bias of the gap between them, bucketed in powers of two hours (Li et al. 2020, TiSASRec, with buckets in place of its
    personal intervals; window: An et al. 2019, the short-term half of LSTUR).
    """

    BUCKETS = 16

    def __init__(self, *, width: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.window = window
        self.order = nn.Embedding(window, width)
        self.gap = nn.Embedding(self.BUCKETS, heads)
        self.mix = MultiHeadSelfAttention(width=width, heads=heads, dropout=dropout)
        self.pool = AdditiveAttention(width=width, hidden=width)
        nn.init.normal_(self.order.weight, std=0.02)
        nn.init.zeros_(self.gap.weight)

    def forward(self, x: Tensor, mask: Tensor, hours: Tensor) -> Tensor:
        """(C, H, D), (C, H), (C, H) → (C, D)."""
        count = mask.sum(-1, keepdim=True)  # (C, 1)
        # Window place w holds the click w steps before the newest; gather puts it there whatever the padding is.
        steps = torch.arange(self.window, device=x.device)
        place = count - 1 - steps  # (C, W)
        near = place >= 0
        place = place.clamp(min=0)
        recent = x.gather(1, place[..., None].expand(-1, -1, x.shape[-1])) + self.order.weight  # (C, W, D)
        age = hours.gather(1, place)
        gap = (age[:, :, None] - age[:, None, :]).abs()
        bucket = torch.log2(gap + 1).long().clamp(max=self.BUCKETS - 1)  # (C, W, W)
        bias = self.gap(bucket).permute(0, 3, 1, 2)  # (C, M, W, W)
        pooled: Tensor = self.pool(self.mix(recent, near, bias), near)
        return pooled


class GruHistory(nn.Module):
    """The last state of a GRU over the clicks in order (Hidasi et al. 2016; LSTUR's short-term user)."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor, hours: Tensor) -> Tensor:
        """(C, H, D), (C, H), (C, H) → (C, D). Padding lies after the last click, so it cannot change that click's state."""
        states, _ = self.gru(x)
        last = (mask.sum(-1) - 1).clamp(min=0)
        chosen: Tensor = states[torch.arange(len(x), device=x.device), last]
        return chosen


class UserEncoder(nn.Module):
    """Clicked (and skipped) ads, interests text and profile → one vector a context, and one more a row for `target`.

    A part is a name of ours or a module like them, (C, H, D), (C, H), (C, H) → (C, D). `length` and `layers` are those of the
    causal parts, whose vector is the state after the newest click.
    An empty history is a learned vector. The parts are concatenated with the profile vector and projected to `width`.
    """

    def __init__(
        self,
        *,
        width: int,
        parts: Sequence[Part | nn.Module] = ("soft",),
        heads: int = 4,
        window: int = 10,
        length: int = 50,
        layers: int = 2,
        skipped: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        plain = [part for part in parts if part != "target"]
        sizes = {"heads": heads, "window": window, "length": length, "layers": layers}
        self.plain = nn.ModuleList([_part(part, width=width, dropout=dropout, **sizes) for part in plain])
        self.target = TargetAttention(width=width, hidden=max(width // 4, 8)) if "target" in parts else None
        self.skipped = AdditiveAttention(width=width, hidden=width) if skipped else None
        self.empty = nn.Parameter(nn.init.normal_(torch.empty(width), std=0.02))
        self.dropout = nn.Dropout(dropout)
        # Without a part that serves retrieval the plain mean stands in, so that every model has a user vector.
        self.mean = MeanHistory() if not plain else None
        self.join = nn.Linear(width * (max(len(plain), 1) + int(skipped) + 1), width)

    def forward(self, x: Tensor, mask: Tensor, hours: Tensor, profile: Tensor, skipped: Tensor, skipped_mask: Tensor) -> Read:
        """Clicks (C, H, D), mask (C, H), hours (C, H), profile (C, D), skipped (C, S, D), mask (C, S)."""
        parts = [self.mean] if self.mean is not None else list(self.plain)
        known = mask.any(-1, keepdim=True)
        vectors, causal, last = [], [], []
        for part in parts:
            if isinstance(part, CausalHistory):
                causal.append(_states(part, x, mask, hours))
                vectors.append(torch.where(known, _newest_state(causal[-1]), self.empty))
                last.append(vectors[-1])
            else:
                vectors.append(torch.where(known, part(x, mask, hours), self.empty))
        if self.skipped is not None:
            vectors.append(self.skipped(skipped, skipped_mask))
        joined = self.join(self.dropout(torch.cat([*vectors, profile], -1)))
        return Read(joined, tuple(causal), tuple(last))

    def for_candidates(self, x: Tensor, mask: Tensor, candidates: Tensor, context: Tensor, blocks: Blocks) -> Tensor | None:
        """Candidates (B, D), context (B,) → the part of the history that concerns each, (B, D); None without `target`."""
        if self.target is None:
            return None
        attended = self.target(x, mask, candidates, blocks)
        return torch.where(mask.any(-1)[context][:, None], attended, self.empty)


def _states(part: CausalHistory, x: Tensor, mask: Tensor, hours: Tensor) -> States:
    places, real = newest(mask, part.length)
    read = x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
    return States(part.states(read, real, hours.gather(1, places)), places, real)


def _newest_state(read: States) -> Tensor:
    """(C, D)."""
    last = (read.real.sum(-1) - 1).clamp(min=0)
    chosen: Tensor = read.states[torch.arange(len(last), device=last.device), last]
    return chosen


def _part(
    part: Part | nn.Module, *, width: int, heads: int, window: int, length: int, layers: int, dropout: float
) -> nn.Module:
    if isinstance(part, nn.Module):
        return part
    match part:
        case "mean":
            return MeanHistory()
        case "soft":
            return SoftHistory(width=width)
        case "global":
            return GlobalHistory(width=width, heads=heads, dropout=dropout)
        case "local":
            return LocalHistory(width=width, heads=heads, window=window, dropout=dropout)
        case "gru":
            return GruHistory(width=width)
        case "sasrec":
            return SasRec(width=width, heads=heads, length=length, layers=layers, dropout=dropout)
        case "hstu":
            return Hstu(width=width, heads=heads, length=length, layers=layers, dropout=dropout)
    raise ValueError(f"unknown user encoder '{part}', expected one of {', '.join(PARTS)}")
