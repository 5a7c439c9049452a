"""A bundle's network learns from lists that nobody was shown: the order that a dearer model, such as a re-ranker, gives them.

ListNet (Cao et al., "Learning to Rank", 2007, top one) with the teacher's softmax as the target, beside the clicks. Of the
teacher only what it says within a list is learned: how likely clicks are at all, the clicks themselves say.

# P pairs of a step's lists
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adrec.config.training.distill import ListTerms
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.arrays import ranges
from adrec.data.batches.collate import Batch, Collator
from adrec.data.batches.dataset import MemoryPlan
from adrec.data.batches.sampling import Draw
from adrec.data.examples import Examples
from adrec.models.net.ensemble import ClickNetwork
from adrec.terminal import Terminal
from adrec.training import losses
from adrec.training.click_data import ClickData
from adrec.training.click_distillation import fit_rows
from adrec.training.ctr_module import CTRModule
from adrec.training.ctr_training import loss_settings
from adrec.training.loop.optimizer import adamw_of
from adrec.training.loop.trainer import FitResult, open_work, total_steps


class TaughtLists(NamedTuple):
    """N pairs of whole lists (`request`), their matches made."""

    examples: Examples
    log_odds: NDArray[np.float32]
    """(N,) of a click, by the teacher"""
    collate: Collator
    """over the catalogs of the examples"""


class ListBatch(NamedTuple):
    """Rows of the log, and lists beside them."""

    rows: Batch
    lists: Batch
    teacher: Tensor
    """(P,) log-odds"""


class SoftLists(CTRModule):
    """The click model's own losses, and the teacher's order of lists."""

    soft: float

    def training_step(self, batch: ListBatch | Batch, index: int) -> Tensor:
        """(1 - soft) clicks + soft cross-entropy of the teacher's softmax within each list."""
        assert isinstance(batch, ListBatch)
        hard = self.loss(batch.rows, self.model(batch.rows))
        logits = self.model(batch.lists).logits[:, 0]
        loss = (1 - self.soft) * hard + self.soft * losses.soft_listwise(logits, batch.teacher, batch.lists.group)
        self.log("train_loss", loss, batch_size=len(batch.rows.ad))
        return loss


def teach_lists(
    terms: ListTerms,
    config: FinetuneConfig,
    *,
    network: ClickNetwork,
    data: ClickData,
    lists: TaughtLists,
    seed: int,
    device: str,
    work: Path,
    identity: Mapping[str, Any],
    terminal: Terminal,
) -> FitResult:
    """Train `network` in place on the rows of `data` and on `lists`; a text encoder in it stays as it is.

    `identity`: what a run that goes on must have in common.
    """
    assert data.train is not None, "opened_to_teach refuses a bundle whose rows are streamed"
    plan = cast(MemoryPlan, data.plan(config, seed))
    training = config.training.model_copy(
        update={"epochs": terms.epochs, "learning_rate": terms.learning_rate, "max_steps": None, "resume": True}
    )
    starts = lists.examples.request_starts

    def collate(draw: Draw, generator: np.random.Generator) -> ListBatch:
        batch = plan.collate(draw, generator)
        chosen = np.sort(generator.choice(len(starts) - 1, min(terms.batch_lists, len(starts) - 1), replace=False))
        rows = ranges(starts[chosen], np.diff(starts)[chosen])
        return ListBatch(batch, lists.collate(lists.examples, rows), torch.from_numpy(lists.log_odds[rows]))

    if network.text_encoder is not None:
        network.text_encoder.requires_grad_(False)

    def optimizer(module: nn.Module, _: nn.Module | None) -> dict[str, Any]:
        return adamw_of(training, [(module, terms.learning_rate)], total_steps=total_steps(training, plan.count))

    module = SoftLists(
        model=network,
        optimizer=optimizer,
        **loss_settings(config, data),
    )
    module.soft = terms.soft
    open_work(work, dict(identity), resume=True)
    return fit_rows(
        module, plan, collate, data, training, seed=seed, device=device, work=work, terminal=terminal, description="lists"
    )
