"""Processes of one training on several machines: that all of them are there, and see the folder that the first one makes ready.

torchrun starts them all at once, and again after a loss; they go on from the last checkpoint, which lies in the work folder
beside the output. So every machine must see that folder: on a shared disk, or by an address of object storage.
"""

import os
import time
from pathlib import Path

import torch.distributed as dist

from adrec.config.training.loop import TrainingConfig
from adrec.errors import ConfigError, ResourceError
from adrec.ranks import OWN_STORES, attempt, by_torchrun, rank
from adrec.training.loop.stored import is_ready, say_ready
from adrec.urls import address_of

_PATIENCE_SECONDS = 120.0
"""What a machine that sees the folder late may take."""
_TURN_SECONDS = 0.1
_STORE_TURN_SECONDS = 1.0
"""Between two looks at a store, whose calls cost."""


def check_launch(config: TrainingConfig) -> None:
    """Raise ConfigError where the processes that were started are not those of the config."""
    if not by_torchrun():
        if config.nodes > 1:
            raise ConfigError(
                f"training.nodes is {config.nodes}: name a Ray cluster (--cluster), or start the command on each of them:"
                f" {OWN_STORES}=1 torchrun --nnodes {config.nodes} --nproc-per-node {config.devices} --rdzv-backend c10d"
                " --rdzv-endpoint HOST:29500 -m adrec finetune --config FILE"
            )
        return
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if (local, world) != (config.devices, config.processes):
        raise ConfigError(
            f"torchrun started {world} processes, {local} on this machine; training.devices x training.nodes is"
            f" {config.devices} x {config.nodes}. Give torchrun --nproc-per-node {config.devices} --nnodes {config.nodes}."
        )


def tell_others(folder: Path) -> None:
    """The work folder is ready for this start of all processes."""
    if by_torchrun():
        say_ready(folder, attempt())


def await_first(folder: Path) -> None:
    """Wait until the first process has made `folder` ready. Raises ResourceError where this machine does not see that."""
    if not by_torchrun():
        return
    began = time.monotonic()
    while not is_ready(folder, attempt()):
        if time.monotonic() - began > _PATIENCE_SECONDS:
            raise ResourceError(
                f"{folder}: process {rank()} does not see what the first one has written there. Put `output` on a disk that"
                " all machines share, or name an address of object storage (s3://...)."
            )
        time.sleep(_TURN_SECONDS if address_of(folder) is None else _STORE_TURN_SECONDS)


def is_of_peers(error: RuntimeError) -> bool:
    """Whether a fault is that of the connection to another process."""
    said = str(error)
    return isinstance(error, dist.DistError) or any(mark in said for mark in ("Connection", "gloo", "NCCL", "timed out"))


def how_to_come_back() -> str:
    """What a user must know whose torchrun would not take a lost machine back."""
    if os.environ.get(OWN_STORES) == "1":
        return ""
    return (
        f" A lost machine that comes back is let in only where {OWN_STORES}=1 was set before torchrun; without it, end torchrun"
        " on all machines and start the same lines again."
    )
