"""Counters whose key holds a user, one partition of the users after another: no partition knows anything of the others.

So they may be counted in any place: here, in the stream of the log, or each by whoever takes it (a worker of a cluster).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.asof.events import EventRows, is_counted
from adrec.asof.spec import KeyPlan
from adrec.asof.state import State
from adrec.asof.sums import KeyedSums

Arrays = dict[str, NDArray[np.generic]]


class RowSums(NamedTuple):
    """Sums before some events; `row` is null for those that no row asks for."""

    row: pa.Array
    sums: Arrays


@dataclass
class Partition:
    """The events of some users, in order of time."""

    number: int
    plans: Sequence[KeyPlan]
    sums: dict[tuple[str, ...], KeyedSums]
    """by the key of a plan: what an earlier run knew of these users"""
    pieces: Iterable[tuple[pa.Array, EventRows]]
    """rows and their events; read once"""


@dataclass
class CountedPartition:
    """What a partition gives: sums of its rows, read once, and behind them its state."""

    number: int
    rows: Iterable[RowSums]
    sums: dict[tuple[str, ...], KeyedSums] = field(default_factory=dict)


Share = Callable[[Iterable[Partition]], Iterator[CountedPartition]]
"""Counts partitions wherever; gives them in their order."""


def count_here(partitions: Iterable[Partition]) -> Iterator[CountedPartition]:
    """One after another, in a stream: memory is a batch and the state of one partition."""
    for partition in partitions:
        state = State(partition.plans)
        state.sums |= partition.sums
        yield CountedPartition(partition.number, _stepped(state, partition), state.sums)


def count_whole(partition: Partition) -> CountedPartition:
    """One partition with all of its rows in memory."""
    (counted,) = count_here([partition])
    return CountedPartition(counted.number, list(counted.rows), counted.sums)


def _stepped(state: State, partition: Partition) -> Iterator[RowSums]:
    for row, events in partition.pieces:
        yield RowSums(row, state.step(events, is_counted(events.weights)))
