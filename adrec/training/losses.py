"""Losses over a batch. Pure functions of tensors; each averages so that its size does not depend on the batch.

Shapes: B rows, G groups (`group` (B,) int64 in 0..G-1), K tasks. A row whose label is NaN is left out.

`weight` (B,) is how many impressions a row stands for, None where each is one: a loss is then that of so many equal rows. The
pointwise ones are sums of weighted losses over the number of rows, so their weights should average 1 over the log; the others
are means over what is weighed, whatever its unit.

No loss asks the device for a value: what does not count is masked, never looked for, so that a step is queued without a wait.
"""

import math

import torch
from torch import Tensor, nn

from adrec.models.net.attention import masked_softmax


def binary(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of the known labels, -[y log p + (1 - y) log(1 - p)]; 0 where none is known."""
    known = ~torch.isnan(labels)
    lost = nn.functional.binary_cross_entropy_with_logits(logits, torch.where(known, labels, 0.0), weight, reduction="none")
    return torch.where(known, lost, 0.0).sum() / known.sum().clamp(min=1)


def squared(outputs: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of the known labels; 0 where none is known."""
    known = ~torch.isnan(labels)
    lost = torch.where(known, outputs - torch.where(known, labels, 0.0), 0.0) ** 2
    return (lost if weight is None else weight * lost).sum() / known.sum().clamp(min=1)


def listwise(logits: Tensor, labels: Tensor, group: Tensor, weight: Tensor | None = None) -> Tensor:
    """-sum over groups and their positives of log(exp x_p / (exp x_p + sum of exp x_n over the group's negatives)), averaged.

    The softmax of NRMS and of Cao et al. 2007 (top one) with one positive a group; several positives of a group do not
    compete with each other. Groups without a positive or a negative say nothing.
    """
    positive, negative = labels > 0, labels == 0
    groups = len(group)  # at most
    # log sum exp over negatives of each group, shifted by the group's highest for stability.
    lowest = torch.finfo(logits.dtype).min
    of_negative = logits.masked_fill(~negative, lowest)
    highest = torch.full((groups,), lowest, device=logits.device, dtype=logits.dtype)
    highest = highest.scatter_reduce(0, group, of_negative.detach(), "amax")
    has_negative = highest > lowest
    shift = torch.where(has_negative, highest, torch.zeros_like(highest))
    exponentials = torch.exp((of_negative - shift[group]).clamp(max=0)) * (negative if weight is None else negative * weight)
    total = torch.zeros_like(shift).scatter_add(0, group, exponentials)
    log_negatives = torch.log(total.clamp(min=torch.finfo(logits.dtype).tiny)) + shift  # (G,)
    return masked_mean(nn.functional.softplus(log_negatives[group] - logits), weight, positive & has_negative[group])


def soft_listwise(logits: Tensor, teacher: Tensor, group: Tensor) -> Tensor:
    """Mean over groups of -sum p log q, p and q the softmax over the group of `teacher` and of `logits` (B,) each.

    What is added to all of a group, on either side, changes nothing (ListNet, Cao et al. 2007, with soft targets).
    """
    target = group_log_softmax(teacher, group).exp()
    lost = -(target * group_log_softmax(logits, group)).sum()
    there = torch.zeros_like(logits).scatter(0, group, torch.ones_like(logits)).sum()
    return lost / there.clamp(min=1)


def group_log_softmax(values: Tensor, group: Tensor) -> Tensor:
    """(B,) log of each value's share of exp over its group."""
    highest = torch.full_like(values, -torch.inf).scatter_reduce(0, group, values.detach(), "amax")[group]
    total = torch.zeros_like(values).scatter_add(0, group, torch.exp(values - highest))[group]
    return values - highest - torch.log(total)


def bpr(logits: Tensor, labels: Tensor, group: Tensor, positive: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over all pairs (positive, negative) of one group of -log sigmoid(x_p - x_n) (Rendle et al. 2009).

    `positive` (P,) are the rows whose label is above 0.
    """
    pairs = (group[positive][:, None] == group[None, :]) & (labels == 0)[None, :]  # (P, B)
    lost = nn.functional.softplus(logits[None, :] - logits[positive][:, None])
    return masked_mean(lost, None if weight is None else weight[positive][:, None] * weight[None, :], pairs)


def in_batch(
    users: Tensor,
    ads: Tensor,
    context: Tensor,
    ad: Tensor,
    positive: Tensor,
    log_frequency: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Sampled softmax of each positive's user against the ads of all positives in the batch, with logQ correction.

    -log softmax(u . a / sqrt(D) - log Q(a)), Q the ad's share of what is drawn (Yi et al. 2019, eq. 3 and 6). An ad that is
    drawn often appears as a negative often; subtracting log Q takes that advantage back. An ad that the same user's context
    clicked too is no negative of it. `positive` (P,) are the rows whose label is above 0.
    """
    rows = positive
    if len(rows) < 2:
        return users.sum() * 0
    return _sampled_softmax(
        users[context[rows]],
        ads[ad[rows]],
        ad[rows],
        context[rows],
        log_frequency[rows],
        torch.ones_like(rows, dtype=torch.bool),
        None if weight is None else weight[rows],
    )


MOST_NEXT = 2048
"""Clicks that a step predicts, drawn from those of its batch: the products of each with each are the cost."""


def next_click(states: Tensor, clicks: Tensor, real: Tensor, ads: Tensor, log_frequency: Tensor) -> Tensor:
    """Sampled softmax of the click that follows each state against others of the batch's histories, with logQ correction.

    -log softmax(s_i . a / sqrt(D) - log Q(a)) over a = the next click and what other contexts clicked (Yi et al. 2019). States
    (C, L, D) after the clicks (C, L), whose ads are numbers into `ads` (A, D); `real` (C, L); `log_frequency` (A,) of each ad
    among the clicks of histories. No label is read, and nothing later than the history.
    """
    if states.shape[1] < 2:
        return states.sum() * 0
    state, following, counted = states[:, :-1].flatten(0, 1), clicks[:, 1:].flatten(), real[:, 1:].flatten()
    context = torch.arange(len(states), device=states.device)[:, None].expand(-1, states.shape[1] - 1).flatten()
    if len(counted) > MOST_NEXT:
        drawn = torch.rand(counted.shape, device=counted.device).masked_fill(~counted, -1.0).topk(MOST_NEXT).indices
        state, following, counted, context = state[drawn], following[drawn], counted[drawn], context[drawn]
    return _sampled_softmax(state, ads[following], following, context, log_frequency[following], counted, None)


def _sampled_softmax(
    u: Tensor, a: Tensor, ad: Tensor, context: Tensor, log_frequency: Tensor, counted: Tensor, weight: Tensor | None
) -> Tensor:
    """Pairs (P, D), (P, D): each u against the a of all pairs of another ad and context, the mean over `counted` (P,)."""
    logits = u @ a.T / math.sqrt(u.shape[-1]) - log_frequency[None, :]  # (P, P)
    itself = torch.eye(len(u), dtype=torch.bool, device=logits.device)
    if weight is not None:  # another's ad is so many negatives; a row is its own positive once
        logits = logits + torch.where(itself, 0.0, torch.log(weight)[None, :])
    same = (ad[:, None] == ad[None, :]) | (context[:, None] == context[None, :])
    weights = masked_softmax(logits, itself | (~same & counted[None, :]))
    lost = -torch.log(weights.diagonal().clamp(min=torch.finfo(weights.dtype).tiny))
    return masked_mean(lost, weight, counted)


def masked_mean(values: Tensor, weight: Tensor | None, counted: Tensor) -> Tensor:
    """Of those `values` that are `counted`, a mask of the same shape, weighed by `weight`; 0 where none is."""
    weighed = counted.to(values.dtype) if weight is None else torch.where(counted, weight, 0.0)
    total = weighed.sum()
    return (weighed * torch.where(counted, values, 0.0)).sum() / torch.where(total > 0, total, 1.0)


class TaskWeights(nn.Module):
    """Sum of the tasks' losses, with fixed weights or with weights learned from their noise.

    Learned: sum_k exp(-s_k) L_k + s_k / 2 for cross-entropy, with L_k halved for squared errors (Kendall et al. 2018, eq. 7
    and 10, s_k = log sigma_k^2).
    """

    fixed: Tensor
    halved: Tensor

    def __init__(self, *, weights: tuple[float, ...], learned: bool, is_binary: tuple[bool, ...]) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(len(weights))) if learned else None
        self.register_buffer("fixed", torch.tensor(weights), persistent=False)
        self.register_buffer("halved", torch.tensor([1.0 if binary else 0.5 for binary in is_binary]), persistent=False)

    def forward(self, losses: Tensor) -> Tensor:
        """(K,) → scalar."""
        if self.log_variance is None:
            return torch.dot(self.fixed, losses)
        return (torch.exp(-self.log_variance) * self.halved * losses + self.log_variance / 2).sum()
