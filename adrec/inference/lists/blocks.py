"""Blocks of requests and their lists, made here in order or shared out over a cluster.

What depends on no other request (retrieving, scoring) is made by the workers, in any order. Lists that share budgets or caps
are made here, in the order of the requests, from the candidates that the workers send (20 KB a request at 200 candidates);
where nothing is shared, the workers make the lists too.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from adrec.cluster.pool import Pool
from adrec.config.cluster import ClusterConfig
from adrec.config.inference.rank import RankConfig
from adrec.data.device import resolve_device
from adrec.data.prepared import open_prepared
from adrec.inference.lists.opening import make_ranker
from adrec.inference.lists.ranker import Block, Ranker, Scored
from adrec.inference.own_tables import OwnTables
from adrec.inference.predictor import Predictor
from adrec.ranking.arrays import Floats
from adrec.terminal import Terminal


class RankTask(NamedTuple):
    """A block of R requests."""

    requests: pa.Table
    first: int
    """number of its first request in the whole batch"""
    released: Floats
    """(R, 1) share of the budgets that an even pace has released"""


class Counted(NamedTuple):
    """What a block's lists add up to."""

    requests: int
    empty: int
    shown: int
    expected_spend: float
    explored: int
    policies: dict[str, int]


class Lists(NamedTuple):
    """The lists of a block as RANKED rows."""

    table: pa.Table
    counts: Counted


def lists_of(ranker: Ranker, block: Block) -> Lists:
    """The rows of a ranked block, and what they add up to."""
    row, slot = block.shown
    price, score = block.ranked.price[row, slot], block.ranked.score[row, slot]
    counts = Counted(
        requests=len(block.requests),
        empty=int((block.ranked.ad < 0).all(axis=1).sum()),
        shown=len(row),
        expected_spend=float((np.nan_to_num(price) * score).sum()),
        explored=int(block.ranked.explored.sum()),
        policies={name: int((block.policy == index).sum()) for index, name in enumerate(ranker.names)},
    )
    return Lists(ranker.table(block), counts)


def lists_on_cluster(
    config: RankConfig, cluster: ClusterConfig, ranker: Ranker, own: OwnTables, tasks: Iterable[RankTask], requests: int,
    terminal: Terminal,
) -> Iterator[Lists]:  # fmt: skip
    """The lists of all tasks in order, by workers of a cluster; the same as `ranker` alone makes. `requests`: in all."""
    alone = config.model_copy(update={"cluster": None})
    payload = {
        "config": alone.model_dump(mode="json"),
        "own": [None if path is None else str(path) for path in own],
        "whole": ranker.is_free,
    }
    sent: dict[int, RankTask] = {}

    def described() -> Iterator[dict[str, Any]]:
        for number, task in enumerate(tasks):
            sent[number] = task
            named = f"of requests {task.first + 1:,} to {task.first + len(task.requests):,}"
            yield {"name": named, **task._asdict()}

    with Pool(cluster, ranking_worker, payload, terminal, reads=(config.bundle, config.prepared, *own), of="block") as pool:
        for number, made in enumerate(pool.in_order(described(), requests)):
            task = sent.pop(number)
            yield made if isinstance(made, Lists) else lists_of(ranker, ranker.listed(made, released=task.released))


def ranking_worker(payload: dict[str, Any], scratch: Path) -> Callable[[dict[str, Any]], Lists | Scored]:
    """In a worker of a cluster: from a block of requests to its lists, or to its scored candidates."""
    config = RankConfig.model_validate(payload["config"])
    own = OwnTables(*(None if path is None else Path(path) for path in payload["own"]))
    prepared = open_prepared(config.prepared) if config.prepared is not None else None
    ranker = make_ranker(config, prepared, Predictor.load(config.bundle, device=resolve_device(config.device)), own)

    def rank(task: dict[str, Any]) -> Lists | Scored:
        if not payload["whole"]:
            return ranker.scored(task["requests"], first=task["first"])
        return lists_of(ranker, ranker.rank(task["requests"], first=task["first"], released=task["released"]))

    return rank
