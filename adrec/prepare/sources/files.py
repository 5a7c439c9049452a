"""Find and read CSV, TSV, JSONL and Parquet files, plain or compressed, as one DuckDB view in file order.

One reader goes over all files of a table, so that hundreds of files need neither as many buffers nor as many open handles.
"""

import glob
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
from adrec.prepare.sources.text_files import COMPRESSIONS, Dialect, decoded, hive, text_pieces

_OWN_NAMES = frozenset(
    {"adrec_row", "adrec_file", "adrec_place", "adrec_start", "adrec_object", "file_row_number", "file_index"}
)
_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


def find_files(patterns: str | Sequence[str]) -> list[Path]:
    """The files behind files, folders and globs: those of each pattern sorted by path. Raises DataError."""
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = [file for file in path.rglob("*") if _is_data(file.relative_to(path)) and _is_known(file)]
            if not matches:
                raise DataError(f"{path}: the folder holds no CSV, TSV, JSONL or Parquet file.")
        elif path.is_file():
            matches = [path]
        else:
            folder = Path(Path(pattern).anchor) if path.is_absolute() else Path()
            matches = [match for match in folder.glob(str(path.relative_to(path.anchor))) if match.is_file()]
            if not matches:
                what = "matches no file" if glob.has_magic(pattern) else "no such file"
                raise DataError(f"{pattern}: {what}. Name a file, a folder or a glob under `source` in the config.")
        found.extend(sorted(matches))
    for file in found:
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty.")
    return list(dict.fromkeys(found))


def format_of(file: Path) -> str | None:
    """csv, tsv, jsonl or parquet by the ending, or None."""
    suffixes = [suffix for suffix in file.suffixes if suffix not in COMPRESSIONS]
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
    quote: str | None = None,
    escape: str | None = None,
    encoding: str = "utf-8",
) -> None:
    """Create `view` over `files`, in order, with source_file, source_row and source_order. Cells of text files stay text.

    `all_files` are the files of the whole table where only its last ones are read. `format` goes before the endings. `header`
    names the columns of files that have no header line. Folders named `key=value` add columns. Raises DataError for unreadable
    files.
    """
    table = list(all_files or files)
    kinds = {format if format != "auto" else format_of(file) for file in table}
    kind = kinds.pop()
    if kinds or kind is None:
        odd = next(file for file in table if format_of(file) != kind or kind is None)
        raise DataError(f"{odd}: the format is not plain from the ending. Set `format` in the config.")
    names = source_names(table)
    called, first = [names[file] for file in files], table.index(files[0])
    with readable_faults(str(files[0])):
        if kind == "parquet":
            connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {_parquet(files, called, first)}")
            connection.execute(f"SELECT * FROM {view} LIMIT 1").fetchall()
        else:
            paths = decoded(connection, files, encoding)
            separator = delimiter or ("\t" if kind == "tsv" else ",")
            dialect = Dialect(separator, quote, escape, tuple(header) if header is not None else None, encoding)
            pieces = text_pieces(connection, files, paths, kind, dialect)
            _refuse_own_names(files[0], [*pieces[0].columns, *pieces[0].keys])
            create_text_view(connection, view, pieces, called, first)


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


def _is_data(relative: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in relative.parts)


def _is_known(file: Path) -> bool:
    return file.is_file() and format_of(file) is not None


def _kind(kind: pa.DataType) -> str:
    """Types that DuckDB reads as one: strings of any width, numbers of any width."""
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string(kind):
        return "string"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return str(kind)
