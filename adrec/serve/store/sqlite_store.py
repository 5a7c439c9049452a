"""The store in one SQLite file with a write-ahead log.

`synchronous = FULL` syncs every commit: an acknowledged event survives kill -9, and the machine's failure. Readers have a
connection of their own and do not wait for that. Events are read as JSON lists, one a column, which SQLite makes: about
400,000 a second, three times what rows take.
"""

import json
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from adrec.serve.store.contract import (
    COLUMNS,
    NUMBER,
    Erased,
    Event,
    Recorded,
    Slice,
    StoreError,
    Totals,
    columns_of_rows,
    digest_of,
    pieces_of,
    slice_of,
)

VERSION = 4
"""Of the file's tables, in `PRAGMA user_version`; 0 are the files before versions were written."""
_TABLES = """
CREATE TABLE IF NOT EXISTS users (number INTEGER PRIMARY KEY, user_id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, event_id TEXT UNIQUE, user INTEGER NOT NULL, ad_id TEXT NOT NULL, kind TEXT NOT NULL,
    at INTEGER NOT NULL, price REAL, request_id TEXT, position INTEGER, score REAL, propensity REAL, arm TEXT,
    scenario TEXT, context TEXT, value REAL, score_conversion REAL
);
CREATE TABLE IF NOT EXISTS ads (ad_id TEXT PRIMARY KEY, ad TEXT, changed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS kept_impressions (
    user INTEGER NOT NULL, ad_id TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (user, ad_id)
);
CREATE TABLE IF NOT EXISTS kept_spent (ad_id TEXT PRIMARY KEY, micros INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT OR IGNORE INTO counters VALUES ('last_event', 0), ('last_change', 0), ('probe', 0), ('epoch', 0);
CREATE TABLE IF NOT EXISTS snapshots (
    name TEXT PRIMARY KEY, definition TEXT NOT NULL, epoch INTEGER NOT NULL, digest TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS snapshot_pieces (
    snapshot TEXT NOT NULL, place INTEGER NOT NULL, content BLOB NOT NULL, PRIMARY KEY (snapshot, place)
);
DROP INDEX IF EXISTS clicks_of_user;
"""
_LATER = {
    "events": {"request_id": "TEXT", "position": "INTEGER", "score": "REAL", "propensity": "REAL", "arm": "TEXT",
               "scenario": "TEXT", "context": "TEXT", "value": "REAL", "score_conversion": "REAL"},
    "ads": {"changed": "INTEGER NOT NULL DEFAULT 0"},
}  # fmt: skip
_INSERT = (
    "INSERT INTO events (number, user, ad_id, kind, at, price, event_id, request_id, position, score, propensity, arm,"
    " scenario, context, value, score_conversion)"
    " VALUES (?, (SELECT number FROM users WHERE user_id = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (event_id) DO NOTHING"
)
_LAST = "SELECT max((SELECT value FROM counters WHERE name = 'last_event'), coalesce((SELECT max(number) FROM events), 0))"
_KEEP_SPENT = (
    "INSERT INTO kept_spent VALUES (?, ?) ON CONFLICT (ad_id) DO UPDATE SET micros = min(micros, 4e18 - excluded.micros)"
    " + excluded.micros"
)
_RENAMED = (
    "CREATE TEMP TABLE renamed AS SELECT number AS was, named(user_id) AS name FROM users WHERE named(user_id) <> user_id"
)
_COUNT_RENAMED = (
    "SELECT count(*) FROM events WHERE user IN (SELECT was FROM renamed) OR named(event_id) <> event_id"
    " OR named(request_id) <> request_id"
)
_MERGED = "(SELECT was FROM renamed JOIN users ON users.user_id = renamed.name)"
"""Users under a name that another has already."""
_RENAME = (
    "UPDATE events SET user = (SELECT users.number FROM renamed JOIN users ON users.user_id = renamed.name"
    f" WHERE renamed.was = events.user) WHERE user IN {_MERGED}",
    "INSERT INTO kept_impressions SELECT users.number, ad_id, count FROM kept_impressions JOIN renamed ON was = user"
    " JOIN users ON users.user_id = renamed.name WHERE true"
    " ON CONFLICT (user, ad_id) DO UPDATE SET count = count + excluded.count",
    f"DELETE FROM kept_impressions WHERE user IN {_MERGED}",
    f"DELETE FROM users WHERE number IN {_MERGED}",
    "UPDATE users SET user_id = (SELECT name FROM renamed WHERE was = number) WHERE number IN (SELECT was FROM renamed)",
    # Of one event under both names the one that was recorded first stays.
    "CREATE TEMP TABLE raw AS SELECT named(event_id) AS name, number FROM events WHERE named(event_id) <> event_id",
    "CREATE INDEX temp.raw_names ON raw (name)",
    "DELETE FROM events WHERE EXISTS (SELECT 1 FROM raw WHERE raw.name = events.event_id AND raw.number < events.number)",
    "UPDATE OR IGNORE events SET event_id = named(event_id) WHERE named(event_id) <> event_id",
    "DELETE FROM events WHERE named(event_id) <> event_id",
    "DROP TABLE raw",
    "UPDATE events SET request_id = named(request_id) WHERE named(request_id) <> request_id",
    "DROP TABLE renamed",
)
_READ = (
    f"SELECT events.number AS {NUMBER}, {', '.join(COLUMNS)} FROM events LEFT JOIN users ON users.number = events.user"
    " WHERE events.number > ? ORDER BY events.number LIMIT ?"
)
# JSON of SQLite keeps 15 digits of a float, and printf writes a number where there is none.
_FLOAT = "'[' || group_concat(CASE WHEN {name} IS NULL THEN 'null' ELSE printf('%!.17g', {name}) END) || ']'"
_CELLS = ", ".join(
    (_FLOAT if kind == pa.float64() else "json_group_array({name})").format(name=name)
    for name, kind in ((NUMBER, pa.int64()), *COLUMNS.items())
)


