"""Two parts of the network. Shapes: B rows, C contexts (a user at a moment), H clicks oldest first, D width, E extra inputs."""

import torch
from torch import Tensor, nn

from adrec.plugins import ModelPart


class Gate(nn.Module):
    """[u * σ(W a + b), extra]: the ad decides which sides of the user count."""

    def __init__(self, *, width: int, extra: int) -> None:
        super().__init__()
        self.open = nn.Linear(width, width)
        self.out_width = width + extra

    def forward(self, user: Tensor, ad: Tensor, extra: Tensor) -> Tensor:
        """(B, D), (B, D), (B, E) → (B, D + E)."""
        return torch.cat([user * torch.sigmoid(self.open(ad)), extra], -1)


class Newest(nn.Module):
    """The newest click alone; zeros where there is none."""

    def __init__(self, *, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor, hours: Tensor) -> Tensor:
        """(C, H, D), (C, H), (C, H) → (C, D)."""
        count = mask.sum(-1)
        newest = x[torch.arange(len(x), device=x.device), (count - 1).clamp(min=0)]
        return newest * (count > 0).unsqueeze(-1)


gate = ModelPart("interaction", Gate)
newest = ModelPart("user part", Newest)
