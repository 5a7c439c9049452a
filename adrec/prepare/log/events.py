"""Typed impressions -> `users`, `requests` and `events`, in the one order everything else relies on.

Order: requests by their first moment (ties in source order), inside a request by shown_at, then source order.
`events.rowid` is the row number over the whole prepared folder. All of it spills to disk when it must.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

import duckdb

from adrec.data.disk.engine import columns_of, moment_sql, name, one_row, text
from adrec.data.shape import LogShape
from adrec.errors import DataError
from adrec.prepare.log.versions import build_versions
from adrec.schema import KNOWN_FROM, NOBODY, WEIGHT, TableSpec

SOURCE_COLUMNS = ("source_file", "source_row", "source_order")


def good(connection: duckdb.DuckDBPyConnection, table: str) -> str:
    """SQL condition that holds for the rows of a staged table that passed every check."""
    masks = [column for column in columns_of(connection, table) if column.startswith("faults_")]
    return " AND ".join(f"{mask} = 0" for mask in masks)


def plain_columns(connection: duckdb.DuckDBPyConnection, table: str) -> list[str]:
    """Columns of a staged table that are data, not bookkeeping."""
    return [
        column
        for column in columns_of(connection, table)
        if not column.startswith("faults_") and column not in SOURCE_COLUMNS and column not in {"ad_index"}
    ]


def build_table(connection: duckdb.DuckDBPyConnection, staged: str, spec: TableSpec) -> None:
    """Table `spec.name` of the good rows in source order, `spec.index` counted from 0. Duplicate keys are a fault.

    Where rows say since when they hold (`known_from`) a key may have several: see `build_versions`.
    """
    key, index, target = spec.key, spec.index, spec.name
    columns = ", ".join(name(column) for column in plain_columns(connection, staged))
    if key is not None and KNOWN_FROM in columns_of(connection, staged):
        build_versions(connection, staged, spec, good(connection, staged), columns)
        return
    number = f"CAST(row_number() OVER (ORDER BY source_order) - 1 AS INTEGER) AS {index}"
    if any(kind.endswith("]") for kind in columns_of(connection, staged).values()):
        # Vectors are not sorted: they are wide, and each is written at its place later on.
        connection.execute(
            f"CREATE OR REPLACE TABLE {target} AS SELECT {index}, {columns} FROM {staged} JOIN "
            f"(SELECT source_order, {number} FROM {staged} WHERE {good(connection, staged)}) USING (source_order)"
        )
    else:
        connection.execute(
            f"CREATE OR REPLACE TABLE {target} AS SELECT {number}, {columns} FROM {staged} "
            f"WHERE {good(connection, staged)} ORDER BY source_order"
        )
    if key is None:
        return
    twice = connection.execute(
        f"SELECT {key}, count(*), min(source_row), max(source_row), min(source_file), max(source_file) FROM {staged} "
        f"WHERE {good(connection, staged)} GROUP BY 1 HAVING count(*) > 1 ORDER BY 3 LIMIT 5"
    ).fetchall()
    if twice:
        raise DataError(
            "\n".join(
                f"{first}: column '{key}', row {row:,}: {value!r} occurs again in row {again:,} of {last} "
                f"({count:,} times in all). Keep one row an {key.removesuffix('_id')}, or say in a column '{KNOWN_FROM}' since "
                "when each row holds."
                for value, count, row, again, first, last in twice
            )
        )


def number_keys(connection: duckdb.DuckDBPyConnection, staged: str, spec: TableSpec, *, order: str) -> None:
    """Table `spec.name` of the distinct keys of the impressions, numbered by their first appearance in `order`."""
    connection.execute(
        f"CREATE OR REPLACE TABLE {spec.name} AS "
        f"SELECT CAST(row_number() OVER (ORDER BY first) - 1 AS INTEGER) AS {spec.index}, {spec.key} "
        f"FROM (SELECT {spec.key}, min({order}) AS first FROM {staged} "
        f"WHERE {good(connection, staged)} GROUP BY 1) ORDER BY first"
    )


def latest_values(
    connection: duckdb.DuckDBPyConnection, staged: str, spec: TableSpec, columns: Sequence[str], cut: datetime | None
) -> None:
    """Give the keys of table `spec.name` their `columns`: the latest known value before `cut`, else the latest of all.

    A value that appears only after the cut would be news to the training rows that read it.
    """
    if not columns:
        return
    before = f"shown_at < {moment_sql(cut)}, " if cut is not None else ""
    latest = ", ".join(f"arg_max({name(column)}, ({before}shown_at, source_order)) AS {name(column)}" for column in columns)
    connection.execute(
        f"CREATE OR REPLACE TABLE {spec.name} AS SELECT k.*, v.* EXCLUDE ({spec.key}) FROM {spec.name} k JOIN ("
        f"SELECT {spec.key}, {latest} FROM {staged} WHERE {good(connection, staged)} GROUP BY 1) v "
        f"USING ({spec.key}) ORDER BY k.{spec.index}"
    )


class Added(NamedTuple):
    """Rows that were put behind a table."""

    rows: int
    named: int
    """but for that of nobody"""


def add_unlisted_users(connection: duckdb.DuckDBPyConnection, staged: str) -> Added:
    """Users of the impressions that the users table lacks go behind it, by first appearance."""
    before, known = _count_users(connection)
    connection.execute(
        f"INSERT INTO users BY NAME SELECT CAST({before} + row_number() OVER (ORDER BY first) - 1 AS INTEGER) AS user_index, "
        f"user_id FROM (SELECT user_id, min((shown_at, source_order)) AS first FROM {staged} "
        f"WHERE {good(connection, staged)} AND user_id NOT IN (SELECT user_id FROM users) GROUP BY 1) ORDER BY first"
    )
    rows, named = _count_users(connection)
    return Added(rows - before, named - known)


def add_earlier_users(connection: duckdb.DuckDBPyConnection, earlier: str) -> int:
    """Users of an earlier output's table (SQL, with `file_row_number`) that the users table lacks go behind it, in their order.
    Returns how many have a name.
    """
    before, known = _count_users(connection)
    connection.execute(
        f"INSERT INTO users BY NAME SELECT CAST({before} + row_number() OVER (ORDER BY file_row_number) - 1 AS INTEGER) "
        f"AS user_index, user_id FROM {earlier} WHERE user_id NOT IN (SELECT user_id FROM users) ORDER BY file_row_number"
    )
    return _count_users(connection)[1] - known


def _count_users(connection: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """All rows of the users, and those that have a name."""
    counts = one_row(connection, f"SELECT count(*) AS n, count(*) FILTER (user_id <> {text(NOBODY)}) AS named FROM users")
    return int(counts["n"]), int(counts["named"])


def _keyed(connection: duckdb.DuckDBPyConnection, staged: str, shape: LogShape) -> Literal["text", "visit", "row"]:
    """What names the requests of the staged rows: a text, or a user and a moment, or each row stands alone.

    A row without a request id belongs with those of its user and moment; where either is unknown it is a request by itself.
    """
    if "request_id" in columns_of(connection, staged):
        return "text"
    if not (shape.user and shape.time):
        return "row"
    some = one_row(connection, f"SELECT count(*) AS n FROM {staged} WHERE user_id = {text(NOBODY)}")["n"]
    return "text" if some else "visit"


def _key(connection: duckdb.DuckDBPyConnection, staged: str, shape: LogShape, row: str = "") -> str:
    """SQL of the text that names a row's request; `row` is what stands before its columns. No user is called nothing, so
    that a row's number behind @ is nobody's."""
    alone = f"'@' || {row}source_order"
    made = alone
    if shape.user and shape.time:
        visit = f"{row}user_id || '@' || epoch_us({row}shown_at)"
        made = f"CASE WHEN {row}user_id = {text(NOBODY)} THEN {alone} ELSE {visit} END"
    return f"coalesce({row}request_id, {made})" if "request_id" in columns_of(connection, staged) else made


def build_requests(connection: duckdb.DuckDBPyConnection, staged: str, shape: LogShape) -> None:
    """Table `requests`: key, started, first row, number of rows; its rowid is the request's number in time order."""
    keyed = _keyed(connection, staged, shape)
    if keyed == "row":
        connection.execute(
            "CREATE OR REPLACE TABLE requests AS SELECT user_id, shown_at, shown_at AS started, source_order AS first, "
            f"count(*) AS rows FROM {staged} WHERE {good(connection, staged)} GROUP BY ALL ORDER BY started, first"
        )
        return
    has_ids = keyed == "text"
    grouped = "key" if has_ids else "user_id, shown_at"
    selected = (
        f"{_key(connection, staged, shape)} AS key, min(user_id) AS user_id, max(user_id) AS other_user, "
        "min(shown_at) AS started"
        if has_ids
        else "user_id, shown_at, user_id AS other_user, shown_at AS started"
    )
    connection.execute(
        f"CREATE OR REPLACE TABLE requests AS SELECT * FROM (SELECT {selected}, "
        f"min(source_order) AS first, count(*) AS rows FROM {staged} WHERE {good(connection, staged)} GROUP BY {grouped}) "
        f"ORDER BY started, first"
    )
    if not has_ids:
        return
    shared = one_row(connection, "SELECT min(key) AS key, count(*) AS n FROM requests WHERE user_id <> other_user")
    if shared["n"]:
        raise DataError(
            f"impressions: column 'request_id': {shared['key']!r} belongs to more than one user ({shared['n']:,} such "
            "requests). Leave request_id unmapped, or make it unique."
        )


