"""Tables of rows that commands write: Parquet, CSV, TSV or lines of JSON, by the ending of the file's name; streamed.

Moments are ISO 8601 in UTC; a list is joined by `|` in CSV and is an array in JSON; what is missing is an empty cell or null.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from adrec.data.disk.outputs import marked

STANDARD_OUTPUT = Path("-")
_MOMENT = "%Y-%m-%dT%H:%M:%SZ"
_TEXT = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


class RowWriter(Protocol):
    """Takes tables of one schema, in order."""

    def write_table(self, table: pa.Table) -> None:
        """Append rows."""


def row_format(path: Path) -> str:
    """parquet, csv, tsv or jsonl, by the ending (`.gz` behind it, or not)."""
    return _TEXT.get((path.with_suffix("") if path.suffix == ".gz" else path).suffix, "parquet")


@contextmanager
def row_writer(file: Path, schema: pa.Schema, kind: str, *, called: Path) -> Iterator[RowWriter]:
    """A writer to `file` of what `called` ends in; a Parquet file says that adrec wrote it as `kind`."""
    form = row_format(called)
    if form == "parquet":
        # Dictionaries for strings alone: numbers rarely repeat enough to pay for looking.
        strings = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
        with pq.ParquetWriter(file, marked(schema, kind), compression="zstd", use_dictionary=strings) as writer:
            yield writer
        return
    with ExitStack() as held:
        compression = "gzip" if called.suffix == ".gz" else None
        stream = held.enter_context(pa.output_stream(str(file), compression=compression))
        yield held.enter_context(_Lines(stream)) if form == "jsonl" else held.enter_context(_Cells(stream, schema, form))


def to_standard_output(file: Path) -> None:
    """Copy a finished file to the pipe."""
    with open(file, "rb") as handle:
        shutil.copyfileobj(handle, sys.stdout.buffer)
    sys.stdout.buffer.flush()


class _Cells:
    def __init__(self, stream: pa.NativeFile, schema: pa.Schema, form: str) -> None:
        options = pa.csv.WriteOptions(delimiter="\t" if form == "tsv" else ",", quoting_style="needed")
        self._writer = pa.csv.CSVWriter(stream, _plain(schema.empty_table(), lists=False).schema, write_options=options)

    def write_table(self, table: pa.Table) -> None:
        self._writer.write_table(_plain(table, lists=False))

    def __enter__(self) -> "_Cells":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


class _Lines:
    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._engine = duckdb.connect(config={"threads": 1})  # one thread keeps the order

    def write_table(self, table: pa.Table) -> None:
        if table.num_rows == 0:
            return
        self._engine.register("adrec_rows", _plain(table, lists=True))
        try:
            lines = self._engine.sql("SELECT CAST(to_json(adrec_rows) AS VARCHAR) AS line FROM adrec_rows").to_arrow_table()
        finally:
            self._engine.unregister("adrec_rows")
        for chunk in lines["line"].chunks:
            whole = pa.ListArray.from_arrays(pa.array([0, len(chunk)], pa.int32()), chunk)
            self._stream.write(pc.binary_join(whole, "\n")[0].as_py().encode() + b"\n")

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()


def _plain(table: pa.Table, *, lists: bool) -> pa.Table:
    """Cells that text can hold: moments as ISO 8601, broken numbers as none; lists as text unless `lists` may stay."""
    for place, field in enumerate(table.schema):
        column = _told(table.column(place), lists=lists)
        if column is not table.column(place):
            table = table.set_column(place, field.name, column)
    return table


def _told(column: pa.ChunkedArray, *, lists: bool) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _told(column.cast(kind.value_type), lists=lists)
    if pa.types.is_timestamp(kind):
        return pc.strftime(column if kind.tz is not None else column.cast(pa.timestamp(kind.unit, "UTC")), format=_MOMENT)
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_finite(column), column, pa.scalar(None, kind))
    if lists or not pa.types.is_nested(kind):
        return column
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not pa.types.is_nested(kind.value_type):
        return pc.binary_join(column.cast(pa.list_(pa.string())), "|")
    with duckdb.connect(config={"threads": 1}) as engine:
        engine.register("adrec_rows", pa.table({"cell": column}))
        return engine.sql("SELECT CAST(to_json(cell) AS VARCHAR) AS cell FROM adrec_rows").to_arrow_table()["cell"]
