"""pandas, polars and Arrow in, the same kind out. All of them meet as Arrow; none is imported that the caller did not bring."""

import sys
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from adrec.errors import DataError

Kind = Literal["pandas", "polars", "arrow"]


def kind_of(value: Any) -> Kind | None:
    """Which kind of frame it is; None where it is none."""
    if isinstance(value, pa.Table | pa.RecordBatch):
        return "arrow"
    pandas, polars = sys.modules.get("pandas"), sys.modules.get("polars")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return "pandas"
    if polars is not None and isinstance(value, polars.DataFrame | polars.LazyFrame):
        return "polars"
    return None


def to_arrow(frame: Any, *, where: str = "frame") -> pa.Table:
    """A frame as an Arrow table; an index of pandas is left out. Raises DataError naming a column that Arrow cannot hold."""
    kind = kind_of(frame)
    if kind == "pandas":
        table = _of_pandas(frame, where)
    elif kind == "polars":
        table = (frame.collect() if hasattr(frame, "collect") else frame).to_arrow()
    elif kind == "arrow":
        table = pa.Table.from_batches([frame]) if isinstance(frame, pa.RecordBatch) else frame
    else:
        raise DataError(f"{where}: is a {type(frame).__name__}, expected a frame of pandas, polars or Arrow, or a path.")
    repeated = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if repeated:
        raise DataError(f"{where}: two columns are called '{repeated[0]}'. Rename one of them.")
    return _plain(table)


def from_arrow(table: pa.Table, kind: Kind, *, index: Any = None) -> Any:
    """An Arrow table as a frame of that kind; `index` is for pandas, where its length fits."""
    if kind == "arrow":
        return table
    if kind == "polars":
        import polars

        return polars.from_arrow(table)
    frame = table.to_pandas()
    if index is not None and len(index) == len(frame):
        frame.index = index
    return frame


def spooled(value: Any, folder: Path, name: str) -> Any:
    """A path for a frame, which is written to `folder`; a path, or a list of them, stays what it is."""
    if kind_of(value) is None:
        return value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.parquet"
    pq.write_table(to_arrow(value, where=name), path)
    return str(path)


def _of_pandas(frame: Any, where: str) -> pa.Table:
    columns = [str(name) for name in frame.columns]
    arrays = []
    for place, name in enumerate(columns):
        try:
            arrays.append(pa.array(frame.iloc[:, place], from_pandas=True))
        except (pa.ArrowException, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{where}: column '{name}' mixes kinds of values ({reason}). Make them one kind.") from None
    return pa.table(
        [array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array for array in arrays], names=columns
    )


def _plain(table: pa.Table) -> pa.Table:
    """Categories as their values, moments to the microsecond: what Parquet files of other programs hold."""
    columns = []
    for column in table.columns:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        columns.append(column)
    return pa.table(columns, names=table.column_names)
