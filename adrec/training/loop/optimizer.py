"""AdamW with the right decay groups, and the schedules of its learning rate."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from adrec.config.training.loop import TrainingConfig
from adrec.training.loop.by_rows import RATE, AdamWByRows
from adrec.training.loop.row_shards import tables_by_rows


def parameter_groups(parts: Sequence[tuple[nn.Module, float]], *, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups of `(module, learning rate)` parts: matrices decay; biases, norms and all other vectors do not.

    A parameter that two parts share (tied weights, a module inside another) is taken by the first. Frozen ones are left out.
    Tables that learn by rows (`tables_by_rows`) are groups of their own, marked `by_rows`.
    Decoupled decay: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019.
    """
    rows = {id(table) for module, _ in parts for table in tables_by_rows(module).values()}
    seen: set[int] = set()
    groups: list[dict[str, Any]] = []
    for module, learning_rate in parts:
        decays: list[nn.Parameter] = []
        stays: list[nn.Parameter] = []
        tables: list[nn.Parameter] = []
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                group = tables if id(parameter) in rows else decays if parameter.ndim > 1 else stays
                group.append(parameter)
        groups.append({"params": decays, "lr": learning_rate, "weight_decay": weight_decay})
        groups.append({"params": stays, "lr": learning_rate, "weight_decay": 0.0})
        groups.append({"params": tables, "lr": RATE * learning_rate, "weight_decay": weight_decay / RATE, "by_rows": True})
    return [group for group in groups if group["params"]]


def configure_adamw(
    parts: Sequence[tuple[nn.Module, float]],
    *,
    total_steps: int,
    weight_decay: float,
    schedule: str = "linear",
    warmup_fraction: float = 0.06,
) -> dict[str, Any]:
    """What a LightningModule's `configure_optimizers` returns: AdamW over `parts` and its schedule by step."""
    optimizer = AdamWByRows(parameter_groups(parts, weight_decay=weight_decay), fused=True)
    # A fused step can undo a gradient scaler's factor by itself, and Lightning then refuses to clip under mixed precision.
    # bf16 has no scaler: gradients are clipped as they are.
    optimizer._step_supports_amp_scaling = False
    scheduler = warmup_schedule(optimizer, total_steps=total_steps, schedule=schedule, warmup_fraction=warmup_fraction)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def adamw_of(training: TrainingConfig, parts: Sequence[tuple[nn.Module, float]], *, total_steps: int) -> dict[str, Any]:
    """`configure_adamw` with the decay and the schedule of a config."""
    return configure_adamw(
        parts,
        total_steps=total_steps,
        weight_decay=training.weight_decay,
        schedule=training.schedule,
        warmup_fraction=training.warmup_fraction,
    )


def warmup_schedule(optimizer: Optimizer, *, total_steps: int, schedule: str, warmup_fraction: float) -> LambdaLR:
    """Linear rise over `warmup_fraction` of the steps, then `linear` to 0, `cosine` to 0, or `constant`."""
    warmup = math.ceil(total_steps * warmup_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        if schedule == "linear":
            return 1.0 - done
        if schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
