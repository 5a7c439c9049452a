"""What a slot adds to the click logit, learned in training and left out in scoring (Zhao et al. 2019, shallow tower).

A slot adds one number everywhere, and one more in each placement: the fourth ad of a search page is seen less than the
fourth of a feed. What is added is 0 on average over the rows of a placement, so that the network's own logit is that of an
average slot there: where a letter shows one ad, all its clicks come from the first slot, and would be the slot's alone.
"""

from typing import Any

import torch
from torch import Tensor, nn


class PositionBias(nn.Module):
    """`placement` is the column of the categorical features that names it; None: all are one.

    Slots beyond `slots` share the last value; an unknown slot (0) adds nothing.
    """

    SPEED = 10.0
    """Effects are so many times their parameters: a lone number must move by one or two where a matrix moves by hundredths."""

    counts: Tensor

    def __init__(self, *, slots: int, placements: int = 1, placement: int | None = None) -> None:
        super().__init__()
        self.slots, self.placement = slots, placement
        # Flat, since vectors do not decay.
        self.bias = nn.Parameter(torch.zeros(slots + 1))
        self.placed = nn.Parameter(torch.zeros(placements * (slots + 1))) if placement is not None else None
        self.register_buffer("counts", torch.zeros(placements, slots + 1, dtype=torch.int64))  # training rows

    def forward(self, position: Tensor, categorical: Tensor) -> Tensor:
        """(B,), categorical codes of the rows (B, Fc) → (B,)."""
        slot = position.clamp(0, self.slots)
        place = torch.zeros_like(slot) if self.placement is None else categorical[:, self.placement]
        if self.training:
            self.counts.index_put_((place, slot), torch.ones_like(slot), accumulate=True)
        return self.table()[place, slot]

    def table(self) -> Tensor:
        """(placements, slots + 1) what each slot adds; 0 in the first column."""
        whole = self.bias[None]
        if self.placed is not None:
            whole = whole + self.placed.view(-1, self.slots + 1)
        is_known = torch.arange(self.slots + 1, device=whole.device) > 0
        seen = (self.counts * is_known).to(whole.dtype)
        average = (seen * whole).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp(min=1)
        return self.SPEED * (whole - average) * is_known

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Weights of before there were counts speak of slots as they did."""
        state_dict.setdefault(f"{prefix}counts", torch.zeros_like(self.counts))
        super()._load_from_state_dict(state_dict, prefix, *rest)
