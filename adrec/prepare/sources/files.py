"""Find and read CSV, TSV, JSONL and Parquet files, plain or compressed, as one DuckDB view in file order."""

import csv
import glob
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.data.tables import parquet_schema
from adrec.errors import DataError
from adrec.prepare.engine import name, readable_faults, text

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_LONGEST_LINE = 16_000_000


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
            matches = [Path(match) for match in glob.glob(pattern, recursive=True) if Path(match).is_file()]
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
    format: str = "auto",
    delimiter: str | None = None,
    header: Sequence[str] | None = None,
    quote: str = '"',
) -> None:
    """Create `view` over `files`, in order, with `source_file` and `source_row`. Text columns stay text.

    `header` names the columns of text files that have no header line. Folders named `key=value` add columns.
    Raises DataError for a file that is not what its ending says.
    """
    kinds = {format if format != "auto" else format_of(file) for file in files}
    kind = kinds.pop()
    if kinds or kind is None:
        odd = next(file for file in files if format_of(file) != kind or kind is None)
        raise DataError(f"{odd}: the format is not plain from the ending. Set `format` in the config.")
    order = "row_number() OVER () AS source_row, row_number() OVER () AS source_order"
    if kind == "parquet":
        relation = _parquet(files)
        # No running count over the whole table: that would read it with one thread.
        order = "file_row_number + 1 AS source_row, file_index * 1099511627776 + file_row_number AS source_order"
    elif kind == "jsonl":
        relation = _jsonl(files)
    else:
        relation = _delimited(files, delimiter or ("\t" if kind == "tsv" else ","), header, quote)
    with readable_faults(str(files[0])):
        connection.execute(
            f"CREATE OR REPLACE TEMP VIEW {view} AS SELECT * EXCLUDE (filename), parse_filename(filename) AS source_file, "
            f"{order} FROM {relation}"
        )
        connection.execute(f"SELECT * FROM {view} LIMIT 1").fetchall()


def _parquet(files: Sequence[Path]) -> str:
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
    return f"read_parquet({_list(files)}, filename = true, union_by_name = true, hive_partitioning = {_hive(files)})"


def _check_row_groups(file: Path) -> None:
    """The footer may be whole where the pages before it are not: its offsets must lie inside the file."""
    metadata = pq.read_metadata(file)
    size = file.stat().st_size
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            if chunk.data_page_offset + 4 > size or chunk.total_compressed_size > size:
                raise DataError(f"{file}: the file is truncated (row group {group + 1}). Write the file again.")


def _jsonl(files: Sequence[Path]) -> str:
    return (
        f"read_json({_list(files)}, format = 'newline_delimited', filename = true, union_by_name = true, "
        f"hive_partitioning = {_hive(files)}, convert_strings_to_integers = false, dateformat = '', "
        f"maximum_object_size = {_LONGEST_LINE}, sample_size = 100000)"
    )


def _delimited(files: Sequence[Path], delimiter: str, header: Sequence[str] | None, quote: str) -> str:
    names = list(header) if header is not None else read_header(files[0], delimiter, quote)
    if header is None:
        for file in files[1:]:
            other = read_header(file, delimiter, quote)
            if other != names:
                odd = sorted(set(other) ^ set(names)) or other
                raise DataError(f"{file}: its header differs from that of {files[0].name} ({', '.join(odd[:6])}).")
    columns = ", ".join(f"{text(column)}: 'VARCHAR'" for column in names)
    quoting = f"quote = {text(quote)}, escape = {text(quote)}"
    return (
        f"read_csv({_list(files)}, auto_detect = false, delim = {text(delimiter)}, {quoting}, "
        f"header = {'false' if header is not None else 'true'}, columns = {{{columns}}}, filename = true, "
        f"hive_partitioning = {_hive(files)}, max_line_size = {_LONGEST_LINE}, null_padding = false, parallel = true)"
    )


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
    if not names or not all(names):
        raise DataError(f"{file}: row 1: the header has an empty column name. Name every column.")
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise DataError(f"{file}: row 1: column '{twice[0]}' occurs twice in the header.")
    return names


def _list(files: Sequence[Path]) -> str:
    return "[" + ", ".join(text(glob.escape(str(file))) for file in files) + "]"


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


def columns_named(names: Sequence[str]) -> str:
    """Columns as a SQL list."""
    return ", ".join(name(column) for column in names)
