"""Rows that failed a check: told a line a kind of fault, kept in rejected.parquet, and limited."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from adrec.data.disk.engine import columns_of, name, one_row, parquet, text
from adrec.errors import DataError, is_concealed
from adrec.prepare.output.entities import write_batches
from adrec.prepare.sources import RawTable
from adrec.prepare.sources.malformed import LINE, NOT_UTF8
from adrec.prepare.staging.validate import BITS, Rejected, Staged

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
    found = unread_lines(connection, staged.lines, label)
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
        if check.column in known and check.column not in hidden and not is_concealed():
            cell = f"left(CAST({name(check.column)} AS VARCHAR), 60)"
            query = f"SELECT {cell} AS v FROM {raw.view} WHERE source_order = {first['at']}"
            value = one_row(connection, query)["v"] or None
        shown = raw.reading.own_names.get(check.column, check.column)
        found.append(Rejected(label, shown, check.problem, check.fix, first["n"], first["file"], first["row"], value))
    return found


def unread_lines(
    connection: duckdb.DuckDBPyConnection,
    lines: str,
    label: str,
    otherwise: str = ", or allow for some (validation.max_rejected_fraction)",
) -> list[Rejected]:
    """Every kind of fault of the `lines` that could not be read, with the first; `otherwise` is the cure beside mending it."""
    if not lines:
        return []
    kinds = connection.execute(
        f"SELECT reason, count(*), arg_min(source_file, source_order), arg_min(source_row, source_order), "
        f"arg_min(line, source_order) FROM {lines} GROUP BY reason ORDER BY min(source_order)"
    ).fetchall()
    fix = f"Mend that line{otherwise}."
    fixes = {NOT_UTF8: f"Set `encoding` in the config (gbk, utf-16, latin-1, ...){otherwise}."}
    return [
        Rejected(label, LINE, reason, fixes.get(reason, fix), rows, file, row, None, line)
        for reason, rows, file, row, line in kinds
    ]


def refuse_too_many(faults: Sequence[Rejected], rows: int, bad_rows: int, limit: float) -> None:
    """Raise DataError listing every fault where more than `limit` (a fraction) of the rows have one."""
    if bad_rows > limit * rows:
        if limit == 0 and all(fault.line is not None for fault in faults):  # these name the limit already
            raise DataError("\n".join(map(str, faults)))
        share = f"{bad_rows:,} of {rows:,} rows are rejected, {bad_rows / rows:.3%}; allowed are {limit:.3%}"
        raise DataError("\n".join([*map(str, faults), f"{share} (validation.max_rejected_fraction)."]))


def write_rejected(
    connection: duckdb.DuckDBPyConnection, staged: Sequence[tuple[str, Staged]], path: Path, earlier: Path | None = None
) -> int:
    """rejected.parquet: a line a fault, in source order: table, source file and row, column, reason. Returns the lines.

    `earlier` is the file of the run that this one appends to: its impressions stand before the new ones.
    """
    parts = [
        f'SELECT {text(label)} AS "table", source_file, source_row, {text(check.column)} AS "column", '
        f"{text(check.problem)} AS reason, source_order FROM {table.table} WHERE {_bit(number)}"
        for label, table in staged
        if table.bad_rows
        for number, check in enumerate(table.checks)
    ]
    parts += [
        f'SELECT {text(label)} AS "table", source_file, source_row, {text(LINE)} AS "column", reason, source_order '
        f"FROM {table.lines}"
        for label, table in staged
        if table.lines
    ]
    if earlier is not None and earlier.exists():
        old = f"(SELECT *, file_row_number FROM {parquet(earlier)})"
        parts.append(
            f"SELECT * EXCLUDE (file_row_number), file_row_number - {1 << 62} FROM {old} WHERE \"table\" = 'impressions'"
        )
    if not parts:
        return 0
    query = f'SELECT * EXCLUDE (source_order) FROM ({" UNION ALL ".join(parts)}) ORDER BY "table", source_order, "column"'
    return write_batches(path, (batch.cast(_SCHEMA) for batch in connection.sql(query).to_arrow_reader(65_536)))


def as_dict(faults: Sequence[Rejected], earlier: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """For the manifest: no values, since they may be personal. `earlier`: what an output that is appended to says."""
    counts = {(old["table"], old["column"], old["reason"]): old["rows"] for old in earlier if old["table"] == "impressions"}
    for fault in faults:
        key = (fault.table, fault.column, fault.problem)
        counts[key] = counts.get(key, 0) + fault.rows
    return [{"table": key[0], "column": key[1], "reason": key[2], "rows": rows} for key, rows in sorted(counts.items())]


def _bit(number: int) -> str:
    return f"(faults_{number // BITS} & {1 << (number % BITS)}) <> 0"
