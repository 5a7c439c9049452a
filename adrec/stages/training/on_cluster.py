"""A training on the nodes of a Ray cluster: the command stays here, the same command runs in each process there.

Inputs and output lie where all nodes see them: on a shared disk, or in object storage.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from adrec.cluster.machine import report
from adrec.cluster.machines import Machines, run_on
from adrec.cluster.relay import Relay
from adrec.config.cluster import TrainsOnCluster
from adrec.config.commands import command_of, config_model
from adrec.errors import ConfigError
from adrec.stages.writing import node_paths
from adrec.terminal import Terminal
from adrec.urls import address_of, addressed


class Call(NamedTuple):
    """A command and its config, for another machine."""

    stage: str
    """module of its `run`"""
    command: str
    config: dict[str, Any]


def train_on_cluster(run: Callable[..., Any], config: TrainsOnCluster, terminal: Terminal) -> Any:
    """The result of `run(config, terminal)` by workers of `config.cluster`. Raises what they raise."""
    cluster, training = config.cluster, config.training  # type: ignore[attr-defined]
    assert cluster is not None, "of a config that names one"
    if cluster.workers not in (None, training.nodes):
        raise ConfigError(
            f"cluster.workers is {cluster.workers}, and training.nodes {training.nodes}: a training has one worker a node."
            " Leave cluster.workers out."
        )
    plain = config.model_copy(update={"cluster": None})
    call = Call(run.__module__, command_of(type(config)), addressed(plain.model_dump(mode="json")))
    reads = [path for path in node_paths(config) if address_of(path) is None]
    return run_on(Machines(cluster, training.nodes, training.devices, __name__, reads), call, terminal)


def _work(call: Call, terminal: Relay) -> Any:
    """In a process of the training."""
    from adrec.stages.storage import run_guarded

    config = config_model(call.command).model_validate(call.config)
    return run_guarded(importlib.import_module(call.stage).run, config, terminal)


if __name__ == "__main__":
    sys.exit(report(_work))