def build_events(
    connection: duckdb.DuckDBPyConnection,
    staged: str,
    split: str,
    carried: Sequence[str],
    joins: str = "",
    renamed: Mapping[str, str] | None = None,
    *,
    shape: LogShape,
) -> None:
    """Table `events` in final order with request, user_index, ad_index, started, part (0 train, 1 valid, 2 test).

    `split` is SQL of the part over the aliases s (staged), r (requests, with `request` and `user_index`) and what `joins` adds.
    `renamed`: further columns by their new name. Requests find their users first: two joins over millions of ids and a sort in
    one statement would share the memory by three.
    """
    connection.execute(
        "CREATE OR REPLACE TABLE placed_requests AS SELECT r.*, CAST(r.rowid AS INTEGER) AS request, u.user_index "
        "FROM requests r JOIN users u ON u.user_id = r.user_id"
    )
    on = {
        "text": f"r.key = {_key(connection, staged, shape, 's.')}",
        "visit": "r.user_id = s.user_id AND r.shown_at = s.shown_at",
        "row": "r.first = s.source_order",
    }[_keyed(connection, staged, shape)]
    columns = "".join(f", s.{name(column)}" for column in carried)
    columns += "".join(f", s.{name(column)} AS {name(new)}" for new, column in (renamed or {}).items())
    # Outcomes of one row of counts share its source order.
    ties = "".join(f", s.{label} DESC" for label in ("click", "conversion") if WEIGHT in carried and label in carried)
    passed = " AND ".join(f"s.{condition}" for condition in good(connection, staged).split(" AND "))
    connection.execute(
        f"CREATE OR REPLACE TABLE events AS SELECT r.request, r.user_index, s.ad_index, r.started, s.shown_at{columns}, "
        f"CAST({split} AS UTINYINT) AS part FROM {staged} s JOIN placed_requests r ON {on} {joins} "
        f"WHERE {passed} ORDER BY request, s.shown_at, s.source_order{ties}"
    )
    connection.execute("DROP TABLE placed_requests")
