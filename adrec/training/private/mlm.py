"""Masked language modelling by DP-SGD: a user's texts are a unit, the ads' texts are public and learned as ever."""

from typing import Any

import torch
from torch import Tensor, nn

from adrec.models.text.language_model import LanguageModel
from adrec.privacy.noise import Noise
from adrec.training.mlm_module import PretrainModule
from adrec.training.private.ghost import watched
from adrec.training.private.texts import TextStep, UserTexts


class PrivatePretrainModule(PretrainModule):
    """`noise`: deviations over `clip`; `expected`: users a step, on average.

    The gradient is the noised mean over users plus that of the public batch. Only the public loss is logged.
    """

    def __init__(self, *args: Any, noise: float, clip: float, expected: float, randomness: Noise, **others: Any) -> None:
        super().__init__(*args, **others)
        self.noise, self.clip, self.expected, self.randomness = noise, clip, expected, randomness
        self._gradient: dict[str, Tensor] = {}

    def training_step(self, batch: TextStep, batch_idx: int) -> Tensor:  # type: ignore[override]
        """Draw the noised gradient of the users; the public batch's comes on top."""
        trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        total = {name: torch.zeros_like(value) for name, value in trained.items()}
        for part in batch.users:
            for name, own in clipped_text_gradients(self.model, part, self.clip).items():
                total[name] += own
        for own in total.values():
            drawn = torch.from_numpy(self.randomness.gaussian(own.numel())).to(own)
            own += self.noise * self.clip * drawn.view_as(own)
        self._gradient = {name: own / self.expected for name, own in total.items()}
        self.model.zero_grad(set_to_none=True)
        loss: Tensor = super().training_step((batch.public,), batch_idx)
        return loss

    def configure_gradient_clipping(self, *args: Any, **more: Any) -> None:
        """Each user's is clipped; the sum's size is mostly noise."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Add the users' gradient to the public one."""
        for name, value in self.model.named_parameters():
            if name in self._gradient:
                value.grad = self._gradient[name] if value.grad is None else value.grad + self._gradient[name]
        self._gradient = {}


def text_losses(model: LanguageModel, batch: UserTexts) -> Tensor:
    """(U,) mean cross-entropy of each user's masked tokens, in nats."""
    states = model(batch.tokens, batch.texts, batch.positions)
    chosen = states.gather(1, batch.places[..., None].expand(-1, -1, states.shape[-1]))
    logits = model.logits(chosen).float()  # (U, M, V)
    lost = nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
    return (lost * batch.weight).sum(1)


def clipped_text_gradients(model: LanguageModel, batch: UserTexts, clip: float) -> dict[str, Tensor]:
    """name → sum over users of gradient * min(1, clip / norm)."""
    model.zero_grad(set_to_none=True)
    with watched(model, len(batch.tokens)) as ghost:
        text_losses(model, batch).sum().backward()  # type: ignore[no-untyped-call]
    norms = ghost.norms()
    factors = (clip / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
    return ghost.summed(torch.where(torch.isfinite(norms), factors, 0.0))