class SqliteStore:
    """SQLite writes one transaction at a time: one connection and one lock to write, one of each to read."""

    def __init__(self, path: Path, *, timeout_seconds: float = 5.0) -> None:
        self.path, self._timeout = path, timeout_seconds
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        with self._faults():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connect()
            with self._transaction(self._writer, "IMMEDIATE"):
                self._migrate()
            self._reader = self._connect()

    def record(self, events: Sequence[Event]) -> Recorded:
        """Commit events. On return they are on disk."""
        with self._writing() as writer:
            users = sorted({(event.user_id,) for event in events})
            writer.executemany("INSERT OR IGNORE INTO users (user_id) VALUES (?)", users)
            last = int(writer.execute(_LAST).fetchone()[0])
            before = writer.total_changes
            writer.executemany(_INSERT, ((last + place, *event) for place, event in enumerate(events, 1)))
            new = writer.total_changes - before
            return Recorded(new, int(writer.execute(_LAST).fetchone()[0]) if new else last)

    def after(self, number: int, limit: int) -> Slice:
        """The first `limit` events behind a number, in order."""
        with self._faults(), self._read_lock:
            try:
                cells = self._reader.execute(f"SELECT {_CELLS} FROM ({_READ})", (number, limit)).fetchone()
                columns = dict(zip((NUMBER, *COLUMNS), (json.loads(cell or "[]") for cell in cells), strict=True))
            except (sqlite3.OperationalError, ValueError):  # a cell that no JSON holds
                columns = columns_of_rows(self._reader.execute(_READ, (number, limit)).fetchall(), (NUMBER, *COLUMNS))
        return slice_of(columns, max(columns[NUMBER], default=number))

    def kept(self) -> Totals:
        """What the events that were taken away added up to."""
        shown = "SELECT user_id, ad_id, count FROM kept_impressions JOIN users ON users.number = user"
        with self._faults(), self._read_lock, self._transaction(self._reader, ""):
            spent = self._reader.execute("SELECT ad_id, micros FROM kept_spent").fetchall()
            return Totals(self._reader.execute(shown).fetchall(), {ad: int(micros) for ad, micros in spent})

    def keep(self, totals: Totals) -> None:
        """Add to what is kept."""
        with self._writing() as writer:
            writer.executemany(
                "INSERT OR IGNORE INTO users (user_id) VALUES (?)", {(user,) for user, _, _ in totals.impressions}
            )
            writer.executemany(
                "INSERT INTO kept_impressions SELECT number, ?2, ?3 FROM users WHERE user_id = ?1"
                " ON CONFLICT (user, ad_id) DO UPDATE SET count = count + excluded.count",
                totals.impressions,
            )
            writer.executemany(_KEEP_SPENT, totals.spent.items())
            self._begin_epoch(writer)

    def drop_before(self, moment: int) -> int:
        """Take away old events and keep their sums, in one transaction."""
        with self._writing() as writer:
            self._begin_epoch(writer)
            writer.execute(
                "INSERT INTO kept_impressions SELECT user, ad_id, count(*) FROM events WHERE at < ? AND kind = 'impression'"
                " GROUP BY user, ad_id ON CONFLICT (user, ad_id) DO UPDATE SET count = count + excluded.count",
                (moment,),
            )
            paid = writer.execute(
                "SELECT ad_id, CAST(min(sum(price) * 1e6, 4e18) AS INTEGER) FROM events WHERE at < ? AND price > 0"
                " GROUP BY ad_id",
                (moment,),
            ).fetchall()
            writer.executemany(_KEEP_SPENT, paid)
            return int(writer.execute("DELETE FROM events WHERE at < ?", (moment,)).rowcount)

    def erase(self, user_id: str) -> Erased:
        """Take away everything of a user, the id itself too."""
        mine = "user IN (SELECT number FROM users WHERE user_id = ?)"
        with self._writing(overwrites=True) as writer:
            self._begin_epoch(writer)
            read = f"SELECT events.number, {', '.join(COLUMNS)} FROM events LEFT JOIN users ON users.number = user WHERE {mine}"
            rows = writer.execute(read, (user_id,)).fetchall()
            writer.execute(f"DELETE FROM events WHERE {mine}", (user_id,))
            writer.execute(f"DELETE FROM kept_impressions WHERE {mine}", (user_id,))
            writer.execute("DELETE FROM users WHERE user_id = ?", (user_id,))
        self._leave_no_trace()
        return Erased(slice_of(columns_of_rows(rows, (NUMBER, *COLUMNS)), 0).events, 1)

    def rename(self, named: Callable[[str], str]) -> int:
        """Keep users, requests and events under other names, in one transaction."""
        with self._writing(overwrites=True) as writer:
            writer.create_function("named", 1, lambda name: named(name) if isinstance(name, str) else name, deterministic=True)
            self._begin_epoch(writer)
            writer.execute(_RENAMED)
            changed = int(writer.execute(_COUNT_RENAMED).fetchone()[0])
            for statement in _RENAME:
                writer.execute(statement)
        self._leave_no_trace()
        return changed

    def _leave_no_trace(self) -> None:
        """Empty the log beside the file, where rows lie that are no more; what was freed in the file is overwritten already.

        Who reads just then keeps it a little longer: the next erasure, or the server's end, empties it.
        """
        with self._faults(), self._write_lock:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def epoch(self) -> int:
        """How often events have been taken away."""
        with self._faults(), self._read_lock:
            return int(self._reader.execute("SELECT value FROM counters WHERE name = 'epoch'").fetchone()[0])

    def put_snapshot(self, definition: str, epoch: int, content: bytes) -> bool:
        """Keep sums in place of the earlier ones, a piece a transaction; the last one makes them valid."""
        name = secrets.token_hex(8)
        for place, piece in enumerate(pieces_of(content)):
            with self._writing() as writer:
                writer.execute("INSERT INTO snapshot_pieces VALUES (?, ?, ?)", (name, place, piece))
        with self._writing() as writer:
            is_valid = writer.execute("SELECT value FROM counters WHERE name = 'epoch'").fetchone()[0] == epoch
            if is_valid:
                writer.execute("DELETE FROM snapshots")
                writer.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?)", (name, definition, epoch, digest_of(content)))
        self._remove_pieces()
        return bool(is_valid)

    def snapshot(self, definition: str) -> bytes | None:
        """The sums that were kept under a definition in this epoch."""
        query = (
            "SELECT name, digest FROM snapshots WHERE definition = ?"
            " AND epoch = (SELECT value FROM counters WHERE name = 'epoch')"
        )
        pieces = "SELECT content FROM snapshot_pieces WHERE snapshot = ? ORDER BY place"
        with self._faults(), self._read_lock, self._transaction(self._reader, ""):
            found = self._reader.execute(query, (definition,)).fetchone()
            if found is None:
                return None
            content = b"".join(
                bytes(piece) for (piece,) in self._reader.execute(pieces, (found[0],)) if isinstance(piece, bytes)
            )
        return content if digest_of(content) == found[1] else None

    def compact(self) -> None:
        """Write the file anew without what was taken away: nothing of it stays on disk."""
        with self._faults(), self._write_lock:
            self._writer.execute("VACUUM")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def put_ad(self, ad_id: str, ad: dict[str, Any] | None) -> int:
        """Remember a new or changed ad, or (None) that it was deleted."""
        text = None if ad is None else json.dumps(ad, ensure_ascii=False)
        query = (
            "INSERT INTO ads (ad_id, ad, changed) VALUES (?, ?, ?)"
            " ON CONFLICT (ad_id) DO UPDATE SET ad = excluded.ad, changed = excluded.changed"
        )
        with self._writing() as writer:
            writer.execute("UPDATE counters SET value = value + 1 WHERE name = 'last_change'")
            number = int(writer.execute("SELECT value FROM counters WHERE name = 'last_change'").fetchone()[0])
            writer.execute(query, (ad_id, text, number))
        return number

    def ads(self, after: int = 0) -> dict[str, tuple[int, dict[str, Any] | None]]:
        """Ads changed behind a number, None where deleted."""
        query = "SELECT ad_id, changed, ad FROM ads WHERE changed > ? ORDER BY changed"
        with self._faults(), self._read_lock:
            rows = self._reader.execute(query, (after,)).fetchall()
        return {ad_id: (int(changed), ad) for ad_id, changed, text in rows for ad in _ads_of(text)}

    def probe(self) -> None:
        """Try to write: a full disk reads on."""
        with self._writing() as writer:
            writer.execute("UPDATE counters SET value = value + 1 WHERE name = 'probe'")

    def close(self) -> None:
        """Close the file."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    def _begin_epoch(self, writer: sqlite3.Connection) -> None:
        """Events go away: sums so far are over. No number of theirs is given again, or followers would miss the next ones."""
        writer.execute(f"UPDATE counters SET value = ({_LAST}) WHERE name = 'last_event'")
        writer.execute("UPDATE counters SET value = value + 1 WHERE name = 'epoch'")
        writer.execute("DELETE FROM snapshots")
        writer.execute("DELETE FROM snapshot_pieces")

    def _remove_pieces(self) -> None:
        """Those of no snapshot, one a transaction."""
        loose = "SELECT rowid FROM snapshot_pieces WHERE snapshot NOT IN (SELECT name FROM snapshots) LIMIT 1"
        removed = 1
        while removed:
            with self._writing() as writer:
                removed = int(writer.execute(f"DELETE FROM snapshot_pieces WHERE rowid IN ({loose})").rowcount)

    def _migrate(self) -> None:
        """Bring a file of an earlier version to this one; runs inside a transaction."""
        version = int(self._writer.execute("PRAGMA user_version").fetchone()[0])
        if version > VERSION:
            raise StoreError(f"{self.path}: written by a newer adrec (version {version} of the store). Use that one.")
        for statement in _TABLES.split(";"):
            self._writer.execute(statement)
        for table, columns in _LATER.items():
            known = {row[1] for row in self._writer.execute(f"PRAGMA table_info({table})")}
            for name in columns.keys() - known:
                self._writer.execute(f"ALTER TABLE {table} ADD COLUMN {name} {columns[name]}")
        if version < VERSION:
            self._writer.execute("UPDATE ads SET changed = rowid WHERE changed = 0")
            change = "UPDATE counters SET value = (SELECT coalesce(max(changed), 0) FROM ads) WHERE name = 'last_change'"
            self._writer.execute(change)
            self._writer.execute(f"PRAGMA user_version = {VERSION}")
        self._writer.execute("CREATE INDEX IF NOT EXISTS ads_changed ON ads (changed)")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self._timeout, check_same_thread=False, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.text_factory = lambda text: text.decode("utf-8", "replace")  # of a damaged row
        return connection

    @contextmanager
    def _writing(self, *, overwrites: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction of the one writer: what is done in it is there as a whole or not at all.

        overwrites: where something lay that is deleted, zeros lie afterwards.
        """
        with self._faults():
            if not self._write_lock.acquire(timeout=self._timeout):
                raise sqlite3.OperationalError("the disk does not answer")
            try:
                self._writer.execute(f"PRAGMA secure_delete = {'ON' if overwrites else 'OFF'}").fetchall()
                with self._transaction(self._writer, "IMMEDIATE"):
                    yield self._writer
            finally:
                self._write_lock.release()

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection, kind: str) -> Iterator[None]:
        connection.execute(f"BEGIN {kind}")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk ends it by itself
                connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: cannot be used as the event store ({error}). Give another 'store'.") from None


def _ads_of(text: str | None) -> list[dict[str, Any] | None]:
    """The ad, or None where it was deleted; nothing where the row is damaged: it is set aside."""
    try:
        ad = None if text is None else json.loads(text)
    except ValueError:
        return []
    return [ad] if ad is None or isinstance(ad, dict) else []
