"""Read Parquet with errors a user can act on; write it aside, so that a kill leaves an earlier file whole."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from adrec.data.disk.writing import write_aside
from adrec.errors import DataError
from adrec.schema import TableSpec


def read_table(
    path: Path, spec: TableSpec | None = None, columns: Sequence[str] | None = None, *, dictionaries: bool = False
) -> pa.Table:
    """Read one Parquet file or a folder of them whole, checked against `spec`. Raises DataError.

    `dictionaries` gives strings as dictionary columns, four bytes a row, without ever holding the strings themselves. Then
    one column is read after another, each into one piece, which takes little memory beyond the table's own.
    """
    dataset = open_dataset(path, spec)
    try:
        if not dictionaries:
            return dataset.to_table(columns=list(columns) if columns is not None else None)
        dataset = _with_dictionaries(dataset)
        names = list(columns) if columns is not None else dataset.schema.names
        read = {name: _column(dataset, name) for name in names}
        return pa.table(read)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({_first_line(error)}). Write the file again.") from None


def iter_batches(
    path: Path,
    spec: TableSpec | None = None,
    columns: Sequence[str] | None = None,
    *,
    batch_rows: int = 65_536,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream a Parquet file or folder in file order, in batches of at most `batch_rows` rows. Raises DataError.

    Of rows `start` up to `stop` (the end where None), only the row groups that hold them are read.
    """
    dataset = open_dataset(path, spec)
    try:
        for fragment, skip, take in _row_range(dataset, start, stop):
            for batch in fragment.to_batches(
                schema=dataset.schema,
                columns=list(columns) if columns is not None else None,
                batch_size=batch_rows,
                fragment_readahead=1,
                batch_readahead=2,
            ):
                before = min(skip, batch.num_rows)
                part = batch.slice(before, take)
                skip, take = skip - before, take - part.num_rows
                if part.num_rows:
                    yield part
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({_first_line(error)}). Write the file again.") from None


def _row_range(
    dataset: pyarrow.dataset.FileSystemDataset, start: int, stop: int | None
) -> Iterator[tuple[pyarrow.dataset.ParquetFileFragment, int, int]]:
    """The row groups that hold rows `start` up to `stop`, a fragment a file: rows of it to skip, and then to take."""
    place = 0  # of the first row of a row group
    for fragment in dataset.get_fragments():
        assert isinstance(fragment, pyarrow.dataset.ParquetFileFragment)
        first = place
        wanted: list[int] = []
        for group in fragment.row_groups:
            if place + group.num_rows > start and (stop is None or place < stop):
                first = first if wanted else place
                wanted.append(group.id)
            place += group.num_rows
        if wanted:
            skip = max(start - first, 0)
            yield fragment.subset(row_group_ids=wanted), skip, (place if stop is None else min(stop, place)) - first - skip


def open_dataset(path: Path, spec: TableSpec | None = None) -> pyarrow.dataset.FileSystemDataset:
    """A dataset over a Parquet file or every `*.parquet` below a folder (sorted by name), checked against `spec`."""
    files = parquet_files(path)
    schema = parquet_schema(files[0])
    if spec is not None:
        check_schema(schema, spec, where=str(path))
    dataset = pyarrow.dataset.dataset([str(file) for file in files], schema=schema, format="parquet")
    assert isinstance(dataset, pyarrow.dataset.FileSystemDataset)
    return dataset


def _column(dataset: pyarrow.dataset.FileSystemDataset, name: str) -> pa.ChunkedArray:
    table = dataset.to_table(columns=[name], fragment_readahead=1, batch_readahead=2)
    return table.unify_dictionaries().combine_chunks()[name]


def _with_dictionaries(dataset: pyarrow.dataset.FileSystemDataset) -> pyarrow.dataset.FileSystemDataset:
    strings = [field.name for field in dataset.schema if field.type == pa.string()]
    schema = dataset.schema
    for name in strings:
        place = schema.get_field_index(name)
        schema = schema.set(place, schema.field(place).with_type(pa.dictionary(pa.int32(), pa.string())))
    reading = pyarrow.dataset.ParquetFileFormat(dictionary_columns=strings)
    found = pyarrow.dataset.dataset(dataset.files, schema=schema, format=reading)
    assert isinstance(found, pyarrow.dataset.FileSystemDataset)
    return found


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files behind `path`, sorted. Raises DataError where there is none."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith((".", "_")))
        if not files:
            raise DataError(f"{path}: the folder holds no .parquet file.")
        return files
    if not path.exists():
        raise DataError(f"{path}: no such file.")
    return [path]


def file_facts(paths: Iterable[Path | None]) -> list[list[str | int]]:
    """Name, size in bytes and moment of change of every file at `paths`: another input shows in them. None is left out."""
    found: list[list[str | int]] = []
    for path in paths:
        for file in parquet_files(path) if path is not None else ():
            facts = file.stat()
            found.append([str(file), facts.st_size, facts.st_mtime_ns])
    return found


def parquet_schema(file: Path) -> pa.Schema:
    """The schema of one Parquet file; DataError where it is empty, truncated or not Parquet."""
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty.")
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file}: not a whole Parquet file ({_first_line(error)}). Write the file again.") from None


def check_schema(schema: pa.Schema, spec: TableSpec, *, where: str, cure: str = "Run 'adrec preprocess' first.") -> None:
    """Raise DataError listing every missing column and wrong type of `schema` against `spec`, a line each."""
    faults = []
    for column in spec.columns:
        index = schema.get_field_index(column.name)
        if index < 0:
            if column.required:
                near = f" Columns: {', '.join(schema.names[:12])}{', ...' if len(schema.names) > 12 else ''}."
                faults.append(f"{where}: column '{column.name}' is missing.{near}")
            continue
        found = schema.field(index).type
        if not _same_type(found, column.type):
            faults.append(f"{where}: column '{column.name}' is {_type_name(found)}, expected {_type_name(column.type)}. {cure}")
    if faults:
        raise DataError("\n".join(faults))


def _same_type(stored: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_dictionary(stored):
        stored = stored.value_type
    if pa.types.is_large_string(stored):
        stored = pa.string()
    if (pa.types.is_list(stored) or pa.types.is_large_list(stored)) and pa.types.is_list(expected):
        return _same_type(stored.value_type, expected.value_type)
    return bool(stored.equals(expected))


def _type_name(kind: pa.DataType) -> str:
    return "timestamp[us, UTC]" if kind.equals(pa.timestamp("us", tz="UTC")) else str(kind)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def write_table(table: pa.Table, path: Path) -> None:
    """Write one Parquet file (zstd) aside, then rename it over `path`."""
    with write_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd")
