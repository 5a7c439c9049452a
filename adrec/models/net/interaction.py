"""User, ad and features → one representation a row, on which the tasks build.

Shapes: B rows, C contexts, A ads, H history, D width, E width of the extra input, K width of the result (`out_width`).
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Interaction = Literal["dot", "mlp", "dcn"]
INTERACTIONS: tuple[Interaction, ...] = ("dot", "mlp", "dcn")


class Dot(nn.Module):
    """u . a / sqrt(D): nothing else may speak, so scores are exactly what nearest-neighbour retrieval orders by."""

    out_width = 1

    def forward(self, user: Tensor, ad: Tensor, extra: Tensor) -> Tensor:
        """(B, D), (B, D), (B, E) → (B, 1)."""
        return (user * ad).sum(-1, keepdim=True) / math.sqrt(user.shape[-1])


class Concatenated(nn.Module):
    """[u, a, u * a, |u - a|, u . a / sqrt(D), extra]; the tasks' own layers are the MLP over it."""

    def __init__(self, *, width: int, extra: int) -> None:
        super().__init__()
        self.out_width = 4 * width + 1 + extra

    def forward(self, user: Tensor, ad: Tensor, extra: Tensor) -> Tensor:
        """(B, D), (B, D), (B, E) → (B, 4 D + 1 + E)."""
        product = user * ad
        dot = product.sum(-1, keepdim=True) / math.sqrt(user.shape[-1])
        return torch.cat([user, ad, product, (user - ad).abs(), dot, extra], -1)


class CrossNetwork(nn.Module):
    """x_{l+1} = x_0 * (U V' x_l + b) + x_l: explicit crosses of every order up to `layers` + 1 (DCN-v2, Wang et al. 2021).

    W = U V' has the low rank of the paper's section 3.5. The result is the crossed vector beside the input itself.
    """

    def __init__(self, *, width: int, extra: int, layers: int, rank: int) -> None:
        super().__init__()
        full = 4 * width + 1 + extra
        self.concatenated = Concatenated(width=width, extra=extra)
        self.down = nn.ModuleList([nn.Linear(full, rank, bias=False) for _ in range(layers)])
        self.up = nn.ModuleList([nn.Linear(rank, full) for _ in range(layers)])
        self.out_width = 2 * full

    def forward(self, user: Tensor, ad: Tensor, extra: Tensor) -> Tensor:
        """(B, D), (B, D), (B, E) → (B, 2 (4 D + 1 + E))."""
        first = self.concatenated(user, ad, extra)
        x = first
        for down, up in zip(self.down, self.up, strict=True):
            x = first * up(down(x)) + x
        return torch.cat([first, x], -1)


def interaction(
    kind: Interaction, *, width: int, extra: int, cross_layers: int = 2, cross_rank: int = 32
) -> Dot | Concatenated | CrossNetwork:
    """The interaction by name."""
    match kind:
        case "dot":
            return Dot()
        case "mlp":
            return Concatenated(width=width, extra=extra)
        case "dcn":
            return CrossNetwork(width=width, extra=extra, layers=cross_layers, rank=cross_rank)


def mean_interest(interests: Tensor) -> Tensor:
    """(C, P, D) → (C, D) mean of the vectors that are there (not zero); zero where there is none."""
    count = interests.any(-1).sum(-1, keepdim=True)
    return interests.sum(1) / count.clamp(min=1)


def mean_of_history(vectors: Tensor, mask: Tensor) -> Tensor:
    """(C, H, D), (C, H) → (C, D) the mean of the places that `mask` keeps; zero where it keeps none."""
    total = torch.einsum("ch,chd->cd", mask.to(vectors.dtype), vectors)
    return total / mask.sum(-1, keepdim=True).clamp(min=1)
