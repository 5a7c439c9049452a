"""What a bundle's network knows of user and ad, as two further tokens of a language model's input (CoLLM, Zhang et al. 2023).

A language model reads words; who clicked what with whom it cannot see. Each vector goes through a small map of its own to where
the model's token embeddings lie. Costs two tokens a pair, and the network's vectors, which retrieval has anyway.

# U pairs, T tokens, D width of the network's vectors, W width of the token embeddings
"""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

USER, AD = -1, -2
"""Where the vectors stand among token ids."""


class PairVectors(NamedTuple):
    """Of N pairs."""

    users: NDArray[np.float32]
    """(N, D)"""
    ads: NDArray[np.float32]
    """(N, D)"""

    def take(self, rows: NDArray[np.integer]) -> "PairVectors":
        """Those of some pairs."""
        return PairVectors(self.users[rows], self.ads[rows])


class SoftTokens(nn.Module):
    """Vectors of users and ads → one embedding each. What they are less their mean, over their spread, is of `fit`."""

    mean: Tensor
    spread: Tensor
    size: Tensor

    def __init__(self, width: int, embedding: int, hidden: int = 64) -> None:
        """`width` D of either vector, `embedding` W, `hidden` between."""
        super().__init__()
        self.width = width
        self.maps = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, embedding)) for _ in (USER, AD)]
        )
        self.register_buffer("mean", torch.zeros(2, width))
        self.register_buffer("spread", torch.ones(2, width))
        self.register_buffer("size", torch.ones(()))

    def fit(self, vectors: PairVectors, table: nn.Module) -> None:
        """Take the scale of the vectors from training pairs, and that of the result from some of the model's embeddings."""
        for place, values in enumerate(vectors):
            own = torch.from_numpy(values)
            self.mean[place] = own.mean(0)
            self.spread[place] = own.std(0, correction=0).clamp(min=1e-6)
        weight = cast(Tensor, table.weight)
        some = torch.linspace(0, len(weight) - 1, min(len(weight), 1000), device=weight.device).long()
        with torch.no_grad():  # what the module gives: some models scale the rows of their table
            self.size.copy_(table(some).float().square().mean().sqrt())

    def forward(self, embedded: Tensor, input_ids: Tensor, users: Tensor, ads: Tensor) -> Tensor:
        """`embedded` (U, T, W) with the vectors (U, D) each where `input_ids` (U, T) say."""
        for place, (mark, values) in enumerate(((USER, users), (AD, ads))):
            token = self.maps[place]((values - self.mean[place]) / self.spread[place])
            token = (token * self.size).to(embedded.dtype)[:, None]  # (U, 1, W)
            embedded = torch.where((input_ids == mark)[..., None], token, embedded)
        return embedded


def embedding_table(backbone: nn.Module) -> nn.Module:
    """The module that makes embeddings of token ids."""
    return cast(nn.Module, cast(Any, backbone).get_input_embeddings())
