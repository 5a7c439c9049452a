"""Batches by number: batch b of a run depends on (seed, b) alone, so a run can stop and go on anywhere.

A run is one long list of batches. Epochs, shuffling, the shard of each rank and the share of each worker are arithmetic on
the batch's number; a batch's own randomness (masking, sampled negatives) comes from a generator seeded by that number.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

ItemT = TypeVar("ItemT")
BatchT = TypeVar("BatchT")


class BatchLoader(DataLoader[Any]):
    """A DataLoader over the batches of a whole run, in order, that knows where it stands.

    `plan(epoch)` lists the items of an epoch and must depend on nothing but the epoch; `collate(item, generator)` makes a
    batch. `total` cuts or extends the run in batches (None: `epochs` of them). Ranks take turns: rank r of W gets r, r+W, ...
    Batches lie in pinned memory where there is a GPU (`pin_memory` None): copies to it then run beside the step.
    """

    def __init__(
        self,
        plan: Callable[[int], Sequence[Any]],
        collate: Callable[[Any, np.random.Generator], Any],
        *,
        epochs: int = 1,
        total: int | None = None,
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool | None = None,
    ) -> None:
        batches = _Batches(plan, collate, epochs=epochs, total=total, seed=seed)
        self.batches_per_epoch, self.total = batches.per_epoch, len(batches)
        self.order = _Order(self.total // world * world, rank, world)
        super().__init__(
            batches,
            batch_size=None,
            sampler=self.order,
            num_workers=workers,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
            persistent_workers=workers > 0,
        )

    def shard(self, rank: int, world: int) -> None:
        """Take only this rank's share: every `world`-th batch, the same number on each rank."""
        self.order.rank, self.order.world = rank, world
        self.order.total = self.total // world * world

    def state_dict(self) -> dict[str, int]:
        """Batches of this rank that are done."""
        return {"done": self.order.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that are done."""
        self.order.done = int(state["done"])


class _Order(Sampler[int]):
    """Numbers of this rank's batches, from the first that is not done. The length is that of the whole run."""

    def __init__(self, total: int, rank: int, world: int) -> None:
        self.total, self.rank, self.world = total, rank, world
        self.done = 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank + self.done * self.world, self.total, self.world))

    def __len__(self) -> int:
        return self.total // self.world


class _Batches(Dataset[Any], Generic[ItemT, BatchT]):
    """Batch number -> batch."""

    def __init__(
        self,
        plan: Callable[[int], Sequence[ItemT]],
        collate: Callable[[ItemT, np.random.Generator], BatchT],
        *,
        epochs: int,
        total: int | None,
        seed: int,
    ) -> None:
        self.plan, self.collate, self.seed = plan, collate, seed
        self._epoch, self._items = 0, plan(0)
        self.per_epoch = len(self._items)
        self.total = self.per_epoch * epochs if total is None else total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, number: int) -> BatchT:
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._items = epoch, self.plan(epoch)
        return self.collate(self._items[place], np.random.default_rng([self.seed, number]))


def shuffled(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `count` things that depends on (seed, epoch) alone, (count,) int64."""
    return np.random.default_rng([seed, epoch, 0x5EED]).permutation(count)


def random_state() -> dict[str, Any]:
    """The state of every global generator that a training step may draw from, in types that `weights_only` loading allows."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
