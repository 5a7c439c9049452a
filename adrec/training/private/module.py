"""The click model trained by DP-SGD: Lightning's step as ever, but the gradient is a noised sum of clipped ones.

The optimiser, its schedule and the weights' decay see nothing but that sum, so they cost no privacy (post-processing).
"""

import math
from typing import Any

import torch
from torch import Tensor

from adrec.privacy.noise import Noise
from adrec.training.ctr_module import CTRModule
from adrec.training.private.gradients import UnitLoss, clipped_gradients
from adrec.training.private.units import Units

_CLIP_RATE = 1.0
"""Of the log of the clip, a step: from 1 to 8 takes ten steps, and the noised count moves it by a twentieth."""


class PrivateCTRModule(CTRModule):
    """Learns from Units. `noise`: deviations over the clip; `expected`: units a step, on average.

    `whole`: the clip follows the norm below which this share of the units lies, whose gradients stay whole; None: it stays as
    it is. The count that this needs is noised too, by a twentieth of a step's units; the noise of the gradients is raised so
    that both together cost what `noise` alone would (Andrew et al. 2021, theorem 1). Their median would cut every click: where
    one row in ten is clicked its gradient is nine times a miss's, and what is left of it says that nobody clicks.
    """

    clip: Tensor

    def __init__(
        self, *, noise: float, clip: float, expected: float, whole: float | None, randomness: Noise, **others: Any
    ) -> None:
        super().__init__(**others)
        self.noise, self.expected, self.whole, self.randomness = noise, expected, whole, randomness
        self.register_buffer("clip", torch.tensor(float(clip)))
        self.count_noise = max(expected / 20.0, 2.0 * noise)
        self._gradient: dict[str, Tensor] = {}
        self._unit_loss: list[UnitLoss] = []

    @property
    def gradient_noise(self) -> float:
        """Deviations of the noise on the sum of the gradients, over the clip."""
        if self.whole is None or not self.noise:
            return self.noise
        return float((self.noise**-2 - (2.0 * self.count_noise) ** -2) ** -0.5)

    def training_step(self, batch: Units, index: int) -> Tensor:  # type: ignore[override]
        """Draw the noised gradient; the loss a row is for the curve alone."""
        if not self._unit_loss:  # in a list: a module of this one, it would hold every weight twice
            self._unit_loss = [UnitLoss(self.model, super().loss, self.list_penalty)]
        made = clipped_gradients(self._unit_loss[0], batch, self.clip)
        deviation = self.gradient_noise * float(self.clip)
        for total in made.total.values():
            if deviation:
                drawn = torch.from_numpy(self.randomness.gaussian(total.numel())).to(total)
                total += deviation * drawn.view_as(total)
        shares = self._unit_loss[0].shares
        self._gradient = {name: total / (self.expected * shares.get(name, 1.0)) for name, total in made.total.items()}
        if self.whole is not None:
            # Each unit counts a half for or against: a half is what one unit changes.
            below = float((made.norms <= self.clip).sum()) - len(made.norms) / 2.0
            below += self.count_noise * float(self.randomness.gaussian(1)[0])
            self.clip *= math.exp(-_CLIP_RATE * (below / self.expected + 0.5 - self.whole))
        loss = made.loss / made.rows.clamp(min=1)
        self.log("train_loss", loss, prog_bar=True, batch_size=max(len(made.norms), 1))
        return loss.to(self.device)

    def backward(self, loss: Tensor, *args: Any, **more: Any) -> None:
        """The gradient is made already."""
        trained = dict(self._unit_loss[0].named_parameters())
        for name, gradient in self._gradient.items():
            trained[name].grad = gradient

    def configure_gradient_clipping(self, *args: Any, **more: Any) -> None:
        """Each unit's is clipped; the sum's size is mostly noise."""
