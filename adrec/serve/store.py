"""What the server must not forget: clicks, impressions, spend and changed ads. One interface, in SQLite or in Redis.

An event is acknowledged after the store has it for good, and a repeated `event_id` counts once. Events are numbered in the
order in which they became visible, so that several servers over one store can each count what the others recorded.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from adrec.config.inference.serve import StoreConfig
from adrec.errors import ResourceError


class Event(NamedTuple):
    """Something a user did; what follows the event id is what the list said that led to it."""

    user_id: str
    ad_id: str
    kind: str  # impression or click
    at: int  # microseconds since 1970, UTC
    price: float | None = None  # what the click cost
    event_id: str | None = None  # repeated ones count once
    request_id: str | None = None
    position: int | None = None
    score: float | None = None
    propensity: float | None = None  # given the ads above, as the list said
    arm: str | None = None
    scenario: str | None = None
    context: str | None = None  # JSON of further columns of the impression


class Numbered(NamedTuple):
    """An event with its place in the order of all, from 1, and the number of its user."""

    number: int
    user: int
    event: Event


class Totals(NamedTuple):
    """All events up to number `last`, summed."""

    impressions: list[tuple[int, str, int]]  # user number, ad id, how many
    spent: dict[str, float]  # sum of the prices of clicks, by ad id
    last: int


class StoreError(ResourceError):
    """The store cannot be reached or used."""


class Store(Protocol):
    """Usable from any thread. Raises StoreError where it cannot answer."""

    def record(self, events: Sequence[Event]) -> int:
        """Keep events for good; returns how many were new."""

    def numbers(self, users: Iterable[str]) -> dict[str, int]:
        """The numbers of those users that have events; a number never changes."""

    def totals(self) -> Totals:
        """Everything so far, summed."""

    def after(self, number: int, limit: int) -> list[Numbered]:
        """The first `limit` events behind a number, in order."""

    def put_ad(self, ad_id: str, ad: dict[str, Any] | None) -> None:
        """Remember a new or changed ad, or (None) that it was deleted."""

    def ads(self) -> dict[str, dict[str, Any] | None]:
        """Changed ads by id, None where deleted, in the order of their first change."""

    def close(self) -> None:
        """Let go."""


def open_store(config: StoreConfig) -> Store:
    """The store that the config names. Raises StoreError where it cannot be used."""
    if config.redis is None:
        from adrec.serve.sqlite_store import SqliteStore

        return SqliteStore(config.store)
    try:
        from adrec.serve.redis_store import RedisStore
    except ImportError:
        raise StoreError("redis: the package is not installed. Install it with: pip install 'adrec[redis]'") from None
    return RedisStore(config.redis, prefix=config.redis_prefix)
