"""Arrow columns as numpy arrays, and index arithmetic over lists that lie end to end. All vectorised; nothing is copied twice.

N rows, V values of all lists; list i of `offsets` (N + 1,) is `values[offsets[i]:offsets[i + 1]]`
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray

from adrec.data.ids import index_of

Longs = NDArray[np.int64]
_PIECE_ROWS = 16_384


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One contiguous array."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def integers(column: pa.ChunkedArray | pa.Array, missing: int | None = None, dtype: DTypeLike = np.int64) -> NDArray[Any]:
    """A column of numbers as whole numbers (N,), `missing` where null. Without `missing` the column has no null."""
    values = column if missing is None else pc.fill_null(column, missing)
    return np.asarray(combined(values).to_numpy(zero_copy_only=False), dtype)


def places(column: pa.ChunkedArray | pa.Array, ids: pa.ChunkedArray | pa.Array) -> Longs:
    """(N,) the row of `ids` that holds each cell of `column`, -1 where none does and where the cell is null."""
    cells, known = combined(column), combined(ids)
    if cells.type != known.type:  # an identifier is the same as text and as a whole number
        cells, known = cells.cast(pa.string()), known.cast(pa.string())
    index = index_of(known, len(cells))
    if index is not None:
        return index.places(cells)
    return integers(pc.index_in(cells, value_set=known, skip_nulls=True), missing=-1)


def with_row(values: NDArray[Any], row: int, own: NDArray[Any]) -> NDArray[Any]:
    """A copy of `values` (N, ...) with `own` (1, ...) at `row`, or behind the last where `row` is N."""
    if row == len(values):
        return np.concatenate([values, own.astype(values.dtype)])
    copied = values.copy()
    copied[row] = own[0]
    return copied


def cells_with_row(cells: pa.Array, row: int, own: pa.Array) -> pa.Array:
    """The same of an Arrow array."""
    return pa.concat_arrays([cells.slice(0, row), own.cast(cells.type), cells.slice(row + 1)])


def table_with_row(table: pa.Table, row: int, own: pa.Table) -> pa.Table:
    """The same of a table, in one piece; `own` has its columns."""
    columns = {name: cells_with_row(combined(table[name]), row, combined(own[name])) for name in table.column_names}
    return pa.table(columns, schema=table.schema)


def lengths_of(lists: pa.ChunkedArray | pa.Array) -> Longs:
    """(N,) values in each list of a list column; a null list has none."""
    return integers(pc.list_value_length(lists), missing=0)


def ends(lengths: NDArray[Any]) -> Longs:
    """(N + 1,) the offsets of lists of these lengths: 0, then where each list ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(starts: NDArray[Any], lengths: NDArray[Any]) -> Longs:
    """`concatenate([arange(s, s + n) for s, n in zip(starts, lengths)])` without the loop."""
    offsets = ends(lengths)
    return np.arange(offsets[-1], dtype=np.int64) + np.repeat(np.asarray(starts, np.int64) - offsets[:-1], lengths)


def newest(offsets: NDArray[Any], limit: int, rows: NDArray[Any] | slice = slice(None)) -> tuple[Longs, Longs]:
    """The last `limit` values of each list of `rows`: their offsets (R + 1,), and their places among the values."""
    last = offsets[1:][rows]
    lengths = np.minimum(last - offsets[:-1][rows], limit)
    return ends(lengths), ranges(last - lengths, lengths)


def unit_rows(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows (N, D) scaled to length 1; rows of zeros stay. Takes the result and a piece of it."""
    scaled = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), _PIECE_ROWS):
        piece = vectors[start : start + _PIECE_ROWS]
        length = np.linalg.norm(piece, axis=1, keepdims=True)
        scaled[start : start + _PIECE_ROWS] = piece / np.where(length > 0, length, 1.0)
    return scaled
