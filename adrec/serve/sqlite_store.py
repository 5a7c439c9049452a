"""The store in one SQLite file with a write-ahead log.

`synchronous = FULL` syncs every commit: an acknowledged event survives kill -9, and the machine's failure. Readers have a
connection of their own and do not wait for that.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adrec.serve.store import Event, Numbered, StoreError, Totals

_SCHEMA = """
CREATE TABLE IF NOT EXISTS users (number INTEGER PRIMARY KEY, user_id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, event_id TEXT UNIQUE, user INTEGER NOT NULL, ad_id TEXT NOT NULL, kind TEXT NOT NULL,
    at INTEGER NOT NULL, price REAL, request_id TEXT, position INTEGER, score REAL, propensity REAL, arm TEXT,
    scenario TEXT, context TEXT
);
DROP INDEX IF EXISTS clicks_of_user;
CREATE TABLE IF NOT EXISTS ads (ad_id TEXT PRIMARY KEY, ad TEXT);
"""
_LATER = {"request_id": "TEXT", "position": "INTEGER", "score": "REAL", "propensity": "REAL", "arm": "TEXT",
          "scenario": "TEXT", "context": "TEXT"}  # fmt: skip
_INSERT = (
    "INSERT OR IGNORE INTO events (user, ad_id, kind, at, price, event_id, request_id, position, score, propensity, arm,"
    " scenario, context)"
    " VALUES ((SELECT number FROM users WHERE user_id = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_VARIABLES = 500  # SQLite's oldest limit on `?` in a statement is 999


class SqliteStore:
    """SQLite writes one transaction at a time: one connection and one lock to write, one of each to read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        with self._faults():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connect()
            self._writer.executescript(_SCHEMA)
            known = {row[1] for row in self._writer.execute("PRAGMA table_info(events)")}
            for name in _LATER.keys() - known:  # a file of an earlier version
                self._writer.execute(f"ALTER TABLE events ADD COLUMN {name} {_LATER[name]}")
            self._reader = self._connect()

    def record(self, events: Sequence[Event]) -> int:
        """Commit events; returns how many were new. On return they are on disk."""
        with self._faults(), self._write_lock, self._transaction(self._writer, "IMMEDIATE"):
            users = sorted({(event.user_id,) for event in events})
            self._writer.executemany("INSERT OR IGNORE INTO users (user_id) VALUES (?)", users)
            before = self._writer.total_changes
            self._writer.executemany(_INSERT, events)
            return self._writer.total_changes - before

    def numbers(self, users: Iterable[str]) -> dict[str, int]:
        """The numbers of those users that have events."""
        wanted = list(set(users))
        found: dict[str, int] = {}
        with self._faults(), self._read_lock:
            for start in range(0, len(wanted), _VARIABLES):
                some = wanted[start : start + _VARIABLES]
                marks = ",".join("?" * len(some))
                found |= dict(self._reader.execute(f"SELECT user_id, number FROM users WHERE user_id IN ({marks})", some))
        return found

    def totals(self) -> Totals:
        """Everything so far, summed, as one transaction sees it."""
        with self._faults(), self._read_lock, self._transaction(self._reader, ""):
            last = self._reader.execute("SELECT coalesce(max(number), 0) FROM events").fetchone()[0]
            shown = "SELECT user, ad_id, count(*) FROM events WHERE kind = 'impression' GROUP BY user, ad_id"
            paid = "SELECT ad_id, sum(price) FROM events WHERE kind = 'click' AND price IS NOT NULL GROUP BY ad_id"
            return Totals(self._reader.execute(shown).fetchall(), dict(self._reader.execute(paid)), int(last))

    def after(self, number: int, limit: int) -> list[Numbered]:
        """The first `limit` events behind a number, in order."""
        query = (
            "SELECT events.number, user, user_id, ad_id, kind, at, price, event_id, request_id, position, score, propensity,"
            " arm, scenario, context FROM events JOIN users ON users.number = events.user"
            " WHERE events.number > ? ORDER BY events.number LIMIT ?"
        )
        with self._faults(), self._read_lock:
            return [Numbered(place, user, Event(*rest)) for place, user, *rest in self._reader.execute(query, (number, limit))]

    def put_ad(self, ad_id: str, ad: dict[str, Any] | None) -> None:
        """Remember a new or changed ad, or (None) that it was deleted."""
        text = None if ad is None else json.dumps(ad, ensure_ascii=False)
        query = "INSERT INTO ads (ad_id, ad) VALUES (?, ?) ON CONFLICT (ad_id) DO UPDATE SET ad = excluded.ad"
        with self._faults(), self._write_lock:
            self._writer.execute(query, (ad_id, text))

    def ads(self) -> dict[str, dict[str, Any] | None]:
        """Changed ads by id, None where deleted."""
        with self._faults(), self._read_lock:
            rows = self._reader.execute("SELECT ad_id, ad FROM ads ORDER BY rowid").fetchall()
        return {ad_id: None if ad is None else json.loads(ad) for ad_id, ad in rows}

    def close(self) -> None:
        """Close the file."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection, kind: str) -> Iterator[None]:
        connection.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: cannot be used as the event store ({error}). Give another 'store'.") from None
