"""One private training: the last weights of a run whose length was fixed before. Nothing is chosen by held-out rows."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from adrec.config.training.finetune import FinetuneConfig
from adrec.data.arrays import Longs
from adrec.errors import ConfigError, DataError
from adrec.privacy.accounting import Event
from adrec.privacy.noise import Noise
from adrec.terminal import Terminal
from adrec.training.build import build_model
from adrec.training.click_data import ClickData
from adrec.training.ctr_training import Trained, loss_settings, optimizer_of, raw_outputs
from adrec.training.loop.loader import BatchLoader
from adrec.training.loop.trainer import fit, open_work
from adrec.training.private.gradients import units_at_once
from adrec.training.private.module import PrivateCTRModule
from adrec.training.private.schedule import Schedule, schedule_within
from adrec.training.private.units import PoissonPlan, Units

_CUT_CLICKS = 0.1
"""Share of the clicks whose gradients adaptive clipping cuts. Half of them cut cost .011 AUC on 200,000 rows at epsilon 8."""
_FIRST_CLIP = 8.0
"""Where adaptive clipping begins. From 1 it takes ten steps to get where it stays, and Adam, whose scale is that of the first
gradients, goes many times too far in them.
"""
_STEPS = 200
"""So many are enough to learn by, and fewer and larger ones stand out better from the noise: where a unit takes part seldom,
noise hardly grows with how often (De et al. 2022).
"""
_WHOLE_USERS = 0.9
"""Share of the users whose gradients adaptive clipping leaves as they are: nearly all have a click."""


def units_of(config: FinetuneConfig, data: ClickData) -> Longs:
    """(N,) the unit of each training row, 0, 1, ...; -1 where its click is not known. Raises DataError."""
    assert config.privacy is not None
    if data.train is None:
        raise DataError(
            f"{data.prepared.path}: a private training draws from all rows at once. Raise training.in_memory_rows to"
            f" {data.rows:,} or more."
        )
    if data.train.weight is not None:
        raise DataError(f"{data.prepared.path}: its rows are counts of many people's clicks, which are no units of privacy.")
    if config.privacy.unit == "user" and not data.prepared.has.user:
        raise DataError(f"{data.prepared.path}: its log names no users. Set privacy.unit to row.")
    known = ~np.isnan(data.train.labels[data.sampling.label])
    own = data.train.user_index if config.privacy.unit == "user" else np.arange(len(data.train))
    unit = np.full(len(data.train), -1, np.int64)
    unit[known] = np.unique(own[known], return_inverse=True)[1]
    return unit


def schedule_of(config: FinetuneConfig, units: int, beside: list[Event], delta: float) -> Schedule:
    """Steps and noise such that they and what is released `beside` them stay within the budget.

    `delta`: what the accountant may spend. Raises ConfigError where `privacy.noise` is too little.
    """
    privacy = config.privacy
    assert privacy is not None
    usual = config.training.batch_rows if privacy.unit == "row" else max(1, config.training.batch_rows // 8)
    usual = max(usual, round(units * config.training.epochs / _STEPS))
    a_step = privacy.units_per_step or max(1, min(usual, units // 10))
    if a_step > units:
        raise ConfigError(f"privacy.units_per_step is {a_step:,}, and there are {units:,} units. Lower it.")
    return schedule_within(privacy, config.training, rate=a_step / units, delta=delta, beside=beside)


def train_privately(
    config: FinetuneConfig,
    data: ClickData,
    unit: Longs,
    schedule: Schedule,
    randomness: Noise,
    *,
    work: Path,
    terminal: Terminal,
) -> Trained:
    """Train for the whole schedule. `unit` comes from `units_of`."""
    privacy = config.privacy
    assert privacy is not None and data.train is not None
    torch.manual_seed(config.seed)
    model = build_model(config.model, data.dimensions, data.tasks, text_encoder=None, next_category=False, centres=data.centres)
    most_rows = privacy.max_rows_per_user if privacy.unit == "user" else 1
    at_once = units_at_once(model, most_rows)
    plan = PoissonPlan(data.train, data.collate, unit, schedule.rate, most_rows, schedule.steps, at_once, randomness)
    loader = BatchLoader(
        plan.plan, plan.collate, total=schedule.steps, seed=config.seed, workers=config.training.workers, pin_memory=False
    )
    module = PrivateCTRModule(
        noise=schedule.noise,
        clip=_FIRST_CLIP if privacy.clip == "adaptive" else privacy.clip,
        whole=_whole(config, data) if privacy.clip == "adaptive" else None,
        expected=plan.expected,
        randomness=randomness,
        model=model,
        optimizer=partial(optimizer_of, config, schedule.steps),
        **loss_settings(config, data),
    )
    open_work(work, {"config": config.model_dump(mode="json"), "data": data.prepared.fingerprint}, resume=False)
    run = fit(
        module,
        loader,
        None,
        config=config.training,
        seed=config.seed,
        device=config.device,
        work=work,
        terminal=terminal,
        description="Training privately",
        total_units=plan.expected * schedule.steps,
        unit="units",
        units_of=_units,
        monitor=f"valid_{module.monitor}",
    )
    return Trained(
        module, run, config.seed, raw_outputs(module, data.batches(data.valid), config.device), max(1, round(1 / schedule.rate))
    )


def _whole(config: FinetuneConfig, data: ClickData) -> float:
    """Share of the units whose gradients are to stay as they are: misses and nine clicks in ten, by the noised rate."""
    assert config.privacy is not None
    if config.privacy.unit == "user":
        return _WHOLE_USERS
    return 1.0 - _CUT_CLICKS * min(data.tasks[0].mean, 1.0 - data.tasks[0].mean)


def _units(batch: Units) -> int:
    return sum(len(chunk.row) for chunk in batch.chunks)
