"""Lines of text files that are no rows of their table (too many or too few cells, a broken quote, no UTF-8): set aside.

A sound file is read strictly and pays nothing. Where that fails, DuckDB's reader tells the lines that it had to leave out, and
the view over the file is made again without them; nothing is copied, so that no raw id reaches the disk.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import PythonUDFType

from adrec.data.engine import fetch, name, one_row, readable_faults, text

ROWS_A_FILE = 1 << 40
"""Rows of file n are ordered by n * 2^40 + their number."""
LINE = "(line)"
"""Stands for a column's name where the whole line is at fault."""
_REASONS = {
    "TOO MANY COLUMNS": "has too many cells",
    "MISSING COLUMNS": "has too few cells",
    "INVALID ENCODING": "is not UTF-8 text",
    "LINE SIZE OVER MAXIMUM": "is too long",
}
_OTHERWISE = "has a broken quote"


def create_text_view(
    connection: duckdb.DuckDBPyConnection,
    view: str,
    files: Sequence[tuple[Path, str, int, str]],
    *,
    columns: Sequence[str],
    header_lines: int,
) -> None:
    """`view` over (file, its name in messages, its number in the table, SQL that reads it), with source_* columns."""
    connection.execute(
        "CREATE TEMP TABLE IF NOT EXISTS text_files (view VARCHAR, file VARCHAR, name VARCHAR, number BIGINT, reader VARCHAR, "
        "columns VARCHAR[], header_lines BIGINT)"
    )
    connection.execute(
        "CREATE TEMP TABLE IF NOT EXISTS malformed_lines (file VARCHAR, source_file VARCHAR, source_row BIGINT, "
        "source_order BIGINT, line BIGINT, reason VARCHAR)"
    )
    connection.execute("DELETE FROM text_files WHERE view = ?", [view])
    for file, called, number, reader in files:
        connection.execute(
            "INSERT INTO text_files VALUES (?, ?, ?, ?, ?, ?, ?)",
            [view, str(file), called, number, reader, list(columns), header_lines],
        )
    _create(connection, view, {})


def numbered(read: str, called: str, number: int, row: str = "adrec_row") -> str:
    """SQL of what `read` gives (the FROM clause of one file), with source_file, source_row and source_order."""
    return (
        f"SELECT * EXCLUDE (adrec_row), {text(called)} AS source_file, {row} AS source_row, {number * ROWS_A_FILE} + {row} "
        f"AS source_order FROM (SELECT *, row_number() OVER () AS adrec_row FROM {read})"
    )


def set_lines_aside(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> bool:
    """Make the views over `files` again without the lines that cannot be read. False where there are none.

    Raises DataError for a file that cannot be read for another reason.
    """
    if not _known(connection):
        return False
    listed = ", ".join(text(str(file)) for file in files)
    found = connection.execute(f"SELECT DISTINCT view FROM text_files WHERE file IN ({listed}) ORDER BY view").fetchall()
    mended: dict[int, str] = {}
    for (view,) in found:
        parts = connection.execute(
            "SELECT rowid, file, name, number, reader, columns, header_lines FROM text_files WHERE view = ?", [view]
        ).fetchall()
        for part in parts:
            with readable_faults(part[1]):
                try:
                    connection.execute(f"SELECT count(COLUMNS(*)) FROM {part[4]}").fetchall()
                except duckdb.InvalidInputException:
                    mended[part[0]] = _without_bad_lines(connection, *part)
        _create(connection, view, mended)
    return bool(mended)


def lines_of(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> str:
    """SQL of the lines of `files` that were set aside; empty where there are none."""
    if not _known(connection):
        return ""
    query = f"SELECT * FROM malformed_lines WHERE file IN ({', '.join(text(str(file)) for file in files)})"
    return f"({query})" if one_row(connection, f"SELECT count(*) AS n FROM ({query})")["n"] else ""


def _known(connection: duckdb.DuckDBPyConnection) -> bool:
    return bool(connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'malformed_lines'").fetchall())


def _create(connection: duckdb.DuckDBPyConnection, view: str, mended: dict[int, str]) -> None:
    parts = connection.execute("SELECT rowid, name, number, reader FROM text_files WHERE view = ?", [view]).fetchall()
    # A file at a time: its rows are counted from 1, and files are read side by side.
    selected = [mended.get(rowid) or numbered(reader, called, number) for rowid, called, number, reader in parts]
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {' UNION ALL BY NAME '.join(selected)}")


def _without_bad_lines(
    connection: duckdb.DuckDBPyConnection,
    rowid: int,
    file: str,
    called: str,
    number: int,
    reader: str,
    columns: Sequence[str],
    header_lines: int,
) -> str:
    """Note the bad lines of one file. Returns SQL of its good rows, each with its own number in the file."""
    kept = (
        f"{reader[:-1]}, store_rejects = true, rejects_limit = 0, rejects_table = 'bad_{rowid}', rejects_scan = 'scan_{rowid}')"
    )
    # Every cell is looked at in every query: a reader that may skip a column misses what is wrong in it.
    whole = f" WHERE concat({', '.join(map(name, columns))}) IS NOT NULL"
    connection.execute(f"SELECT count(*) FROM {kept}{whole}").fetchall()
    bad = fetch(
        connection,
        "SELECT CAST(line AS BIGINT) AS line, arg_min(CAST(error_type AS VARCHAR), column_idx) AS kind "
        f"FROM bad_{rowid} GROUP BY ALL ORDER BY 1",
    )
    cases = " ".join(f"WHEN {text(kind)} THEN {text(reason)}" for kind, reason in _REASONS.items())
    connection.register("bad_lines", bad)
    connection.execute(
        f"INSERT INTO malformed_lines SELECT {text(file)}, {text(called)}, line - {header_lines}, "
        f"{number * ROWS_A_FILE} + line - {header_lines}, line, CASE kind {cases} ELSE {text(_OTHERWISE)} END FROM bad_lines"
    )
    connection.unregister("bad_lines")
    before = bad["line"].to_numpy() - header_lines - 1 - np.arange(bad.num_rows)  # good rows before each bad line

    def lost(rows: pa.Array) -> pa.Array:
        return pa.array(np.searchsorted(before, rows.to_numpy(zero_copy_only=False)))

    connection.create_function(f"lost_before_{rowid}", lost, ["BIGINT"], "BIGINT", type=PythonUDFType.ARROW)
    return numbered(kept + whole, called, number, f"adrec_row + lost_before_{rowid}(adrec_row)")
