"""Fit a LightningModule: one call that trains, evaluates, keeps the best weights, and goes on after a kill.

A run is one pass over a BatchLoader that holds all its epochs. Its work folder stands beside the output until the command
has finished: `last.ckpt` (to resume), the best weights so far, logs, and `run.json`, which says what run it belongs to.
"""

import copy
import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy, Strategy

from adrec.config.base import StageConfig
from adrec.config.training.loop import TrainingConfig
from adrec.data.device import resolve_device, runs_bf16
from adrec.data.disk.writing import write_aside
from adrec.errors import ConfigError, Interrupted, PeerLostError, ResourceError
from adrec.ranks import by_torchrun, is_first
from adrec.terminal import Terminal
from adrec.training.loop.callbacks import LAST_CHECKPOINT, Bar, Curve, ExactResume, KeepBest, Profile
from adrec.training.loop.launch import await_first, check_launch, how_to_come_back, is_of_peers, tell_others
from adrec.training.loop.loader import BatchLoader
from adrec.training.loop.sharding import sharded_strategy, whole_weights
from adrec.training.loop.stopping import Stopped, StopSignals
from adrec.training.loop.stored import RUN_FILE, store_run, store_run_or_warn, take_over
from adrec.urls import addressed

CLIP_NORM = 1.0
"""Largest gradient norm: BERT's, and no smaller model has needed another."""

_MAY_CHANGE = {"resume", "checkpoint_minutes", "checkpoint_steps", "workers", "profile", "loggers"}
"""Settings of training that a run may go on with changed."""


@dataclass(frozen=True)
class FitResult:
    """How a run went. The module holds the best weights when `fit` returns."""

    best: float
    """The monitored metric at its best."""
    best_step: int
    steps: int
    """Optimiser steps made, those before a resume included."""
    losses: list[float]
    """Training loss of every batch."""
    evaluations: list[dict[str, float]]
    """`step` and every `valid_*` metric of each evaluation."""
    seconds: float
    """Time in training, evaluations included, resumed parts added up."""
    units_per_second: float
    stopped_early: bool
    resumed_at: int
    """The step at which this process took over, 0 for a fresh run."""

    def as_dict(self) -> dict[str, Any]:
        """Everything but the long list of losses."""
        return {name: value for name, value in vars(self).items() if name != "losses"}


def work_folder(output: Path) -> Path:
    """Where a command keeps its unfinished run: a hidden folder beside the output."""
    return output.with_name(f".{output.name}.work")


def identity_of(config: StageConfig, data: str) -> dict[str, Any]:
    """What `open_work` compares: the config of a command that trains, without what may change between a run and its
    continuation, and the fingerprint of the data."""
    plain = config.model_dump(mode="json", exclude={"device": True, "training": _MAY_CHANGE})
    return {"config": plain, "data": data}


def open_work(folder: Path, identity: dict[str, Any], *, resume: bool) -> None:
    """Make `folder` ready for the run that `identity` (resolved config, data fingerprint) describes.

    Raises ConfigError, naming the keys that differ, where a checkpoint of another run lies there.
    """
    if not is_first():
        await_first(folder)  # Lightning starts helpers when the folder is ready, torchrun starts all processes at once
        return
    if resume:
        take_over(folder)
    _open_work(folder, addressed(identity), resume=resume)
    store_run(folder)
    tell_others(folder)


def _open_work(folder: Path, identity: dict[str, Any], *, resume: bool) -> None:
    record = folder / RUN_FILE
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    if (folder / LAST_CHECKPOINT).exists() and record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        changed = _differences(found, json.loads(json.dumps(identity)))
        if changed:
            raise ConfigError(
                f"{folder}: an interrupted run of another config lies here (it differs in {', '.join(changed[:5])})."
                " Finish it with its own config, or pass --set training.resume=false to start over."
            )
        return
    shutil.rmtree(folder, ignore_errors=True)
    with write_aside(record) as aside:
        aside.write_text(json.dumps(identity, ensure_ascii=False, indent=2), encoding="utf-8")


def total_batches(config: TrainingConfig, batches_per_epoch: int) -> int:
    """Batches of the whole run, over all ranks."""
    total = batches_per_epoch * config.epochs
    if config.max_steps is None:
        return total
    return min(total, config.max_steps * config.accumulate * config.processes)


