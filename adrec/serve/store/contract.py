"""What the server must not forget: impressions, clicks, conversions, and changed ads. One interface, in SQLite or in Redis.

An event is acknowledged after the store has it for good, and a repeated `event_id` counts once. Events are numbered in the
order in which they became visible, so that several servers over one store can each count what the others recorded; changes
of ads have numbers of their own. Events are read as columns, a slice at a time: no Python object is made of an event.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.errors import ResourceError

KINDS = ("impression", "click", "conversion")
MOST_MONEY = 1e12
"""No price and no value is more: sums of them stay far from where whole numbers end."""
_PIECE = 2_000_000
_LAST_MOMENT = 7_289_654_400_000_000  # the year 2201, microseconds


class Event(NamedTuple):
    """Something a user did; what follows the event id is what the list said that led to it."""

    user_id: str
    ad_id: str
    kind: str  # one of KINDS
    at: int  # microseconds since 1970, UTC
    price: float | None = None  # what it cost the advertiser
    event_id: str | None = None  # repeated ones count once
    request_id: str | None = None
    position: int | None = None
    score: float | None = None  # probability of a click
    propensity: float | None = None  # given the ads above, as the list said
    arm: str | None = None
    scenario: str | None = None
    context: str | None = None  # JSON of further columns of the impression
    value: float | None = None  # what a conversion was worth
    score_conversion: float | None = None  # probability of a conversion, as the list said


NUMBER = "number"
COLUMNS: dict[str, pa.DataType] = {
    "user_id": pa.string(), "ad_id": pa.string(), "kind": pa.string(), "at": pa.int64(), "price": pa.float64(),
    "event_id": pa.string(), "request_id": pa.string(), "position": pa.int64(), "score": pa.float64(),
    "propensity": pa.float64(), "arm": pa.string(), "scenario": pa.string(), "context": pa.string(), "value": pa.float64(),
    "score_conversion": pa.float64(),
}  # fmt: skip
"""Of a slice of events, beside NUMBER."""
_KINDS_OF_CELLS: dict[pa.DataType, tuple[type, ...]] = {pa.string(): (str,), pa.int64(): (int,), pa.float64(): (int, float)}


class Slice(NamedTuple):
    """Events in order."""

    events: pa.Table
    """NUMBER and COLUMNS"""
    last: int
    """number of the last row that was read, also where it is set aside"""
    set_aside: int
    """rows that are no events: damaged, or written by somebody else"""


class Recorded(NamedTuple):
    """What became of events."""

    new: int
    last: int
    """number of the newest event of the store"""


class Totals(NamedTuple):
    """Sums of the events that retention has taken away: limits and budgets still know them."""

    impressions: list[tuple[str, str, int]]  # user id, ad id, how many
    spent: dict[str, int]  # millionths, by ad id


NOTHING_KEPT = Totals([], {})


class Erased(NamedTuple):
    """What was taken away of a user."""

    events: pa.Table
    """for who has counted them"""
    epochs: int
    """how many began by it"""


class StoreError(ResourceError):
    """The store cannot be reached or used."""


class Store(Protocol):
    """Usable from any thread. Raises StoreError where it cannot answer."""

    def record(self, events: Sequence[Event]) -> Recorded:
        """Keep events for good, all of them or none."""

    def after(self, number: int, limit: int) -> Slice:
        """The first `limit` events behind a number."""

    def kept(self) -> Totals:
        """What the events that were taken away added up to."""

    def keep(self, totals: Totals) -> None:
        """Add to `kept`."""

    def drop_before(self, moment: int) -> int:
        """Take away the events before a moment (microseconds) and keep their sums; returns how many."""

    def erase(self, user_id: str) -> Erased:
        """Take away all events of a user, and what is kept of theirs."""

    def rename(self, named: Callable[[str], str]) -> int:
        """Keep users, requests and events under other names, and nothing under the earlier ones; returns how many events had
        such. What then has the same `event_id` is one event.
        """

    def epoch(self) -> int:
        """How often events have been taken away: sums of an earlier epoch count some that are no more."""

    def put_snapshot(self, definition: str, epoch: int, content: bytes) -> bool:
        """Keep sums in place of the earlier ones; False where that epoch is over. Written by pieces: nobody waits for all."""

    def snapshot(self, definition: str) -> bytes | None:
        """The sums that were kept under a definition in this epoch, whole and unaltered, or None."""

    def compact(self) -> None:
        """Give back the space of what was taken away."""

    def put_ad(self, ad_id: str, ad: dict[str, Any] | None) -> int:
        """Remember a new or changed ad, or (None) that it was deleted; returns the number of the change."""

    def ads(self, after: int = 0) -> dict[str, tuple[int, dict[str, Any] | None]]:
        """Ads changed behind a number: the number of the last change and the ad, None where deleted, in order of number."""

    def probe(self) -> None:
        """Try to write."""

    def close(self) -> None:
        """Let go."""


def digest_of(content: bytes) -> str:
    """By which a snapshot is known to be whole."""
    return hashlib.sha256(content).hexdigest()


def pieces_of(content: bytes) -> list[bytes]:
    """A snapshot in pieces of 2 MB."""
    return [content[start : start + _PIECE] for start in range(0, len(content), _PIECE)]


def slice_of(columns: dict[str, list[Any]], last: int) -> Slice:
    """Cells (N of each column) as events. A row that is none is set aside: its neighbours are read all the same."""
    count = len(columns[NUMBER])
    try:
        table = pa.table({name: pa.array(columns[name], kind) for name, kind in ((NUMBER, pa.int64()), *COLUMNS.items())})
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        table = _fitting(columns)
    kept = table.filter(_usable(table))
    return Slice(kept, last, count - len(kept))


def _fitting(columns: dict[str, list[Any]]) -> pa.Table:
    """The rows whose every cell is of its column's kind. Only where a row is damaged is each looked at."""
    rows = [
        cells
        for cells in zip(columns[NUMBER], *(columns[name] for name in COLUMNS), strict=True)
        if all(
            cell is None or (isinstance(cell, _KINDS_OF_CELLS[kind]) and not (isinstance(cell, int) and abs(cell) >= 1 << 62))
            for cell, kind in zip(cells[1:], COLUMNS.values(), strict=True)
        )
    ]
    cells = list(zip(*rows, strict=True)) or [()] * (len(COLUMNS) + 1)
    kinds = {NUMBER: pa.int64(), **COLUMNS}
    return pa.table({name: pa.array(values, kind) for (name, kind), values in zip(kinds.items(), cells, strict=True)})


