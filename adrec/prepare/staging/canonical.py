"""A user's own rows in an Arrow table -> the canonical types, by the same SQL that preprocess reads files with.

So a cell means the same in a log, in a frame that is scored, and in a request to the server. Costs a pass of DuckDB over the
columns that have a role; the others are handed on as they are.
"""

import threading
from collections.abc import Collection, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from adrec.data.disk.engine import fetch, readable_faults
from adrec.errors import DataError, is_concealed
from adrec.prepare.sources.base import RawTable, Reading
from adrec.prepare.staging.convert import Role
from adrec.prepare.staging.roles import Roles
from adrec.prepare.staging.validate import BITS, Check, Rejected, masks, plan_columns, refuse_missing
from adrec.schema import TableSpec

_LOCAL = threading.local()


def canonical_rows(
    table: pa.Table,
    spec: TableSpec,
    *,
    where: str,
    first_row: int = 0,
    numeric: Collection[str] = (),
    categories: Collection[str] = (),
    reading: Reading | None = None,
) -> pa.Table:
    """`table` with the columns of `spec` in their contract types, those of `numeric` as float64, those of `categories` as text.

    Rows and other columns stay as they are. `where` and `first_row` (the file's rows before the table) are for messages.
    Raises DataError naming column and row of the first cell of each kind that cannot be read so, and of a missing required one.
    """
    roles: dict[str, Role] = {**dict.fromkeys(categories, "category"), **dict.fromkeys(numeric, "number")}
    wanted = [column for column in table.column_names if column in spec or column in roles]
    rows = table.select(wanted)
    order = pa.array(np.arange(table.num_rows))
    for column in ("source_row", "source_order"):
        rows = rows.append_column(column, order)
    connection = _engine()
    connection.register("adrec_rows", rows.append_column("source_file", pa.nulls(table.num_rows, pa.string())))
    try:
        stored = {row[0]: _plain_type(row[1]) for row in connection.execute("DESCRIBE adrec_rows").fetchall()}
        raw = RawTable("adrec_rows", (Path(where),), reading or Reading())
        refuse_missing(raw, spec, stored, ())
        plan = plan_columns(raw, spec, stored, wanted, Roles(roles), nan_is_missing=True)
        bits = [f"{mask} AS faults_{number}" for number, mask in enumerate(masks([check.condition for check in plan.checks]))]
        query = f"SELECT {', '.join([*plan.outer, *bits])} FROM ({plan.inner}) typed ORDER BY source_order"
        with readable_faults(where):
            faults = fetch(connection, query)
    finally:
        connection.unregister("adrec_rows")
    _refuse(table, faults, plan.checks, where, first_row)
    made: dict[str, pa.ChunkedArray] = {}
    for column in wanted:
        kind = spec[column].type if column in spec else faults[column].type
        made[column] = faults[column].cast(pa.timestamp("us", tz="UTC") if pa.types.is_timestamp(kind) else kind)
    return pa.table({column: made.get(column, table[column]) for column in table.column_names})


def _engine() -> duckdb.DuckDBPyConnection:
    """This thread's small engine: opening one costs more than a request."""
    connection: duckdb.DuckDBPyConnection | None = getattr(_LOCAL, "connection", None)
    if connection is None:
        connection = duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False})
        connection.execute("SET TimeZone = 'UTC'")
        _LOCAL.connection = connection
    return connection


def _plain_type(stored: str) -> str:
    """A column without any value has no type of its own."""
    return "VARCHAR" if stored.strip('"') == "NULL" else stored


def _refuse(table: pa.Table, found: pa.Table, checks: Sequence[Check], where: str, first_row: int) -> None:
    lines = []
    words = [found[column].to_numpy() for column in found.column_names if column.startswith("faults_")]
    for number, check in enumerate(checks):
        bad = np.flatnonzero(words[number // BITS] & (1 << number % BITS))
        if len(bad) == 0:
            continue
        row = int(bad[0])
        value = table[check.column][row].as_py() if check.column in table.column_names else None
        shown = str(value)[:60] if value is not None and not is_concealed() else None
        lines.append(str(Rejected("", check.column, check.problem, check.fix, len(bad), where, first_row + row + 1, shown)))
    if lines:
        raise DataError("\n".join(lines))
