"""Rows that failed a check: told a line a kind of fault, kept in rejected.parquet, and limited."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from adrec.errors import DataError
from adrec.prepare.engine import columns_of, name, one_row, text
from adrec.prepare.entities import write_batches
from adrec.prepare.sources import RawTable
from adrec.prepare.validate import BITS, Rejected, Staged

_SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
        ("column", pa.string()),
        ("reason", pa.string()),
    ]
)


def faults_of(
    connection: duckdb.DuckDBPyConnection, raw: RawTable, staged: Staged, label: str, *, hidden: Sequence[str] = ()
) -> list[Rejected]:
    """Every kind of fault in a staged table, with its first row. Values of `hidden` columns are not shown."""
    if not staged.bad_rows:
        return []
    found = []
    known = columns_of(connection, raw.view)
    for number, check in enumerate(staged.checks):
        condition = _bit(number)
        first = one_row(
            connection,
            f"SELECT count(*) AS n, min(source_order) AS at, arg_min(source_row, source_order) AS row, "
            f"arg_min(source_file, source_order) AS file FROM {staged.table} WHERE {condition}",
        )
        if not first["n"]:
            continue
        value = None
        if check.column in known and check.column not in hidden:
            query = f"SELECT left(CAST({name(check.column)} AS VARCHAR), 60) AS v FROM {raw.view} WHERE source_order = {first['at']}"
            value = one_row(connection, query)["v"]
        shown = raw.reading.own_names.get(check.column, check.column)
        row = _row_in_file(connection, raw, staged, first["file"], first["row"])
        found.append(Rejected(label, shown, check.problem, check.fix, first["n"], first["file"], row, value))
    return found


def refuse_too_many(faults: Sequence[Rejected], rows: int, bad_rows: int, limit: float) -> None:
    """Raise DataError listing every fault where more than `limit` (a fraction) of the rows have one."""
    if bad_rows > limit * rows:
        share = f"{bad_rows:,} of {rows:,} rows are rejected, {bad_rows / rows:.3%}; allowed are {limit:.3%} (validation.max_rejected_fraction)."
        raise DataError("\n".join([*map(str, faults), share]))


def write_rejected(connection: duckdb.DuckDBPyConnection, staged: Sequence[tuple[str, Staged]], path: Path) -> int:
    """rejected.parquet: a line a fault, in source order: table, source file and row, column, reason. Returns the lines."""
    parts = [
        f'SELECT {text(label)} AS "table", source_file, source_row, {text(check.column)} AS "column", '
        f"{text(check.problem)} AS reason, source_order FROM {one.table} WHERE {_bit(number)}"
        for label, one in staged
        if one.bad_rows
        for number, check in enumerate(one.checks)
    ]
    if not parts:
        return 0
    query = f'SELECT * EXCLUDE (source_order) FROM ({" UNION ALL ".join(parts)}) ORDER BY "table", source_order, "column"'
    return write_batches(path, (batch.cast(_SCHEMA) for batch in connection.sql(query).to_arrow_reader(65_536)))


def as_dict(faults: Sequence[Rejected]) -> list[dict[str, Any]]:
    """For the manifest: no values, since they may be personal."""
    return [{"table": f.table, "column": f.column, "reason": f.problem, "rows": f.rows} for f in faults]


def _bit(number: int) -> str:
    return f"(faults_{number // BITS} & {1 << (number % BITS)}) <> 0"


def _row_in_file(connection: duckdb.DuckDBPyConnection, raw: RawTable, staged: Staged, file: str, row: int) -> int:
    """Rows of text files are counted over all files of the table: take off those before this file."""
    if len(raw.files) == 1 or file.endswith(".parquet"):
        return row
    start = one_row(connection, f"SELECT min(source_row) AS first FROM {staged.table} WHERE source_file = {text(file)}")[
        "first"
    ]
    return row - int(start) + 1
