"""Token vectors to one text vector: means, largest, first token, last token, or learned attention over tokens.

# U texts, T tokens, D width
"""

from typing import get_args

import torch
from torch import Tensor, nn

from adrec.specs import RecordedPooling

POOLINGS: tuple[str, ...] = get_args(RecordedPooling)


class Pool(nn.Module):
    """One vector a text from its token vectors.

    `mean` averages real tokens, `cls` takes the first, `last` the last real one (decoders, EOS pooling), `attention`
    is a softmax over a learned query (additive-free form of Yang et al., "Hierarchical Attention Networks", 2016).
    The attention query starts at zero, where it equals the mean. `max` takes the largest of each dimension, `mean_sqrt_len`
    divides the sum by the root of the count, `weighted_mean` weighs tokens by their place from 1 (Muennighoff 2022, "SGPT").
    """

    def __init__(self, pooling: RecordedPooling, dimension: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.query = nn.Parameter(torch.zeros(dimension)) if pooling == "attention" else None

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """`states` (U, T, D) float, `mask` (U, T) 1 on real tokens, at least one a text -> (U, D)."""
        if self.pooling == "cls":
            first = mask.argmax(dim=1)  # (U,): not 0 where padding is on the left
            return _row_at(states, first)
        if self.pooling == "last":
            positions = torch.arange(mask.shape[1], device=mask.device)
            return _row_at(states, (mask * positions).argmax(dim=1))
        if self.pooling == "max":
            return states.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(dim=1)
        if self.query is None:
            weights = mask.to(states.dtype)
            if self.pooling == "weighted_mean":
                weights = weights * mask.cumsum(1)
            total = weights.sum(dim=1, keepdim=True).clamp_min(1)
            return (states * weights.unsqueeze(-1)).sum(dim=1) / (total.sqrt() if self.pooling == "mean_sqrt_len" else total)
        logits = torch.einsum("utd,d->ut", states, self.query) / states.shape[-1] ** 0.5
        weights = logits.masked_fill(mask == 0, torch.finfo(logits.dtype).min).softmax(dim=1)
        return torch.einsum("utd,ut->ud", states, weights)


def _row_at(states: Tensor, index: Tensor) -> Tensor:
    """states (U, T, D), index (U,) -> (U, D)."""
    return states[torch.arange(states.shape[0], device=states.device), index]
