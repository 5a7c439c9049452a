"""Train one click model on `ClickData`, and score rows with it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from adrec.config.training.finetune import FinetuneConfig
from adrec.data.batches.collate import Batch
from adrec.data.batches.dataset import InOrder
from adrec.data.device import moved, resolve_device
from adrec.errors import ConfigError, DataError
from adrec.models.net.ctr_model import CTRModel
from adrec.models.net.delay import DelayLoss
from adrec.models.net.ensemble import Ensemble
from adrec.terminal import Terminal
from adrec.training.build import build_model
from adrec.training.click_data import ClickData
from adrec.training.ctr_module import CTRModule, Raw, gathered
from adrec.training.loop.loader import BatchLoader
from adrec.training.loop.optimizer import adamw_of
from adrec.training.loop.start import Start
from adrec.training.loop.trainer import FitResult, fit, open_work, total_batches, total_steps

_LIST_PENALTY = 0.03
"""Ridge on the weights that values of the ads' lists have of their own, times the mean over rows of their squares."""


@dataclass(frozen=True)
class Trained:
    """A trained module with its best weights, how the run went, and its raw outputs on the validation rows."""

    module: CTRModule
    run: FitResult
    seed: int
    valid: Raw
    batches_per_epoch: int

    @property
    def metrics(self) -> dict[str, float]:
        """Validation metrics of the raw outputs."""
        return self.module.metrics(self.valid)


def train_click_model(
    config: FinetuneConfig,
    data: ClickData,
    *,
    seed: int,
    work: Path,
    terminal: Terminal,
    text_encoder: nn.Module | None = None,
    description: str = "Training",
    callbacks: Sequence[pl.Callback] = (),
    share: float | None = None,
    is_last: bool = True,
    start: Start | None = None,
    text_space: str = "",
) -> Trained:
    """Train to the best validation metric. `text_encoder` is the one that is trained with the model, None where frozen.

    `work` holds checkpoints until the caller deletes it; a run killed half way goes on from there. With `share` nothing is
    evaluated: training ends at that share of the scheduled steps, and the last weights stand. `is_last`: see `fit`.
    `start`: whose weights it begins with; `text_space` is the fingerprint of the encoder whose vectors it reads.
    """
    torch.manual_seed(seed)
    plan = data.plan(config, seed)
    model = build_model(
        config.model,
        data.dimensions,
        data.tasks,
        text_encoder=text_encoder,
        next_category=config.loss.next_category > 0,
        centres=data.centres,
    )
    slower: list[nn.Parameter] = []
    if start is not None:
        member = seed - config.seed
        carried, name = start.carry(model, config, data, member=member, text_space=text_space), start.source(member).name
        terminal.note(f"{carried.copied / max(carried.numbers, 1):.1%} of the network's weights go on from {name}")
        if not carried.copied:
            terminal.warn(f"{name}: shares nothing with this network, which starts from nothing.")
        slower = _slowed(model, carried.whole, config.carried_rate)
    training = config.training
    steps = total_steps(training, plan.count)
    total = total_batches(training, plan.count)
    if share is not None:
        total = min(total, max(1, round(share * steps)) * training.accumulate * training.processes)
    loader = BatchLoader(plan.plan, plan.collate, total=total, seed=seed, workers=training.workers)
    module = CTRModule(
        model=model,
        learned_weights=config.loss.task_weights == "uncertainty",
        late={
            number: DelayLoss(
                method=config.delay.method,
                wait_hours=config.delay.wait_hours,
                curve=data.late[task.name].training,
                width=config.model.width,
            )
            for number, task in enumerate(data.tasks)
            if task.name in data.late
        },
        optimizer=partial(optimizer_of, config, steps, slower=slower),
        **loss_settings(config, data),
    )
    identity = {
        "config": config.model_dump(mode="json"),
        "data": data.prepared.fingerprint,
        "splits": data.splits,
        "seed": seed,
        "share": share,
        **({"start": start.fingerprint} if start is not None else {}),
    }
    open_work(work, identity, resume=training.resume)
    run = fit(
        module,
        loader,
        data.batches(data.valid) if share is None else None,
        config=training,
        seed=seed,
        device=config.device,
        work=work,
        terminal=terminal,
        description=description,
        total_units=plan.rows * total / plan.count,
        unit="rows",
        units_of=_rows,
        monitor=f"valid_{module.monitor}",
        mode="min" if module.monitor == "log_loss" else "max",
        callbacks=callbacks,
        is_last=is_last,
    )
    return Trained(module, run, seed, raw_outputs(module, data.batches(data.valid), config.device), plan.count)


def train_again(
    config: FinetuneConfig,
    data: ClickData,
    chosen: Sequence[Trained],
    *,
    share: float,
    work: Path,
    terminal: Terminal,
    text_encoders: Callable[[], nn.Module | None],
    start: Start | None = None,
    text_space: str = "",
) -> list[Trained]:
    """The chosen networks anew, from their seeds, on the rows of `data`: those they were trained on and those that judged them.

    Each ends at `share` of its schedule, where the chosen ones were best (`best_share`). What is chosen by validation rows and
    then fitted to all rows is the usual last step of model selection (Hastie, Tibshirani and Friedman 2009, section 7.10); in a
    log it is the newest days that are won. `valid` of the result is no measure: these rows were learned.
    """
    return [
        train_click_model(
            config,
            data,
            seed=run.seed,
            work=work / f"again{run.seed}",
            terminal=terminal,
            text_encoder=text_encoders(),
            description="Training on all rows" if len(chosen) == 1 else f"Training on all rows {number}/{len(chosen)}",
            share=share,
            is_last=number == len(chosen),
            start=start,
            text_space=text_space,
        )
        for number, run in enumerate(chosen, start=1)
    ]


