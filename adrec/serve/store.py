"""What the server must not forget: clicks, impressions, spend and changed ads, in SQLite with a write-ahead log.

An event is acknowledged after its transaction is committed: kill -9 loses no acknowledged event, and a repeated `event_id`
counts once. `synchronous = FULL` also survives the machine's failure.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adrec.errors import ResourceError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS users (number INTEGER PRIMARY KEY, user_id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, event_id TEXT UNIQUE, user INTEGER NOT NULL, ad_id TEXT NOT NULL, kind TEXT NOT NULL,
    at INTEGER NOT NULL, price REAL
);
CREATE INDEX IF NOT EXISTS clicks_of_user ON events (user, at) WHERE kind = 'click';
CREATE TABLE IF NOT EXISTS ads (ad_id TEXT PRIMARY KEY, ad TEXT);
"""


class Event(NamedTuple):
    """Something a user did."""

    user_id: str
    ad_id: str
    kind: str  # impression or click
    at: int  # microseconds since 1970, UTC
    price: float | None = None  # what the click cost
    event_id: str | None = None  # repeated ones count once


class SqliteStore:
    """One connection, one lock: SQLite writes one transaction at a time anyway. Usable from any thread."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise ResourceError(f"{path}: cannot be used as the event store ({error}). Give another 'store'.") from None
        self._lock = threading.Lock()

    def record(self, events: Sequence[Event]) -> list[Event]:
        """Commit events; returns those that are new. On return they are on disk."""
        new = []
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                numbers = self._numbers(sorted({event.user_id for event in events}))
                for event in events:
                    written = self._connection.execute(
                        "INSERT OR IGNORE INTO events (event_id, user, ad_id, kind, at, price) VALUES (?, ?, ?, ?, ?, ?)",
                        (event.event_id, numbers[event.user_id], event.ad_id, event.kind, event.at, event.price),
                    )
                    if written.rowcount:
                        new.append(event)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        return new

    def user_numbers(self, users: Iterable[str]) -> dict[str, int]:
        """A number for each user, given on first sight and never changed."""
        wanted = sorted(set(users))
        with self._lock:
            marks = ",".join("?" * len(wanted))
            rows = self._connection.execute(f"SELECT user_id, number FROM users WHERE user_id IN ({marks})", wanted)
            found = dict(rows)
            if len(found) < len(wanted):
                self._connection.execute("BEGIN IMMEDIATE")
                found = self._numbers(wanted)
                self._connection.execute("COMMIT")
        return found

    def clicks(self, user_id: str, before: int, limit: int) -> list[tuple[str, int]]:
        """The newest `limit` clicks strictly before a moment, newest last: ad id and moment."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT ad_id, at FROM events WHERE user = (SELECT number FROM users WHERE user_id = ?)"
                " AND kind = 'click' AND at < ? ORDER BY at DESC, number DESC LIMIT ?",
                (user_id, before, limit),
            ).fetchall()
        return [(str(ad), int(at)) for ad, at in reversed(rows)]

    def impressions(self) -> list[tuple[int, str, int]]:
        """(user number, ad id, how many) of all impressions."""
        with self._lock:
            query = "SELECT user, ad_id, count(*) FROM events WHERE kind = 'impression' GROUP BY user, ad_id"
            return [(int(user), str(ad), int(count)) for user, ad, count in self._connection.execute(query)]

    def spent(self) -> dict[str, float]:
        """Sum of the prices of clicks, by ad id."""
        with self._lock:
            query = "SELECT ad_id, sum(price) FROM events WHERE kind = 'click' AND price IS NOT NULL GROUP BY ad_id"
            return {str(ad): float(total) for ad, total in self._connection.execute(query)}

    def put_ad(self, ad_id: str, ad: dict[str, Any] | None) -> None:
        """Remember a new or changed ad, or (None) that it was deleted."""
        text = None if ad is None else json.dumps(ad, ensure_ascii=False)
        with self._lock:
            self._connection.execute("INSERT OR REPLACE INTO ads (ad_id, ad) VALUES (?, ?)", (ad_id, text))

    def ads(self) -> dict[str, dict[str, Any] | None]:
        """Changed ads by id, None where deleted."""
        with self._lock:
            rows = self._connection.execute("SELECT ad_id, ad FROM ads ORDER BY rowid").fetchall()
        return {str(ad_id): None if ad is None else json.loads(ad) for ad_id, ad in rows}

    def count(self) -> int:
        """All events."""
        with self._lock:
            return int(self._connection.execute("SELECT count(*) FROM events").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _numbers(self, users: Sequence[str]) -> dict[str, int]:
        self._connection.executemany("INSERT OR IGNORE INTO users (user_id) VALUES (?)", [(user,) for user in users])
        numbers = {}
        for user in users:
            row = self._connection.execute("SELECT number FROM users WHERE user_id = ?", (user,)).fetchone()
            numbers[user] = int(row[0])
        return numbers
