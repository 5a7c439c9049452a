"""Distillation on the click task: a network over the student's text vectors learns from the teacher's logits and the clicks.

Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), for binary tasks.

# N training rows, B rows a batch, K tasks
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from adrec.config.training.distill import ClickTerms
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.loop import TrainingConfig
from adrec.data.batches.collate import Batch
from adrec.data.batches.dataset import MemoryPlan
from adrec.data.batches.sampling import Draw
from adrec.models.net.ctr_model import CTRModel
from adrec.models.net.ensemble import ClickNetwork
from adrec.models.text.encoder_training import Mode, trainable_copy
from adrec.models.text.text_encoder import TextEncoder
from adrec.terminal import Terminal
from adrec.training.click_data import ClickData
from adrec.training.ctr_module import CTRModule
from adrec.training.ctr_training import loss_settings, raw_outputs
from adrec.training.loop.loader import BatchLoader
from adrec.training.loop.optimizer import adamw_of
from adrec.training.loop.trainer import FitResult, fit, open_work, total_batches, total_steps

TEMPERATURE = 2.0
"""Softens both sides of the soft targets, as for tokens (Hinton et al., 2015)."""


class SoftBatch(NamedTuple):
    """Rows, and what the teacher says of them."""

    rows: Batch
    teacher: Tensor  # (B, K) logits


class SoftClicks(CTRModule):
    """The click model's own losses, and soft targets on every binary task."""

    soft: float

    def training_step(self, batch: SoftBatch | Batch, index: int) -> Tensor:
        """(1 - soft) hard + soft T^2 cross-entropy(teacher / T, student / T)."""
        assert isinstance(batch, SoftBatch)
        outputs = self.model(batch.rows)
        binary = [number for number, task in enumerate(self.tasks) if task.is_binary]
        weight = self._scaled(batch.rows.weight)
        soft = binary_soft_loss(outputs.logits[:, binary], batch.teacher[:, binary], TEMPERATURE, weight)
        loss = (1 - self.soft) * self.loss(batch.rows, outputs) + self.soft * soft
        self.log("train_loss", loss, batch_size=len(batch.rows.ad))
        return loss


def binary_soft_loss(logits: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of softened probabilities (B, K), times the squared temperature; rows may have a `weight` (B,)."""
    target = torch.sigmoid(teacher / temperature)
    weighed = None if weight is None else weight[:, None]
    return nn.functional.binary_cross_entropy_with_logits(logits / temperature, target, weighed) * temperature**2


def teach_clicks(
    terms: ClickTerms,
    config: FinetuneConfig,
    *,
    teacher: ClickNetwork,
    teacher_data: ClickData,
    student: TextEncoder,
    student_data: ClickData,
    seed: int,
    device: str,
    work: Path,
    terminal: Terminal,
) -> tuple[ClickNetwork, TextEncoder, FitResult]:
    """A copy of the network `teacher`, and the encoder `student`, trained together where the bundle's encoder is not frozen.

    The two data sets are one prepared folder read with either encoder.
    """
    assert teacher_data.train is not None and student_data.train is not None, "opened_to_teach refuses streamed rows"
    settings = loss_settings(config, student_data)
    said = raw_outputs(CTRModule(model=teacher, **settings), teacher_data.batches(teacher_data.train), device).logits
    plan = cast(MemoryPlan, student_data.plan(config, seed))
    training = config.training.model_copy(
        update={"epochs": terms.epochs, "learning_rate": terms.learning_rate, "max_steps": None, "resume": True}
    )

    def collate(draw: Draw, generator: np.random.Generator) -> SoftBatch:
        return SoftBatch(plan.collate(draw, generator), torch.from_numpy(said[draw.rows]))

    network = copy.deepcopy(teacher)
    parts: list[tuple[nn.Module, float]] = []
    if isinstance(network, CTRModel) and config.text.train != "frozen":
        text = config.text
        mode: Mode = "last" if text.train == "last" else "full"
        layers = int(cast(Any, student.backbone).config.num_hidden_layers)
        network.text_encoder = trainable_copy(student, mode, last_layers=min(text.last_layers, layers))
        parts.append((network.text_encoder, text.learning_rate))
    module = SoftClicks(
        model=network,
        optimizer=lambda whole, _: adamw_of(
            training, [*parts, (whole, terms.learning_rate)], total_steps=total_steps(training, plan.count)
        ),
        **settings,
    )
    module.soft = terms.soft
    open_work(work, {"click": terms.model_dump(mode="json"), "data": student_data.prepared.fingerprint}, resume=True)
    run = fit_rows(
        module, plan, collate, student_data, training,
        seed=seed, device=device, work=work, terminal=terminal, description="clicks",
    )  # fmt: skip
    trained = network.cpu().eval()
    encoder = trained.text_encoder if isinstance(trained.text_encoder, TextEncoder) else student
    return trained, encoder.requires_grad_(False).eval(), run


def fit_rows(
    module: CTRModule,
    plan: MemoryPlan,
    collate: Callable[[Draw, np.random.Generator], Any],
    data: ClickData,
    training: TrainingConfig,
    *,
    seed: int,
    device: str,
    work: Path,
    terminal: Terminal,
    description: str,
) -> FitResult:
    """Train on the batches of `plan`, each of which holds `rows` of the log, judged on the validation rows of `data`."""
    total = total_batches(training, plan.count)
    return fit(
        module,
        BatchLoader(plan.plan, collate, total=total, seed=seed, workers=training.workers),
        data.batches(data.valid),
        config=training,
        seed=seed,
        device=device,
        work=work,
        terminal=terminal,
        description=description,
        total_units=plan.rows * total / plan.count,
        unit="rows",
        units_of=lambda batch: len(batch.rows.ad),
        monitor=f"valid_{module.monitor}",
        mode="min" if module.monitor == "log_loss" else "max",
    )
