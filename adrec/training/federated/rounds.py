"""Rounds of federated training: common weights go out, changes come back, and the server moves by what they come to.

McMahan et al. 2017 (FedAvg), Li et al. 2020 (FedProx), Reddi et al. 2021 (FedAdam). The encoder is frozen and everybody has
it: a client trains the click model alone, on vectors that it makes itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adrec.data.batches.collate import Collator
from adrec.data.batches.dataset import MemoryPlan, Sampling
from adrec.data.examples import Examples
from adrec.training.ctr_module import CTRModule
from adrec.training.federated.sums import Floats, Summing, clipped, least_harmful, robust

Corrupt = Callable[[int, Floats], Floats]
"""Number of a client and its change → what it sends instead. For tests of liars."""
Judge = Callable[[], float]
"""The loss of the common weights as they are, on rows of the server's own."""
_BETAS, _FLOOR = (0.9, 0.99), 1e-8


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains."""

    epochs: int
    batch_rows: int
    learning_rate: float
    weight_decay: float
    proximal: float
    """0: clients go where they want"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd: nothing decays and nothing is cut, so that a client's change is its gradients' sum times the rate"""


@dataclass(frozen=True)
class Server:
    """How changes become new weights."""

    algorithm: Literal["fedavg", "fedprox", "fedadam"]
    rule: Literal["mean", "clipped", "zeno", "median", "trimmed_mean"]
    clip: float
    trim: float
    learning_rate: float
    rounds: int | None = None
    """over which the server's rate falls to 0 in a line; None: it stays"""


@dataclass
class Rounds:
    """The common weights, and what moves them."""

    module: CTRModule
    collate: Collator
    sampling: Sampling
    local: LocalTraining
    server: Server
    summing: Summing
    seed: int
    corrupt: Corrupt | None = None
    judge: Judge | None = None
    """of rule zeno"""
    _moments: list[Floats] = field(default_factory=list, init=False)
    _moves: int = field(default=0, init=False)

    def run(self, number: int, clients: Sequence[tuple[int, Examples]]) -> None:
        """One round with these clients, (number, rows) each."""
        before = flat(self.module)
        sent, weights = [], []
        for client, rows in clients:
            change = changed(self.module, before, rows, self.collate, self.sampling, self.local, [self.seed, number, client])
            change = change if self.corrupt is None else self.corrupt(client, change)
            sent.append(clipped(change, self.server.clip) if self.server.rule == "clipped" else change)
            weights.append(float(len(rows)))
        move = self._unharmed(before, sent) if self.server.rule == "zeno" else self._together(sent, weights)
        self.move(before, move)

    def move(self, before: Floats, change: Floats) -> None:
        """Put the weights to where the clients' common `change` leads from those `before`."""
        put(self.module, before + (self._adam(change) if self.server.algorithm == "fedadam" else change))

    def _unharmed(self, before: Floats, changes: list[Floats]) -> Floats:
        assert self.judge is not None
        here = self.summing.present(len(changes))
        losses = []
        for client in here:
            put(self.module, before + np.nan_to_num(changes[client]))
            losses.append(self.judge() if np.isfinite(changes[client]).all() else np.inf)
        kept = least_harmful(np.array(losses), self.server.trim)
        return np.asarray(np.mean([changes[here[place]] for place in kept], axis=0))

    def _together(self, changes: list[Floats], weights: list[float]) -> Floats:
        if self.server.rule in {"median", "trimmed_mean"}:
            stacked = np.stack([changes[client] for client in self.summing.present(len(changes))])
            return robust(stacked, "median" if self.server.rule == "median" else "trimmed_mean", trim=self.server.trim)
        vectors = [weighed(change, weight) for change, weight in zip(changes, weights, strict=True)]
        total, _ = self.summing(vectors)
        return np.asarray(total[:-1] / max(total[-1], 1e-9))

    def _adam(self, change: Floats) -> Floats:
        """Adam (Kingma and Ba 2015) on what the clients' change comes to as a gradient, uphill."""
        gradient = change / self.local.learning_rate
        if not self._moments:
            self._moments = [np.zeros_like(gradient), np.zeros_like(gradient)]
        moments = []
        falls = 1.0 if self.server.rounds is None else max(0.0, 1.0 - self._moves / self.server.rounds)
        self._moves += 1
        for beta, moment, value in zip(_BETAS, self._moments, (gradient, gradient**2), strict=True):
            moment[:] = beta * moment + (1 - beta) * value
            moments.append(moment / (1 - beta**self._moves))
        return np.asarray(falls * self.server.learning_rate * moments[0] / (np.sqrt(moments[1]) + _FLOOR))


def weighed(change: Floats, rows: float) -> Floats:
    """What a client adds to the sum: its change times its rows, and these behind it, in thousands.

    In units of the largest client of the round they would tell its size; a thousand is anybody's.
    """
    return np.append(change * rows, rows) / 1000.0


def changed(
    module: CTRModule,
    before: Floats,
    rows: Examples,
    collate: Collator,
    sampling: Sampling,
    local: LocalTraining,
    seed: list[int],
) -> Floats:
    """What a client's own training on `rows` changes of the weights `before`. `seed`: of the run, the round, the client."""
    put(module, before)
    start = [value.detach().clone() for value in trained(module)] if local.proximal else []
    is_plain = local.optimizer == "sgd"
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(trained(module), lr=local.learning_rate)
        if is_plain
        else torch.optim.AdamW(trained(module), lr=local.learning_rate, weight_decay=local.weight_decay)
    )
    plan = MemoryPlan(rows, collate, sampling=sampling, batch_rows=local.batch_rows, seed=seed[0])
    generator = np.random.default_rng(seed)
    torch.manual_seed(int(generator.integers(2**31)))
    module.train()
    for epoch in range(local.epochs):
        for draw in plan.plan(epoch + local.epochs * seed[1]):
            batch = plan.collate(draw, generator)
            loss = module.loss(batch, module.model(batch))
            for value, origin in zip(trained(module), start, strict=False):
                loss = loss + local.proximal / 2 * (value - origin).square().sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if not is_plain:
                nn.utils.clip_grad_norm_(trained(module), 1.0)
            optimizer.step()
    return flat(module) - before


def trained(module: nn.Module) -> list[Tensor]:
    """The weights that are trained, in order."""
    return [value for value in module.parameters() if value.requires_grad]


def flat(module: nn.Module) -> Floats:
    """(d,) all trained weights end to end."""
    return torch.cat([value.detach().flatten() for value in trained(module)]).double().cpu().numpy()


def put(module: nn.Module, weights: NDArray[np.float64]) -> None:
    """The inverse of `flat`."""
    vector, start = torch.from_numpy(weights), 0
    with torch.no_grad():
        for value in trained(module):
            value.copy_(vector[start : start + value.numel()].view_as(value))
            start += value.numel()
