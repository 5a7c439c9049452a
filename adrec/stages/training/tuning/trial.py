"""One trial of a search: train once, and say after each evaluation how far it is."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from adrec.config.training.finetune import FinetuneConfig
from adrec.stages.training.finetuning.material import read_material
from adrec.stages.training.tuning.study import Report
from adrec.terminal import Terminal
from adrec.training.click_encoder import trained_encoder
from adrec.training.ctr_training import train_click_model


def train_trial(config: FinetuneConfig, work: Path, terminal: Terminal, report: Report, description: str = "") -> float:
    """Train with `config`; the best validation metric. `report` may raise to stop it."""
    material = read_material(config, terminal)
    trained = train_click_model(
        material.config,
        material.data,
        seed=config.seed,
        work=work,
        terminal=terminal,
        text_encoder=trained_encoder(material.config, material.encoder),
        start=material.start,
        text_space=material.text_space,
        description=description,
        callbacks=[_Pruning(report)],
    )
    return trained.run.best


class _Pruning(pl.Callback):
    """Reports the monitored metric after each evaluation; `report` stops the trial by raising."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.evaluations = 0

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Count and report."""
        self.evaluations += 1
        self.report(self.evaluations, float(trainer.callback_metrics[f"valid_{module.monitor}"]))

    def state_dict(self) -> dict[str, Any]:
        """How many evaluations there were before a resume."""
        return {"evaluations": self.evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.evaluations = state_dict["evaluations"]
