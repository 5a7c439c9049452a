"""Ctrl-C and SIGTERM while a network learns: the step ends, every process takes part in a checkpoint, and the run stops there.

A second signal acts at once. Where only the first of several processes gets the signal, the others learn of it at a step.
"""

import signal
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

_ASKED_EVERY = 10
"""Steps between two looks at what other processes were told: each look waits for the devices."""


class Stopped(BaseException):
    """Training stopped at `step` because of a signal; no fault, so nobody catches it by accident."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(number, step)
        self.number, self.step = number, step


class StopSignals:
    """Within it, the first SIGINT or SIGTERM is only noted in `received` (0: none yet)."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self.take()
        return self

    def take(self) -> None:
        """Take the signals back from Lightning, which at SIGTERM would end all processes at once, in a step."""
        for number in self._before if not self.received else ():
            signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def everywhere(self, trainer: pl.Trainer, module: pl.LightningModule, batch: int) -> int:
        """The signal that any process has got; all of them ask at the same batches."""
        if trainer.world_size == 1:
            return self.received
        if batch % _ASKED_EVERY:
            return 0
        told: Any = trainer.strategy.reduce(torch.tensor(self.received, device=module.device), reduce_op="max")
        return int(told)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()  # the next one acts as it would have