def _usable(table: pa.Table) -> pa.Array:
    """(N,) rows that say who, what and when, and whose numbers can be summed."""
    usable = pc.and_(table["user_id"].is_valid(), table["ad_id"].is_valid())
    usable = pc.and_(usable, pc.is_in(table["kind"], value_set=pa.array(KINDS)))
    at = pc.fill_null(table["at"], -1)
    usable = pc.and_(usable, pc.and_(pc.greater_equal(at, 0), pc.less(at, _LAST_MOMENT)))
    for name in ("price", "value"):
        amount = pc.fill_null(table[name], 0.0)
        usable = pc.and_(usable, pc.and_(pc.greater_equal(amount, 0.0), pc.less_equal(amount, MOST_MONEY)))  # not NaN either
    for name in ("score", "propensity", "score_conversion"):
        usable = pc.and_(usable, pc.is_finite(pc.fill_null(table[name], 0.0)))
    return usable


def events_table(events: Sequence[Event]) -> pa.Table:
    """(N,) events as columns."""
    columns = columns_of_rows(events, Event._fields)
    return pa.table({name: pa.array(columns[name], kind) for name, kind in COLUMNS.items()})


def columns_of_rows(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """Rows of cells as lists by column."""
    cells = list(zip(*rows, strict=True)) or [()] * len(names)
    return {name: list(values) for name, values in zip(names, cells, strict=True)}


def in_micros(amounts: pa.ChunkedArray) -> NDArray[np.int64]:
    """(N,) amounts of money as whole millionths, 0 where there is none."""
    values = pc.fill_null(amounts, 0.0).to_numpy()
    micros: NDArray[np.int64] = np.rint(np.clip(values, 0.0, MOST_MONEY) * 1e6).astype(np.int64)
    return micros
