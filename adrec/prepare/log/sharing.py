"""Counters by user on a cluster: each worker takes the events of a partition of the users, by a hash of the user.

The engine sorts the events once; a partition (about 260,000 events, some 30 MB) goes to a worker, and its sums come back.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from adrec.asof.partitions import CountedPartition, Partition, Share, count_whole
from adrec.cluster.pool import MANY, Pool
from adrec.config.cluster import ClusterConfig
from adrec.terminal import Terminal


def sharing(cluster: ClusterConfig, terminal: Terminal) -> Share:
    """What counts partitions by the workers of a cluster."""

    def share(partitions: Iterable[Partition]) -> Iterator[CountedPartition]:
        tasks = (
            {"name": str(partition.number), "partition": replace(partition, pieces=list(partition.pieces))}
            for partition in partitions
        )
        with Pool(cluster, counting_worker, None, terminal, of="partition") as pool:
            yield from pool.in_order(tasks, MANY)

    return share


def counting_worker(payload: None, scratch: Path) -> Callable[[dict[str, Any]], CountedPartition]:
    """In a worker of a cluster: from a partition to its sums."""
    return lambda task: count_whole(task["partition"])
