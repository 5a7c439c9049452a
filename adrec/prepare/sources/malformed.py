"""Views over text files, and lines of them that are no rows (too many or too few cells, a broken quote, no UTF-8, no JSON).

A sound file is read strictly and pays nothing. Where that fails, DuckDB's reader tells the lines that it had to leave out, and
the view is made again without them; nothing is copied, so that no raw id reaches the disk.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import PythonUDFType

from adrec.data.disk.engine import fetch, name, one_row, readable_faults, text
from adrec.errors import DataError
from adrec.prepare.sources.json_lines import is_broken, object_columns
from adrec.prepare.sources.opening import archive_of
from adrec.prepare.sources.text_files import Piece, odd_quotes

ROWS_A_FILE = 1 << 40
"""Rows of file n are ordered by n * 2^40 + their number."""
LINE = "(line)"
"""Stands for a column's name where the whole line is at fault."""
NOT_UTF8 = "is not UTF-8 text"
_REASONS = {
    "TOO MANY COLUMNS": "has too many cells",
    "MISSING COLUMNS": "has too few cells",
    "INVALID ENCODING": NOT_UTF8,
    "LINE SIZE OVER MAXIMUM": "is too long",
}
_OTHERWISE = "has a broken quote"
_NO_JSON = "is no JSON"


@dataclass
class _TextView:
    """What a view is made of. `first` is the number of its first file in the table."""

    pieces: list[Piece]
    called: list[str]
    first: int
    lost: dict[int, str] = field(default_factory=dict)
    """piece -> the function that counts the lines left out before a row, where some are"""

    def starts(self) -> list[int]:
        """The number of the first file of each piece, among the view's."""
        return [sum(len(piece.files) for piece in self.pieces[:place]) for place in range(len(self.pieces))]


_VIEWS: "weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, dict[str, _TextView]]" = weakref.WeakKeyDictionary()


def create_text_view(
    connection: duckdb.DuckDBPyConnection, view: str, pieces: list[Piece], called: Sequence[str], first: int
) -> None:
    """`view` over the files of `pieces`, with source_* columns. `called` are the files' names in messages."""
    connection.execute(
        "CREATE TEMP TABLE IF NOT EXISTS malformed_lines (file VARCHAR, source_file VARCHAR, source_row BIGINT, "
        "source_order BIGINT, line BIGINT, reason VARCHAR)"
    )
    made = _VIEWS.setdefault(connection, {})[view] = _TextView(pieces, list(called), first)
    _create(connection, view, made)


