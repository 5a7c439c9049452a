"""The moving average of the weights: what is evaluated, kept and shipped in place of the weights of one step.

Adam's steps go round the optimum; their mean lies nearer to it (Polyak and Juditsky 1992). Costs a copy of the weights and one
pass over them a step.
"""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

DECAY = 0.995
"""Of each earlier step's weight: the mean age of what is averaged is two hundred steps."""


class Averaged(WeightAveraging):
    """Evaluations see the average, training goes on from the weights themselves, and the average is left in the module.

    Lightning changes the weights back at the end of the evaluation's epoch; here that waits for `on_validation_end`, so that
    a callback before this one saves what was judged.
    """

    def __init__(self) -> None:
        super().__init__(use_buffers=False)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the weights, without Lightning's word about modules that could be sharded: the config refuses those."""
        if stage == "fit":
            self._average_model = AveragedModel(pl_module, device=pl_module.device, use_buffers=False, avg_fn=_faded)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Later: see `on_validation_start`."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Later: see `on_validation_end`."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average in the place of the weights."""
        super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the weights back."""
        super().on_validation_epoch_end(trainer, pl_module)


def _faded(average: Tensor, weights: Tensor, count: Tensor | int) -> Tensor:
    """The average over `count` steps with one more; over the first steps it is nearly their plain mean."""
    kept = min(DECAY, (1 + float(count)) / (10 + float(count)))
    return average.lerp(weights, 1 - kept)
