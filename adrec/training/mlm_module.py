"""The LightningModule of pretraining: a language model and the objectives that train it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np
from torch import Tensor, nn

from adrec.config.training.loop import TrainingConfig
from adrec.models.text.language_model import LanguageModel
from adrec.training.loop.optimizer import adamw_of
from adrec.training.loop.sharding import ShardableModule


class Feed(Protocol):
    """Data of one objective. `plan` gives the same number of items each epoch."""

    def plan(self, epoch: int) -> Sequence[Any]:
        """What each batch of an epoch is made of."""

    def collate(self, item: Any, generator: np.random.Generator) -> Any:
        """One item to a batch (NamedTuple of tensors)."""


class JointFeed:
    """Several feeds side by side. An epoch is one pass over the first; the others go round as often as that takes."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds = feeds

    def plan(self, epoch: int) -> list[tuple[Any, ...]]:
        """One item of each feed for every batch."""
        count = len(self.feeds[0].plan(0))
        columns = [list(self.feeds[0].plan(epoch))]
        for feed in self.feeds[1:]:
            length = len(feed.plan(0))
            laps = range(epoch * count // length, ((epoch + 1) * count - 1) // length + 1)
            items = [item for lap in laps for item in feed.plan(lap)]
            skip = epoch * count - laps.start * length
            columns.append(items[skip : skip + count])
        return list(zip(*columns, strict=True))

    def collate(self, items: tuple[Any, ...], generator: np.random.Generator) -> tuple[Any, ...]:
        """A batch of each feed."""
        return tuple(feed.collate(item, generator) for feed, item in zip(self.feeds, items, strict=True))


class PretrainModule(ShardableModule):
    """Weighted sum of objectives, by AdamW as `training` says over `total_steps`."""

    def __init__(
        self,
        model: LanguageModel,
        objectives: Sequence[nn.Module],
        weights: Sequence[float],
        *,
        training: TrainingConfig,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleList(objectives)
        self.weights = list(weights)
        self.settings, self.total_steps = training, total_steps

    def training_step(self, batch: tuple[Any, ...], batch_idx: int) -> Tensor:
        """The weighted loss."""
        losses = self._losses(batch)
        for objective, loss in zip(self.objectives, losses, strict=True):
            self.log(f"train_{objective.name}", loss.detach())
        return cast(Tensor, sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True)))

    def validation_step(self, batch: tuple[Any, ...], batch_idx: int) -> None:
        """Log each loss and their sum as `valid_loss`, weighted by what each batch predicts."""
        losses = self._losses(batch)
        size = cast(Callable[[Any], int], self.objectives[0].weight)(batch[0])
        for objective, loss in zip(self.objectives, losses, strict=True):
            self.log(f"valid_{objective.name}", loss, batch_size=size, sync_dist=True)
        total = sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True))
        self.log("valid_loss", cast(Tensor, total), batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW with decay groups over the model and the heads."""
        rate = self.settings.learning_rate
        parts = [(cast(nn.Module, self.model), rate), (cast(nn.Module, self.objectives), rate)]
        return adamw_of(self.settings, parts, total_steps=self.total_steps)

    def _losses(self, batch: tuple[Any, ...]) -> list[Tensor]:
        return [objective(self.model, part) for objective, part in zip(self.objectives, batch, strict=True)]
