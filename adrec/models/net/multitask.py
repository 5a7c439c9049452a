"""From one representation to a logit a task: how much the tasks share is the choice here, and which presuppose others.

Shapes: B rows, I input width, W width of a task's tower, K tasks, X experts.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

Sharing = Literal["shared", "separate", "mmoe", "ple"]


def mlp(widths: Sequence[int], *, dropout: float = 0.0) -> nn.Sequential:
    """Linear → ReLU → dropout for each step of `widths`; the identity where there is only one width."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class SharedBottom(nn.Module):
    """One MLP for all tasks (Caruana 1997)."""

    def __init__(self, *, in_width: int, hidden: Sequence[int], tasks: int, dropout: float) -> None:
        super().__init__()
        self.tasks = tasks
        self.out_width = hidden[-1] if hidden else in_width
        self.bottom = mlp([in_width, *hidden], dropout=dropout)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, I) → K times (B, W)."""
        return [self.bottom(x)] * self.tasks


class Separate(nn.Module):
    """An MLP a task: they share the embeddings and nothing above."""

    def __init__(self, *, in_width: int, hidden: Sequence[int], tasks: int, dropout: float) -> None:
        super().__init__()
        self.out_width = hidden[-1] if hidden else in_width
        self.bottoms = nn.ModuleList([mlp([in_width, *hidden], dropout=dropout) for _ in range(tasks)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, I) → K times (B, W)."""
        return [bottom(x) for bottom in self.bottoms]


class MixtureOfExperts(nn.Module):
    """f_k = sum_x softmax(G_k input)_x expert_x(input): a softmax gate a task over common experts (MMoE, Ma et al. 2018)."""

    def __init__(self, *, in_width: int, hidden: Sequence[int], tasks: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.out_width = hidden[-1] if hidden else in_width
        self.experts = nn.ModuleList([mlp([in_width, *hidden], dropout=dropout) for _ in range(experts)])
        self.gates = nn.ModuleList([nn.Linear(in_width, experts) for _ in range(tasks)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, I) → K times (B, W)."""
        outputs = torch.stack([expert(x) for expert in self.experts], 1)  # (B, X, W)
        return [torch.einsum("bx,bxw->bw", gate(x).softmax(-1), outputs) for gate in self.gates]


class ProgressiveLayers(nn.Module):
    """Own and common experts in levels, each fed by the level below (PLE, Tang et al. 2020).

    At every level a task's gate mixes its own experts with the common ones, and the common stream mixes all. The levels are
    one expert layer each, of the widths in `hidden`.
    """

    def __init__(self, *, in_width: int, hidden: Sequence[int], tasks: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.out_width = hidden[-1] if hidden else in_width
        self.levels = nn.ModuleList()
        for index, (before, after) in enumerate(zip([in_width, *hidden][:-1], hidden, strict=True)):
            last = index == len(hidden) - 1
            level = _Level(in_width=before, out_width=after, tasks=tasks, experts=experts, last=last, dropout=dropout)
            self.levels.append(level)
        self.tasks = tasks

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, I) → K times (B, W)."""
        streams = [x] * (self.tasks + 1)  # the last is the common one
        for level in self.levels:
            streams = level(streams)
        return streams[: self.tasks]


class _Level(nn.Module):
    """One extraction network: `experts` for each task and as many common ones."""

    def __init__(self, *, in_width: int, out_width: int, tasks: int, experts: int, last: bool, dropout: float) -> None:
        super().__init__()
        self.tasks, self.last = tasks, last
        self.experts = nn.ModuleList(
            [nn.ModuleList([mlp([in_width, out_width], dropout=dropout) for _ in range(experts)]) for _ in range(tasks + 1)]
        )
        self.gates = nn.ModuleList([nn.Linear(in_width, 2 * experts) for _ in range(tasks)])
        self.common_gate = None if last else nn.Linear(in_width, (tasks + 1) * experts)

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        """K + 1 times (B, before) → K + 1 times (B, after); the common stream ends at the last level."""
        outputs = []
        for experts, stream in zip(self.experts, streams, strict=True):
            assert isinstance(experts, nn.ModuleList)
            outputs.append(torch.stack([expert(stream) for expert in experts], 1))  # (B, X, W)
        mixed = [
            torch.einsum("bx,bxw->bw", gate(streams[task]).softmax(-1), torch.cat([outputs[task], outputs[-1]], 1))
            for task, gate in enumerate(self.gates)
        ]
        if self.common_gate is None:
            return [*mixed, streams[-1]]
        common = torch.einsum("bx,bxw->bw", self.common_gate(streams[-1]).softmax(-1), torch.cat(outputs, 1))
        return [*mixed, common]


def sharing(
    kind: Sharing, *, in_width: int, hidden: Sequence[int], tasks: int, experts: int = 4, dropout: float = 0.0
) -> SharedBottom | Separate | MixtureOfExperts | ProgressiveLayers:
    """The sharing by name. `hidden` may be empty: then a task's output layer reads the representation itself."""
    match kind:
        case "shared":
            return SharedBottom(in_width=in_width, hidden=hidden, tasks=tasks, dropout=dropout)
        case "separate":
            return Separate(in_width=in_width, hidden=hidden, tasks=tasks, dropout=dropout)
        case "mmoe":
            return MixtureOfExperts(in_width=in_width, hidden=hidden, tasks=tasks, experts=experts, dropout=dropout)
        case "ple":
            return ProgressiveLayers(in_width=in_width, hidden=hidden, tasks=tasks, experts=experts, dropout=dropout)


def first_of_chain(task: int, presupposes: Sequence[int | None]) -> int:
    """The task at the root of what `task` presupposes."""
    while (parent := presupposes[task]) is not None:
        task = parent
    return task


def chained(logits: Tensor, presupposes: tuple[int | None, ...]) -> Tensor:
    """A task that presupposes others gets log-odds of the product of all their probabilities (ESMM, Ma et al. 2018, eq. 1).

    p(click and conversion) = p(click) p(conversion | click), so conversion is learned from every impression, not only from
    clicked ones. Computed in log space: log p = logsigmoid(a) + logsigmoid(b) + .... (B, K) → (B, K).
    """
    if not any(parent is not None for parent in presupposes):
        return logits
    columns = []
    for task, parent in enumerate(presupposes):
        if parent is None:
            columns.append(logits[:, task])
            continue
        log_p = nn.functional.logsigmoid(logits[:, task])
        while parent is not None:  # and what the parent presupposes in turn
            log_p = log_p + nn.functional.logsigmoid(logits[:, parent])
            parent = presupposes[parent]
        # log(p / (1 - p)) with 1 - p = -expm1(log p), exact where p is near 1 or 0.
        columns.append(log_p - torch.log((-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)))
    return torch.stack(columns, -1)
