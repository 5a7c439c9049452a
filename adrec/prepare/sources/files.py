"""Find and read CSV, TSV, JSONL and Parquet files, plain or compressed, as one DuckDB view in file order.

One reader goes over all files of a table, so that hundreds of files need neither as many buffers nor as many open handles.
"""

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.data.disk.engine import readable_faults, text
from adrec.data.disk.tables import parquet_schema
from adrec.errors import DataError
from adrec.prepare.sources.malformed import ROWS_A_FILE, create_text_view
from adrec.prepare.sources.opening import ARCHIVE, COMPRESSIONS, WORKBOOKS, is_data, pieces, readable, with_members
from adrec.prepare.sources.sniffing import likely_delimiter
from adrec.prepare.sources.text_files import Dialect, hive, text_pieces

_OWN_NAMES = frozenset(
    {"adrec_row", "adrec_file", "adrec_place", "adrec_start", "adrec_object", "file_row_number", "file_index"}
)
_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet",
            ".pq": "parquet", **dict.fromkeys(WORKBOOKS, "xlsx")}  # fmt: skip
_NO_ROWS = {".md", ".pdf", ".html", ".png", ".jpg", ".py", ".yaml", ".yml", ".sql", ".ipynb", ".doc", ".docx"}
"""Endings of files that may lie beside a table."""


def find_files(patterns: str | Sequence[str]) -> list[Path]:
    """The files behind files, folders and globs: those of each pattern sorted by path.

    Passed over in folders and globs: hidden files, `_SUCCESS` and the like, checksums, and empty files beside others. A folder
    without a file whose ending says its format gives all its files. Raises DataError.
    """
    files: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern)
        if path.is_file():
            if path.stat().st_size == 0:
                raise DataError(f"{path}: the file is empty.")
            files.append(path)
        else:
            matches = _of_folder(path) if path.is_dir() else _of_glob(pattern)
            filled = [match for match in matches if match.stat().st_size]
            if not filled:
                raise DataError(f"{matches[0]}: the file is empty.")
            files.extend(sorted(filled))
    return list(dict.fromkeys(files))


def _of_folder(path: Path) -> list[Path]:
    for log, what in (("_delta_log", "Delta"), ("metadata/version-hint.text", "Iceberg")):
        if (path / log).exists():
            raise DataError(
                f"{path}: is a {what} table, some of whose files are no longer rows of it. Export it to Parquet first."
            )
    every = [file for file in path.rglob("*") if file.is_file() and is_data(file.relative_to(path))]
    known = [file for file in every if format_of(file) is not None or file.suffix.lower() == ARCHIVE]
    matches = known or [file for file in every if file.suffix.lower() not in _NO_ROWS]
    if not matches:
        raise DataError(f"{path}: the folder holds no CSV, TSV, JSONL, Parquet or other file with rows.")
    return matches


def _of_glob(pattern: str) -> list[Path]:
    path = Path(pattern)
    folder = Path(path.anchor) if path.is_absolute() else Path()
    asks_hidden = any(step.startswith((".", "_")) for step in path.parts[-1:])
    matches = [match for match in folder.glob(str(path.relative_to(path.anchor))) if match.is_file()]
    matches = [match for match in matches if asks_hidden or is_data(Path(match.name))]
    if not matches:
        what = "matches no file" if glob.has_magic(pattern) else "no such file"
        raise DataError(f"{pattern}: {what}. Name a file, a folder or a glob under `source` in the config.")
    return matches


def format_of(file: Path) -> str | None:
    """csv, tsv, jsonl, xlsx or parquet by the ending, or None."""
    suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() not in COMPRESSIONS]
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def read_files(
    connection: duckdb.DuckDBPyConnection,
    view: str,
    files: Sequence[Path],
    *,
    all_files: Sequence[Path] | None = None,
    format: str = "auto",
    delimiter: str | None = None,
    header: Sequence[str] | None = None,
    skip_lines: int = 0,
    left_out: Sequence[str] = (),
    quote: str | None = None,
    escape: str | None = None,
    encoding: str = "utf-8",
    sheet: str | None = None,
    head: int | None = None,
) -> None:
    """Create `view` over `files`, in order, with source_file, source_row and source_order. Cells of text files stay text.

    `all_files` are the files of the whole table where only its last ones are read. `format` goes before the endings. `header`
    names the columns of files without a line of names; `skip_lines` stand above it. Lines whose first cell is in `left_out`
    need not have all cells. Folders named `key=value` add columns. `head` is for a first look: of files that must be decoded
    the first bytes are enough. Raises DataError for unreadable files.
    """
    table = with_members(all_files or files)
    files = with_members(files)
    kind = _kind_of(table, format)
    names = source_names(table)
    called, first = [names[file] for file in files], table.index(files[0])
    with readable_faults(str(files[0])):
        if kind == "parquet":
            connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {_parquet(files, called, first)}")
            connection.execute(f"SELECT * FROM {view} LIMIT 1").fetchall()
        else:
            paths = readable(connection, files, kind, encoding=encoding, sheet=sheet, head=head)
            separator = "," if kind == "xlsx" else delimiter or ("\t" if kind == "tsv" else ",")
            names_given = tuple(header) if header is not None else None
            dialect = Dialect(separator, quote, escape, names_given, skip_lines, tuple(left_out))
            readers = text_pieces(connection, files, paths, kind, dialect)
            _refuse_own_names(files[0], [*readers[0].columns, *readers[0].keys])
            create_text_view(connection, view, readers, called, first)


