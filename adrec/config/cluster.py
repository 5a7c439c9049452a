"""The `cluster` section: where a command's work is shared out, and what one worker of it may use."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from adrec.config.base import Config, StageConfig


class ClusterConfig(Config):
    """Workers on the nodes of a cluster, each of which takes parts of the work. Needs `pip install 'adrec[cluster]'`."""

    engine: Literal["ray"] = "ray"
    """What places the workers."""
    address: str = "local"
    """`local` starts a Ray on this machine for the run; `auto` finds the one that runs here (`RAY_ADDRESS`); else its address:
    `host:6379` from a node of the cluster, `ray://host:10001` from outside it."""
    workers: int | None = Field(None, ge=1, le=10_000)
    """Workers in all. None: as many as the processors, GPUs and memory of the nodes hold, counted at the start."""
    cpus: Annotated[float, Field(gt=0, le=1_024)] = 1.0
    """Processors of one worker, and its threads."""
    gpus: Annotated[float, Field(ge=0, le=64)] = 0.0
    """GPUs of one worker: a fraction (0.25) lets several share one."""
    memory_gb: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Memory that a worker is placed by; None places by processors and GPUs alone."""

    @field_validator("address")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if not value.strip() or (value not in ("local", "auto") and ":" not in value):
            raise ValueError("is local, auto, host:6379 or ray://host:10001")
        return value


class TrainsOnCluster(StageConfig):
    """A training that nodes of a cluster can do together."""

    cluster: ClusterConfig | None = None
    """Train on workers of a Ray cluster: `training.nodes` of them, with `training.devices` processes each. `cpus`, `gpus` and
    `memory_gb` are those of a whole worker. None: this machine, or those that torchrun starts."""


class OnCluster(StageConfig):
    """A command whose work can be shared out over a cluster."""

    cluster: ClusterConfig | None = None
    """Share the work among workers of a Ray cluster; None: this machine alone. The output is the same."""