def loss_settings(config: FinetuneConfig, data: ClickData) -> dict[str, Any]:
    """What every training of a click model on `data` tells its `CTRModule`: tasks, their losses, the metric that judges."""
    return {
        "tasks": data.tasks,
        "terms": [(term.kind, term.weight) for term in config.loss.terms],
        "next_category": config.loss.next_category,
        "category": data.dimensions.category or 0,
        "list_penalty": _LIST_PENALTY,
        "mean_weight": data.mean_weight,
        "drawn_by": data.prepared.drawn_by,
        "monitor": monitored_metric(config, data),
    }


def best_run(runs: Sequence[Trained]) -> Trained:
    """The run whose monitored metric went highest (log loss: lowest). All processes of a distributed run agree on it."""
    sign = -1.0 if runs[0].module.monitor == "log_loss" else 1.0
    return max(runs, key=lambda run: sign * run.run.best)


def best_share(config: FinetuneConfig, runs: Sequence[Trained]) -> float:
    """At what share of the scheduled steps the runs were best, the mean over them: one run's best step is mostly chance."""
    shares = [run.run.best_step / total_steps(config.training, run.batches_per_epoch) for run in runs]
    return float(np.mean(np.minimum(shares, 1.0)))


def ensemble(runs: Sequence[Trained]) -> Trained:
    """All runs as one network: the mean of their logits. How it ran is what the first run says."""
    first = runs[0].module
    models = [cast(CTRModel, run.module.model.cpu()) for run in runs]
    module = CTRModule(model=Ensemble(models), tasks=first.tasks, terms=first.terms, monitor=first.monitor)
    valid = runs[0].valid._replace(logits=np.mean([run.valid.logits for run in runs], axis=0))
    return Trained(module, runs[0].run, runs[0].seed, valid, runs[0].batches_per_epoch)


def raw_outputs(module: CTRModule, batches: InOrder, device: str) -> Raw:
    """Raw outputs of rows in order, position bias off."""
    target = torch.device(resolve_device(device))
    module = module.to(target).eval()
    parts = []
    with torch.inference_mode():
        for batch in batches:
            parts.append((module.model(moved(batch, target)).logits.float().cpu(), batch.labels, batch.group, None))
    return gathered(parts)._replace(weight=batches.examples.weight)


def monitored_metric(config: FinetuneConfig, data: ClickData) -> str:
    """The validation metric that picks the best weights: as the config says, or by what the validation rows can measure."""
    if config.training.monitor == "log_loss" and data.tasks[0].name in data.late:
        raise ConfigError(
            f"training.monitor: log_loss judges by labels of which many have not come yet, since '{data.tasks[0].name}' comes "
            "late. Set it to auc."
        )
    if config.training.monitor != "auto":
        if config.training.monitor == "auc_request" and data.valid.weight is not None:
            raise DataError(
                f"{data.prepared.path}: rows of counts are no lists that anybody was shown, so there is no auc_request. "
                "Set training.monitor to auc or log_loss."
            )
        return config.training.monitor
    if data.valid.weight is not None:
        return "auc"
    label = data.valid.labels[data.tasks[0].name]
    starts = data.valid.request_starts[:-1]
    mixed = np.maximum.reduceat(label, starts) > np.minimum.reduceat(label, starts)
    # Per-request ranking needs requests that hold both a click and a miss; a handful of them is noise.
    return "auc_request" if mixed.sum() >= 30 and mixed.mean() > 0.1 else "auc"


def _slowed(model: nn.Module, whole: Collection[str], rate: float) -> list[nn.Parameter]:
    """The parameters that learn at `rate` of the learning rate; at 0 they learn nothing, but for the outputs."""
    carried = [
        (name, parameter) for name, parameter in model.named_parameters() if name in whole and not name.startswith("heads.")
    ]
    for _, parameter in carried if rate == 0 else ():
        parameter.requires_grad_(False)
    return [parameter for _, parameter in carried] if 0 < rate < 1 else []


def optimizer_of(
    config: FinetuneConfig,
    steps: int,
    module: nn.Module,
    text_encoder: nn.Module | None,
    *,
    slower: Sequence[nn.Parameter] = (),
) -> dict[str, Any]:
    """AdamW of the config over `steps`; the text encoder, where it is trained, by a rate of its own, and what was carried."""
    training = config.training
    parts = [(text_encoder, config.text.learning_rate)] if text_encoder is not None else []
    slow = (nn.ParameterList(slower), training.learning_rate * config.carried_rate)
    return adamw_of(training, [*parts, slow, (module, training.learning_rate)], total_steps=steps)


def _rows(batch: Batch) -> int:
    return len(batch.ad)
