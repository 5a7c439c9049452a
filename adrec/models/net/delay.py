"""Losses for labels that come late: what is no conversion yet may become one.

Shapes: B rows. `logits` of the probability that it happens in the end, `happened` (B,) 1 where it has by now, `delay` and
`elapsed` (B,) hours from the showing to the event and to now. Each returns (B,), a loss a row. Papers and what they need:
docs/training/finetune.md.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from adrec.metrics.delays import DelayCurve

DelayMethod = Literal["none", "wait", "dfm", "es_dfm", "fnw"]
_MOST_WEIGHT = 10.0
_LEAST_CLOCK = 1e-3
_MOST_LOG = 2.0
"""Of a delay's rate and shape, in logarithms: e ** 2 times as fast or slow as the rest."""


def delayed_feedback(
    logits: Tensor, happened: Tensor, delay: Tensor, elapsed: Tensor, log_rate: Tensor, log_shape: Tensor
) -> Tensor:
    """Chapelle 2014, eq. 10 to 13, with Weibull delays (Ji et al. 2016), of which exponential ones are those of shape 1.

    A delay of t has hazard H(t) = (rate t) ** shape. Happened: -log p - log H'(delay) + H(delay). Not yet:
    -log(1 - p + p exp(-H(elapsed))).
    """
    shape = torch.exp(log_shape)
    log_delay, log_elapsed = (torch.log(hours.clamp(min=_LEAST_CLOCK)) for hours in (delay, elapsed))
    at_delay, at_elapsed = (torch.exp(shape * (log_rate + hours)) for hours in (log_delay, log_elapsed))
    seen = nn.functional.softplus(-logits) - log_shape - shape * log_rate - (shape - 1) * log_delay + at_delay
    unseen = nn.functional.softplus(logits) - nn.functional.softplus(logits - at_elapsed)
    return torch.where(happened > 0, seen, unseen)


def fake_negative_weighted(logits: Tensor, happened: Tensor) -> Tensor:
    """Ktena et al. 2019, eq. 9: every row enters as a negative, and once more as a positive when it happens.

    (1 + p) [-(1 - p) log(1 - p) - happened log p], the weights without gradient. What has not happened by now is not made up
    for: the loss is for models that go on learning, where it enters once it happens.
    """
    p = torch.sigmoid(logits).detach()
    lost = (1 - p) * nn.functional.softplus(logits) + happened * nn.functional.softplus(-logits)
    return (1 + p) * lost


def elapsed_time_sampled(
    logits: Tensor, happened: Tensor, delay: Tensor, wait: float, late_logit: Tensor, real_logit: Tensor, again: Tensor
) -> Tensor:
    """Yang et al. 2021, eq. 13 to 17: a row enters `wait` hours after its showing with what has happened by then, and once
    more as a positive if it happens later.

    `late_logit`: that it happens later than `wait`; `real_logit`: that a row where nothing has by `wait` stays so; neither
    takes part in the gradient. `again` (B,): how many later ones a later one stands for, those not seen yet among them.
    """
    late, real = torch.sigmoid(late_logit).detach(), torch.sigmoid(real_logit).detach()
    soon = happened * (delay <= wait)
    enters_again = happened * (delay > wait) * again
    positive, negative = nn.functional.softplus(-logits), nn.functional.softplus(logits)
    return (1 + late) * (soon * positive + (1 - soon) * (real * negative + enters_again * positive))


def sampling_heads(
    happened: Tensor, delay: Tensor, wait: float, late_logit: Tensor, real_logit: Tensor, again: Tensor
) -> Tensor:
    """What teaches the two probabilities of `elapsed_time_sampled`: cross-entropy of later ones among all rows, and of rows
    that stay without among those without at `wait`."""
    soon = happened * (delay <= wait)
    late = happened * (delay > wait)
    softplus = nn.functional.softplus
    of_late = late * again * softplus(-late_logit) + (1 - late) * softplus(late_logit)
    of_real = late * again * softplus(real_logit) + (1 - late) * softplus(-real_logit)
    return of_late + (1 - soon) * of_real


class DelayLoss(nn.Module):
    """The loss of one task under `method`, with the heads that it needs: they read the network's vectors of user and ad but do
    not shape them, and no bundle keeps them.

    `curve` are the delays as training knows them: the delays of `dfm` run on its clock, on which those of all rows together
    are exponential whatever their form, and in `es_dfm` rows that came late stand for those still to come.
    """

    hours: Tensor
    share: Tensor
    clock: Tensor

    def __init__(self, *, method: DelayMethod, wait_hours: float, curve: DelayCurve, width: int) -> None:
        super().__init__()
        self.method, self.wait = method, wait_hours
        for name, values in (("hours", curve.hours), ("share", curve.by(curve.hours)), ("clock", curve.clock(curve.hours))):
            self.register_buffer(name, torch.from_numpy(values).float(), persistent=False)
        outputs = {"dfm": 2, "es_dfm": 2}.get(method, 0)
        self.head: nn.Module | None = None
        if outputs:
            last = nn.Linear(width, outputs)
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, 0.0)
            self.head = nn.Sequential(nn.LayerNorm(3 * width), nn.Linear(3 * width, width), nn.ReLU(), last)

    def forward(
        self, logits: Tensor, labels: Tensor, delay: Tensor, elapsed: Tensor, users: Tensor, ads: Tensor, weight: Tensor | None
    ) -> Tensor:
        """Mean over the known rows; users and ads (B, D) of each row. Rows whose label is NaN are left out."""
        known = ~torch.isnan(labels)
        if self.method in {"wait", "es_dfm"}:
            known = known & (elapsed >= self.wait)
        happened, delay = torch.where(known, labels, 0.0), torch.nan_to_num(delay)
        heads = self._heads(users, ads)
        if self.method == "dfm":
            log_rate, log_shape = (_MOST_LOG * torch.tanh(heads / _MOST_LOG)).unbind(-1)
            on_clock = self._read(self.clock, delay), self._read(self.clock, elapsed)
            lost = delayed_feedback(logits, happened, *on_clock, log_rate, log_shape)
        elif self.method == "es_dfm":
            again, late, real = self._again(elapsed), heads[:, 0], heads[:, 1]
            lost = elapsed_time_sampled(logits, happened, delay, self.wait, late, real, again)
            lost = lost + sampling_heads(happened, delay, self.wait, late, real, again)
        elif self.method == "fnw":
            lost = fake_negative_weighted(logits, happened)
        else:
            lost = nn.functional.binary_cross_entropy_with_logits(logits, happened, reduction="none")
        lost = lost if weight is None else weight * lost
        return torch.where(known, lost, 0.0).sum() / known.sum().clamp(min=1)

    def _heads(self, users: Tensor, ads: Tensor) -> Tensor:
        if self.head is None:
            return users.new_zeros(len(users), 2)
        users, ads = users.detach().float(), ads.detach().float()
        heads: Tensor = self.head(torch.cat([users, ads, users * ads], -1))
        return heads

    def _again(self, elapsed: Tensor) -> Tensor:
        """Of what comes later than `wait`, one over the share that has come after `elapsed` hours; 10 at most."""
        soon = self._read(self.share, torch.full_like(elapsed, self.wait))
        seen = (self._read(self.share, elapsed) - soon) / (1 - soon).clamp(min=1e-6)
        return 1 / seen.clamp(min=1 / _MOST_WEIGHT)

    def _read(self, values: Tensor, hours: Tensor) -> Tensor:
        place = torch.searchsorted(self.hours, hours.contiguous(), right=True)
        return torch.where(place > 0, values[(place - 1).clamp(min=0)], 0.0)
