"""Find and read CSV, TSV, JSONL and Parquet files, plain or compressed, as one DuckDB view in file order."""

import csv
import glob
import os
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.data.engine import readable_faults, text
from adrec.data.tables import parquet_schema
from adrec.errors import DataError
from adrec.prepare.sources.malformed import ROWS_A_FILE, create_text_view, numbered

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_LONGEST_LINE = 4_000_000
_TEXT_BUFFERS, _SMALLEST_BUFFER = 64_000_000, 65_536
"""Bytes. Every text file of a table has a buffer from the start, which bounds its lines: many files, shorter lines."""


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
    suffixes = [suffix for suffix in file.suffixes if suffix not in _COMPRESSIONS]
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
    quote: str = '"',
) -> None:
    """Create `view` over `files`, in order, with source_file, source_row and source_order. Text columns stay text.

    `all_files` are the files of the whole table where only its last ones are read. `header` names the columns of text
    files that have no header line. Folders named `key=value` add columns. Raises DataError for unreadable files.
    """
    table = list(all_files or files)
    kinds = {format if format != "auto" else format_of(file) for file in table}
    kind = kinds.pop()
    if kinds or kind is None:
        odd = next(file for file in table if format_of(file) != kind or kind is None)
        raise DataError(f"{odd}: the format is not plain from the ending. Set `format` in the config.")
    names = source_names(table)
    with readable_faults(str(files[0])):
        if kind in {"csv", "tsv"}:
            separator = delimiter or ("\t" if kind == "tsv" else ",")
            columns = list(header) if header is not None else _one_header(files, separator, quote)
            buffer = max(min(_LONGEST_LINE, _TEXT_BUFFERS // len(files)), _SMALLEST_BUFFER)
            parts = [
                (file, names[file], table.index(file), _delimited(file, separator, header, quote, buffer)) for file in files
            ]
            create_text_view(connection, view, parts, columns=columns, header_lines=int(header is None))
            return
        if kind == "parquet":
            query = _parquet(files, names, table.index(files[0]))
        else:
            query = " UNION ALL BY NAME ".join(numbered(_jsonl(file), names[file], table.index(file)) for file in files)
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {query}")
        connection.execute(f"SELECT * FROM {view} LIMIT 1").fetchall()


def source_names(files: Sequence[Path]) -> dict[Path, str]:
    """What a file is called in messages and in `source_file`: its path below the folder that all of them share."""
    root = os.path.commonpath([file.parent for file in files])
    return {file: str(file.relative_to(root)) for file in files}


def _parquet(files: Sequence[Path], names: dict[Path, str], first_number: int) -> str:
    first = parquet_schema(files[0])
    for file in files[1:]:
        other = parquet_schema(file)
        for field in first:
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
    called = ", ".join(text(names[file]) for file in files)
    # The reader numbers rows by file, so that it may use all threads; a running count would not let it.
    read = f"read_parquet([{listed}], union_by_name = true, hive_partitioning = {_hive(files)})"
    numbered = f"SELECT *, file_row_number AS adrec_row, CAST(file_index AS BIGINT) AS adrec_file FROM {read}"
    return (
        f"SELECT * EXCLUDE (adrec_row, adrec_file), [{called}][adrec_file + 1] AS source_file, adrec_row + 1 AS source_row, "
        f"({first_number} + adrec_file) * {ROWS_A_FILE} + adrec_row AS source_order FROM ({numbered})"
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


def _jsonl(file: Path) -> str:
    return (
        f"read_json([{text(glob.escape(str(file)))}], format = 'newline_delimited', hive_partitioning = {_hive([file])}, "
        f"convert_strings_to_integers = false, maximum_object_size = {_LONGEST_LINE}, sample_size = 100000)"
    )


def _delimited(file: Path, delimiter: str, header: Sequence[str] | None, quote: str, buffer: int) -> str:
    names = list(header) if header is not None else read_header(file, delimiter, quote)
    columns = ", ".join(f"{text(column)}: 'VARCHAR'" for column in names)
    return (
        f"read_csv([{text(glob.escape(str(file)))}], auto_detect = false, delim = {text(delimiter)}, quote = {text(quote)}, "
        f"escape = {text(quote)}, header = {'false' if header is not None else 'true'}, columns = {{{columns}}}, "
        f"hive_partitioning = {_hive([file])}, max_line_size = {buffer}, buffer_size = {buffer})"
    )


def _one_header(files: Sequence[Path], delimiter: str, quote: str) -> list[str]:
    names = read_header(files[0], delimiter, quote)
    for file in files[1:]:
        odd = sorted(set(names) ^ set(read_header(file, delimiter, quote)))
        if odd:
            raise DataError(f"{file}: its header differs from that of {files[0].name} ({', '.join(odd[:6])}).")
    return names


def read_header(file: Path, delimiter: str, quote: str = '"') -> list[str]:
    """Column names in the first line of a text file, plain or compressed. Raises DataError."""
    try:
        with pa.input_stream(str(file), compression=_COMPRESSIONS.get(file.suffix)) as handle:
            line = handle.read(1_000_000).split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError:
        raise DataError(f"{file}: row 1: not UTF-8 text. Convert the file (iconv -t UTF-8).") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read ({str(error).splitlines()[0][:160]}). Write the file again.") from None
    try:
        names = next(csv.reader([line], delimiter=delimiter, quotechar=quote), []) if quote else line.split(delimiter)
    except csv.Error as error:
        raise DataError(f"{file}: row 1: the header cannot be read ({error}).") from None
    names = [column.strip() for column in names]
    if len(names) > 1 and not names[0]:
        names[0] = "row_label"  # the unnamed index that a data frame writes first
    if not names or not all(names):
        raise DataError(f"{file}: row 1: the header has an empty column name. Name every column.")
    lowered = [column.lower() for column in names]
    twice = sorted({column for column in lowered if lowered.count(column) > 1})
    if twice:
        raise DataError(f"{file}: row 1: column '{twice[0]}' occurs twice in the header.")
    return names


def _hive(files: Sequence[Path]) -> str:
    return "true" if all("=" in file.parent.name for file in files) else "false"


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
