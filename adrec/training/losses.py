"""Losses over a batch. Pure functions of tensors; each averages so that its size does not depend on the batch.

Shapes: B rows, G groups (`group` (B,) int64 in 0..G-1), K tasks. A row whose label is NaN is left out.

`weight` (B,) is how many impressions a row stands for, None where each is one: a loss is then that of so many equal rows. The
pointwise ones are sums of weighted losses over the number of rows, so their weights should average 1 over the log; the others
are means over what is weighed, whatever its unit.
"""

import math

import torch
from torch import Tensor, nn

from adrec.models.net.attention import masked_softmax


def binary(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of the known labels, -[y log p + (1 - y) log(1 - p)]; 0 where none is known."""
    known = ~torch.isnan(labels)
    if not known.any():
        return logits.sum() * 0
    weighed = None if weight is None else weight[known]
    return nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known], weighed)


def squared(outputs: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of the known labels; 0 where none is known."""
    known = ~torch.isnan(labels)
    if not known.any():
        return outputs.sum() * 0
    if weight is not None:
        return (weight[known] * (outputs[known] - labels[known]) ** 2).mean()
    return nn.functional.mse_loss(outputs[known], labels[known])


def listwise(logits: Tensor, labels: Tensor, group: Tensor, weight: Tensor | None = None) -> Tensor:
    """-sum over groups and their positives of log(exp x_p / (exp x_p + sum of exp x_n over the group's negatives)), averaged.

    The softmax of NRMS and of Cao et al. 2007 (top one) with one positive a group; several positives of a group do not
    compete with each other. Groups without a positive or a negative say nothing.
    """
    positive, negative = labels > 0, labels == 0
    groups = int(group.max()) + 1
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
    counted = positive & has_negative[group]
    if not counted.any():
        return logits.sum() * 0
    return _mean(nn.functional.softplus(log_negatives[group[counted]] - logits[counted]), weight, counted)


def bpr(logits: Tensor, labels: Tensor, group: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over all pairs (positive, negative) of one group of -log sigmoid(x_p - x_n) (Rendle et al. 2009)."""
    positive = torch.nonzero(labels > 0).squeeze(-1)
    negative = torch.nonzero(labels == 0).squeeze(-1)
    same = group[positive][:, None] == group[negative][None, :]  # (P, N)
    if not same.any():
        return logits.sum() * 0
    gaps = logits[positive][:, None] - logits[negative][None, :]
    lost = nn.functional.softplus(-gaps)
    return _mean(lost[same], None if weight is None else weight[positive][:, None] * weight[negative][None, :], same)


def in_batch(
    users: Tensor,
    ads: Tensor,
    context: Tensor,
    ad: Tensor,
    labels: Tensor,
    log_frequency: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Sampled softmax of each positive's user against the ads of all positives in the batch, with logQ correction.

    -log softmax(u . a / sqrt(D) - log Q(a)), Q the ad's share of what is drawn (Yi et al. 2019, eq. 3 and 6). An ad that is
    drawn often appears as a negative often; subtracting log Q takes that advantage back. An ad that the same user's context
    clicked too is no negative of it.
    """
    rows = torch.nonzero(labels > 0).squeeze(-1)  # (P,)
    if len(rows) < 2:
        return users.sum() * 0
    u, a = users[context[rows]], ads[ad[rows]]
    logits = u @ a.T / math.sqrt(users.shape[-1]) - log_frequency[rows][None, :]  # (P, P)
    itself = torch.eye(len(rows), dtype=torch.bool, device=logits.device)
    if weight is not None:  # another's ad is so many negatives; a row is its own positive once
        logits = logits + torch.where(itself, 0.0, torch.log(weight[rows])[None, :])
    same_ad = ad[rows][:, None] == ad[rows][None, :]
    same_context = context[rows][:, None] == context[rows][None, :]
    counted = itself | ~(same_ad | same_context)
    weights = masked_softmax(logits, counted)
    return _mean(-torch.log(weights.diagonal().clamp(min=torch.finfo(weights.dtype).tiny)), weight, rows)


def _mean(values: Tensor, weight: Tensor | None, kept: Tensor) -> Tensor:
    """Of values (M,), weighed by those of `weight` that are `kept` (mask or positions)."""
    if weight is None:
        return values.mean()
    weighed = weight[kept]
    return (weighed * values).sum() / weighed.sum()


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