def total_steps(config: TrainingConfig, batches_per_epoch: int) -> int:
    """Optimiser steps of the whole run: what a schedule needs to know."""
    return max(1, math.ceil(total_batches(config, batches_per_epoch) // config.processes / config.accumulate))


def fit(
    module: pl.LightningModule,
    train: BatchLoader,
    valid: Iterable[Any] | None,
    *,
    config: TrainingConfig,
    seed: int,
    device: str,
    work: Path,
    terminal: Terminal,
    description: str,
    total_units: float | None = None,
    unit: str = "batches",
    units_of: Callable[[Any], int] = lambda batch: 1,
    monitor: str = "valid_loss",
    mode: str = "min",
    callbacks: Sequence[pl.Callback] = (),
    is_last: bool = True,
) -> FitResult:
    """Train `module` on `train`, evaluating on `valid`, and leave the best weights in it.

    `module.training_step` returns the loss; `validation_step` logs `monitor` (and other `valid_*`). `units_of(batch)` counts
    what the bar shows (tokens, rows) of `total_units`. `callbacks` run after the trainer's own. `work` comes from
    `open_work`; the caller deletes it once its output stands. With a CPU and one seed, a run that was killed and resumed ends
    with the same weights as one that was not. Helper processes of a distributed run end here, unless more trainings follow
    (`is_last` is False): every process has to take part in each of them. Only the first one's module holds the best weights.
    Raises AdrecError where the loss is not finite.
    """
    per_epoch = max(1, train.batches_per_epoch // config.processes)
    evaluate_every = min(train.total // config.processes, max(1, math.ceil(per_epoch / config.evaluations_per_epoch)))
    # A sharded module cannot be put together again in place: a copy is trained, and its weights are brought back.
    trained = copy.deepcopy(module) if config.is_sharded else module
    keep = KeepBest(work, module, monitor=monitor, mode=mode, patience=config.patience)
    curve = Curve()
    signals = StopSignals()
    resume = ExactResume(
        work, train, evaluate_every=evaluate_every, minutes=config.checkpoint_minutes, steps=config.checkpoint_steps,
        signals=signals, saved=partial(store_run_or_warn, work, terminal),
    )  # fmt: skip
    total = total_units if total_units is not None else train.total
    bar = Bar(terminal, description, total=total, unit=unit, units_of=units_of, monitor=monitor)
    every: list[pl.Callback] = [curve, bar, keep, resume, *callbacks]
    if config.profile:
        every.append(Profile(work / "profile"))
    torch.manual_seed(seed)
    trainer = build_trainer(config, device=device, work=work, callbacks=every, evaluate_every=evaluate_every)
    train.shard(trainer.global_rank, trainer.world_size)
    if dist.is_initialized():  # a second training of the same processes: the first one may still clear the work folder
        dist.barrier()
    last = work / LAST_CHECKPOINT
    resumed = _step_of(last) if last.exists() else 0
    if resumed:
        terminal.tell(f"{description}: goes on at step {resumed:,}")
    try:
        with quiet_lightning(), signals:
            trainer.fit(trained, train, valid, ckpt_path=str(last) if resumed else None, weights_only=True if resumed else None)
    except Stopped as stopped:
        if not trainer.is_global_zero:
            raise SystemExit(0) from None  # the first process tells it
        where = f"stopped at step {stopped.step:,}; the same command goes on there." if stopped.step else ""
        raise Interrupted(stopped.number, where) from None
    except RuntimeError as error:
        if by_torchrun() and is_of_peers(error):
            raise PeerLostError(
                f"{description}: another process of the training was lost. torchrun starts all of them again, from the last"
                f" checkpoint, as often as --max-restarts says.{how_to_come_back()}"
            ) from None
        raise
    except SystemExit:  # Lightning's answer to a second Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    if keep.best is None:  # no evaluation kept any: the last weights stand
        whole_weights(trained, module)
    if not trainer.is_global_zero:
        if is_last:
            raise SystemExit(0)  # the first process alone writes the output
    elif valid is not None:
        keep.restore()
    curve.state_dict()
    return FitResult(
        best=keep.best if keep.best is not None else math.nan,
        best_step=keep.best_step,
        steps=trainer.global_step,
        losses=curve.losses,
        evaluations=curve.evaluations,
        seconds=bar.seconds,
        units_per_second=bar.units / max(bar.seconds, 1e-9),
        stopped_early=keep.stopped_early,
        resumed_at=resumed,
    )


def build_trainer(
    config: TrainingConfig, *, device: str, work: Path, callbacks: list[pl.Callback], evaluate_every: int
) -> pl.Trainer:
    """The Lightning Trainer of a config. `device` is auto, cpu or cuda. Raises ResourceError where there is no such device."""
    check_launch(config)
    device = resolve_device(device)
    on_gpu = device == "cuda"
    if on_gpu and config.devices > torch.cuda.device_count():
        raise ResourceError(f"training.devices is {config.devices}; this machine has {torch.cuda.device_count()} GPUs.")
    strategy: str | Strategy = config.strategy if config.strategy != "auto" or config.processes == 1 else "ddp"
    if config.is_sharded:
        strategy = sharded_strategy(config)
    elif strategy == "ddp":
        # A dot product reads no features, in_batch no output layer: weights without a gradient are not waited for.
        strategy = DDPStrategy(find_unused_parameters=True)
    with quiet_lightning():
        return pl.Trainer(
            accelerator="gpu" if on_gpu else "cpu",
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=strategy,
            precision="bf16-mixed" if runs_bf16(config.precision, device) else "32-true",
            max_epochs=1,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=CLIP_NORM,
            val_check_interval=evaluate_every,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=_loggers(config, work),
            callbacks=callbacks,
            default_root_dir=work,
        )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's banners, tips and warnings about what was set on purpose."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pytorch_lightning.*|lightning_fabric.*")
            warnings.filterwarnings("ignore", message=r".*(does not have many workers|treespec|lr_scheduler\.step).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _loggers(config: TrainingConfig, work: Path) -> list[Any]:
    from pytorch_lightning import loggers

    made: list[Any] = []
    for name in dict.fromkeys(config.loggers):
        try:
            if name == "tensorboard":
                made.append(loggers.TensorBoardLogger(work, name="logs", version=""))
            elif name == "mlflow":
                made.append(loggers.MLFlowLogger(experiment_name="adrec", save_dir=str(work / "mlruns")))
            else:
                made.append(loggers.WandbLogger(project="adrec", save_dir=str(work), offline=True))
        except (ImportError, ModuleNotFoundError):
            raise ResourceError(f"training.loggers names {name}, which is not installed. Run: pip install {name}") from None
    return made


def _step_of(checkpoint: Path) -> int:
    """The optimiser step at which a checkpoint was taken."""
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def _differences(stored: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = sorted({*stored, *wanted})
        return [line for key in keys for line in _differences(stored.get(key), wanted.get(key), f"{prefix}{key}.")]
    return [] if stored == wanted else [prefix.rstrip(".")]
