"""How a model is trained: shared by pretrain-mlm, finetune and distill."""

from typing import Literal

from pydantic import Field, model_validator

from adrec.config.base import Config


class TrainingConfig(Config):
    """Optimiser, schedule, precision, checkpoints and logs."""

    epochs: int = Field(10, ge=1, le=100_000)
    """Passes over the training data."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimiser steps, though epochs remain. Schedules end there too."""
    learning_rate: float = Field(5e-4, gt=0, le=1_000)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of matrices; biases, norms and other vectors never decay."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What follows the warm-up: down to 0 in a line or half a cosine, or no change."""
    warmup_fraction: float = Field(0.06, ge=0, lt=1)
    """Share of the steps in which the rate rises from 0."""
    accumulate: int = Field(1, ge=1, le=1_000_000)
    """Batches whose gradients are summed into one step."""
    evaluations_per_epoch: int = Field(1, ge=1, le=1_000_000)
    """Evaluations on held-out data in each epoch; one more comes at the end."""
    patience: int | None = Field(3, ge=1)
    """Stop after this many evaluations without a better held-out result; null never stops early."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 mixed precision on a GPU that has it, else fp32. Frozen encoders on GPUs follow it, in scoring too."""
    gradient_checkpointing: bool = False
    """Recompute activations of the encoder in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """torch.compile the encoder. Gains on GPUs and long runs; on small CPU runs it costs more than it saves."""
    devices: int = Field(1, ge=1, le=1_024)
    """GPUs (or CPU processes) of a machine to train on."""
    nodes: int = Field(1, ge=1, le=10_000)
    """Machines to train on, `devices` on each. `cluster` or torchrun starts the processes (docs/how-to/cluster.md)."""
    strategy: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto"
    """`auto` is one device, or DDP where there are more; FSDP shards the weights too; HSDP among the `devices` of a machine
    alone, each machine holding them whole."""
    workers: int = Field(0, ge=0, le=1_024)
    """Processes that make batches beside the training; 0 makes them in line."""
    checkpoint_minutes: float = Field(5.0, ge=0)
    """Minutes between checkpoints to resume from."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints, beside the minutes."""
    resume: bool = True
    """Continue an interrupted run of the same config. False starts over."""
    loggers: list[Literal["tensorboard", "mlflow", "wandb"]] = ["tensorboard"]
    """Where curves go besides the report: each beyond tensorboard needs its package."""
    profile: bool = False
    """Record ten early steps with torch's profiler: a table and a trace in the output's profile/."""

    @property
    def processes(self) -> int:
        """Devices of all machines."""
        return self.devices * self.nodes

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds all weights."""
        return self.strategy in ("fsdp", "hsdp")

    @model_validator(mode="after")
    def _something_to_shard_over(self) -> "TrainingConfig":
        if self.strategy == "hsdp" and self.devices < 2:
            raise ValueError("strategy hsdp shards among the devices of a machine: set devices to 2 or more, or take fsdp")
        return self