def refuse_lone_quotes(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> None:
    """Raise DataError where a quote would join lines of one of `files` each of which is a row by itself.

    Only files whose config does not say what quotes mean are looked at, and only lines with an odd number of quotes matter.
    """
    for piece in _pieces_of(connection, files):
        for file, path in zip(piece.files, piece.paths, strict=True):
            line = odd_quotes(path) if piece.unquoted else None
            if line is None or not _joins_rows(connection, piece, path):
                continue
            raise DataError(
                f"{file}: line {line:,}: a lone quote would join this line to the next ones, though each is a row by itself. "
                "Set `quote: ''` where quotes are plain characters, or `quote: '\"'` where cells do hold line breaks."
            )


def _joins_rows(connection: duckdb.DuckDBPyConnection, piece: Piece, path: Path) -> bool:
    """Whether every line of the file is a row if quotes are plain characters, but not if they enclose cells."""
    # Every cell is looked at: a reader that may skip a column misses what is wrong in it.
    query = f"SELECT count(*), count(concat({', '.join(map(name, piece.columns))})) FROM "
    try:
        plain = connection.execute(query + piece.reader(options=piece.unquoted, paths=[path])).fetchall()
    except duckdb.Error:
        return False  # the quoted cells do go over several lines
    try:
        return plain != connection.execute(query + piece.reader(paths=[path])).fetchall()
    except duckdb.Error:
        return True


def set_lines_aside(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> bool:
    """Make the views over `files` again without the lines that cannot be read. False where there are none.

    Raises DataError for a file that cannot be read for another reason.
    """
    mended = False
    for view, made in _VIEWS.get(connection, {}).items():
        if not any(_is_of(piece, files) for piece in made.pieces):
            continue
        for place, start in enumerate(made.starts()):
            if place not in made.lost and _fails(connection, made.pieces[place]):
                _note_bad_lines(connection, view, made, place, start)
                mended = True
        _create(connection, view, made)
    return mended


def lines_of(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> str:
    """SQL of the lines of `files` that were set aside; empty where there are none."""
    read = [file for piece in _pieces_of(connection, files) for file in piece.files]
    if not read:
        return ""
    query = f"SELECT * FROM malformed_lines WHERE file IN ({', '.join(text(str(file)) for file in read)})"
    return f"({query})" if one_row(connection, f"SELECT count(*) AS n FROM ({query})")["n"] else ""


def _pieces_of(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> list[Piece]:
    return [piece for made in _VIEWS.get(connection, {}).values() for piece in made.pieces if _is_of(piece, files)]


def _is_of(piece: Piece, files: Sequence[Path]) -> bool:
    """Whether a piece reads one of `files`, or a file in one that is an archive."""
    wanted = set(files)
    return any(file in wanted or archive_of(file) in wanted for file in piece.files)


def _create(connection: duckdb.DuckDBPyConnection, view: str, made: _TextView) -> None:
    parts = [_rows(made, place, start) for place, start in enumerate(made.starts())]
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {' UNION ALL BY NAME '.join(parts)}")


def _rows(made: _TextView, place: int, start: int) -> str:
    """SQL of the rows of one piece, each with its place in the files."""
    piece, lost = made.pieces[place], made.lost.get(place)
    reader = piece.reader() if lost is None else _tolerant(made, place)
    rows = _numbered(reader, made.called[start : start + len(piece.files)], made.first + start, lost)
    if not piece.keys:
        return rows
    if lost is not None:
        rows = f"SELECT * REPLACE (CASE WHEN NOT {is_broken()} THEN line END AS line) FROM ({rows}) WHERE NOT {is_broken()}"
    return object_columns(rows, piece.keys)


def _numbered(reader: str, called: Sequence[str], first: int, lost: str | None) -> str:
    """SQL of what `reader` gives with source_file, source_row (from 1 in each file) and source_order."""
    if len(called) == 1:
        counted = f"SELECT *, row_number() OVER () AS adrec_row, 0 AS adrec_file FROM {reader}"
    else:
        # A running count over all files, less what it was at the start of each: both stream.
        every = f"SELECT *, row_number() OVER () AS adrec_place, CAST(file_index AS BIGINT) AS adrec_file FROM {reader}"
        starts = "coalesce(adrec_file <> lag(adrec_file) OVER (), true)"
        marked = f"SELECT *, CASE WHEN {starts} THEN adrec_place END AS adrec_start FROM ({every})"
        since = "max(adrec_start) OVER (ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)"
        counted = f"SELECT * EXCLUDE (adrec_place, adrec_start), adrec_place - {since} + 1 AS adrec_row FROM ({marked})"
    row = "adrec_row" if lost is None else f"adrec_row + {lost}(adrec_file * {ROWS_A_FILE} + adrec_row)"
    file = f"[{', '.join(map(text, called))}][adrec_file + 1]" if len(called) > 1 else text(called[0])
    return (
        f"SELECT * EXCLUDE (adrec_row, adrec_file), {file} AS source_file, {row} AS source_row, "
        f"({first} + adrec_file) * {ROWS_A_FILE} + {row} AS source_order FROM ({counted})"
    )


def _fails(connection: duckdb.DuckDBPyConnection, piece: Piece) -> bool:
    """Whether a line of these files cannot be read. Raises DataError naming the file that cannot be read at all."""
    condition = f" WHERE {is_broken()}" if piece.keys else ""
    try:
        found = connection.execute(f"SELECT count(COLUMNS(*)) FROM {piece.reader()}{condition}").fetchall()
        return bool(piece.keys and found[0][0])
    except duckdb.InvalidInputException:
        return True
    except duckdb.Error:
        for file, path in zip(piece.files, piece.paths, strict=True):
            with readable_faults(str(file)):
                try:
                    connection.execute(f"SELECT count(COLUMNS(*)) FROM {piece.reader(paths=[path])}").fetchall()
                except duckdb.InvalidInputException:
                    return True
        raise


def _tolerant(made: _TextView, place: int) -> str:
    """The FROM clause of a reader that leaves out what it cannot read."""
    # Every cell is looked at in every query: a reader that may skip a column misses what is wrong in it.
    piece = made.pieces[place]
    suffix = made.lost[place]
    rejects = f", store_rejects = true, rejects_limit = 0, rejects_table = 'bad_{suffix}', rejects_scan = 'scan_{suffix}'"
    everything = f"concat({', '.join(map(name, piece.columns))}) IS NOT NULL"
    columns = "*, file_index" if len(piece.files) > 1 else "*"
    return f"(SELECT {columns} FROM {piece.reader(more=rejects)} WHERE {everything})"


def _note_bad_lines(connection: duckdb.DuckDBPyConnection, view: str, made: _TextView, place: int, start: int) -> None:
    piece = made.pieces[place]
    suffix = made.lost[place] = f"lost_before_{view}_{place}"
    connection.execute(f"SELECT count(*) FROM {_tolerant(made, place)}").fetchall()
    bad = fetch(
        connection,
        "SELECT s.file_path AS path, CAST(b.line AS BIGINT) AS line, "
        "arg_min(CAST(b.error_type AS VARCHAR), b.column_idx) AS kind "
        f"FROM bad_{suffix} b JOIN scan_{suffix} s ON s.scan_id = b.scan_id AND s.file_id = b.file_id GROUP BY ALL",
    )
    places = pa.table({"path": [str(path) for path in piece.paths], "place": pa.array(range(len(piece.paths)), pa.int64()),
                       "file": [str(file) for file in piece.files],
                       "called": made.called[start : start + len(piece.files)]})  # fmt: skip
    connection.register("bad_lines", bad)
    connection.register("bad_places", places)
    cases = " ".join(f"WHEN {text(kind)} THEN {text(reason)}" for kind, reason in _REASONS.items())
    row = f"line - {piece.header_lines}"
    connection.execute(
        f"INSERT INTO malformed_lines SELECT file, called, {row}, ({made.first + start} + place) * {ROWS_A_FILE} + {row}, "
        f"line, CASE kind {cases} ELSE {text(_OTHERWISE)} END FROM bad_lines JOIN bad_places USING (path)"
    )
    _pass_over(connection, piece, f"bad_{suffix}", f"scan_{suffix}")
    keys = fetch(connection, f"SELECT place, {row} AS row FROM bad_lines JOIN bad_places USING (path) ORDER BY ALL")
    connection.create_function(suffix, _lost_before(keys), ["BIGINT"], "BIGINT", type=PythonUDFType.ARROW)
    if piece.keys:
        rows = _numbered(_tolerant(made, place), places["called"].to_pylist(), made.first + start, suffix)
        connection.execute(
            f"INSERT INTO malformed_lines SELECT file, source_file, source_row, source_order, source_row, {text(_NO_JSON)} "
            f"FROM ({rows}) JOIN bad_places ON called = source_file WHERE {is_broken()}"
        )
    connection.unregister("bad_lines")
    connection.unregister("bad_places")


def _pass_over(connection: duckdb.DuckDBPyConnection, piece: Piece, bad: str, scan: str) -> None:
    """Lines that the config leaves out are no faults, however few cells they have."""
    if piece.left_out:
        first = f"trim(string_split(b.csv_line, {text(piece.delimiter)})[1], ' \"' || chr(13))"
        connection.execute(
            f"DELETE FROM malformed_lines WHERE (file, line) IN (SELECT p.file, b.line FROM {bad} b JOIN {scan} s "
            f"ON s.scan_id = b.scan_id AND s.file_id = b.file_id JOIN bad_places p ON p.path = s.file_path "
            f"WHERE {first} IN ({', '.join(map(text, piece.left_out))}))"
        )


def _lost_before(bad: pa.Table) -> Callable[[pa.Array], pa.Array]:
    """A function from (file * 2^40 + row among the good ones) to the bad lines of that file before it. `bad` is sorted."""
    place, row = bad["place"].to_numpy(), bad["row"].to_numpy()
    in_file = np.arange(len(place)) - np.searchsorted(place, place)
    before = place * ROWS_A_FILE + row - 1 - in_file  # good rows of the file before each bad line

    def lost(rows: pa.Array) -> pa.Array:
        wanted = rows.to_numpy(zero_copy_only=False)
        return pa.array(np.searchsorted(before, wanted) - np.searchsorted(before, wanted // ROWS_A_FILE * ROWS_A_FILE))

    return lost