def _kind_of(table: Sequence[Path], format: str) -> str:
    """The format of all files of a table. Raises DataError with the key to set where their endings do not say it."""
    if format != "auto":
        return "jsonl" if format == "json" else format
    kinds = [format_of(file) for file in table]
    kind = kinds[0]
    if kind is None:
        start = next(pieces(table[0]), b"").decode("utf-8", errors="replace").splitlines()
        delimiter = likely_delimiter(start[:50])
        guess = f" Set `format: csv` and `delimiter: {json.dumps(delimiter)}` in the config (a guess)." if delimiter else ""
        raise DataError(f"{table[0]}: the ending does not say the format.{guess or ' Set `format` in the config.'}")
    for file, other in zip(table, kinds, strict=True):
        if other != kind:
            raise DataError(
                f"{file}: is not of the format of {table[0].name}, though both are files of one table. Set `format`, or name "
                "the table's own files under `files` in the config."
            )
    return kind


def _refuse_own_names(file: Path, columns: Sequence[str]) -> None:
    for taken in sorted(_OWN_NAMES & set(columns)):
        raise DataError(f"{file}: column '{taken}' has a name that adrec counts rows by. Write the table with another name.")


def source_names(files: Sequence[Path]) -> dict[Path, str]:
    """What a file is called in messages and in `source_file`: its path below the folder that all of them share."""
    root = os.path.commonpath([file.parent for file in files])
    return {file: str(file.relative_to(root)) for file in files}


def _parquet(files: Sequence[Path], called: Sequence[str], first: int) -> str:
    schema, is_same = parquet_schema(files[0]), True
    _refuse_own_names(files[0], schema.names)
    for file in files[1:]:
        other = parquet_schema(file)
        is_same = is_same and other.equals(schema)
        for field in schema:
            index = other.get_field_index(field.name)
            if index < 0:
                raise DataError(f"{file}: column '{field.name}' is missing, which {files[0].name} has.")
            if _kind(other.field(index).type) != _kind(field.type):
                raise DataError(
                    f"{file}: column '{field.name}' is {other.field(index).type}, but {field.type} in {files[0].name}."
                )
    for file in files:
        _check_row_groups(file)
    listed = ", ".join(text(glob.escape(str(file))) for file in files)
    # Files that are alike are opened one after the other; a union by name holds them all open.
    read = f"read_parquet([{listed}], union_by_name = {str(not is_same).lower()}, hive_partitioning = {hive(files)})"
    # The reader numbers rows by file, so that it may use all threads; a running count would not let it.
    numbered = f"SELECT *, file_row_number AS adrec_row, CAST(file_index AS BIGINT) AS adrec_file FROM {read}"
    return (
        f"SELECT * EXCLUDE (adrec_row, adrec_file), [{', '.join(map(text, called))}][adrec_file + 1] AS source_file, "
        f"adrec_row + 1 AS source_row, ({first} + adrec_file) * {ROWS_A_FILE} + adrec_row AS source_order FROM ({numbered})"
    )


def _check_row_groups(file: Path) -> None:
    """The footer may be whole where the pages before it are not: its offsets must lie inside the file."""
    metadata = pq.read_metadata(file)
    size = file.stat().st_size
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            if chunk.data_page_offset + 4 > size or chunk.total_compressed_size > size:
                raise DataError(f"{file}: the file is truncated (row group {group + 1}). Write the file again.")


def _kind(kind: pa.DataType) -> str:
    """Types that DuckDB reads as one: strings of any width, numbers of any width."""
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string(kind):
        return "string"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return str(kind)
