"""Vectors of ads or users (N, D): where they lie, and rows of them. Large ones stay on disk and are mapped, never copied whole.

The prepared folder keeps each column of vectors in a file of its own, `vectors/<table>/<column>.npy`, a row an ad (user) in the
order of its table; a missing vector is a row of NaN. Tables that are read from there carry the column as an Arrow view of the
mapped file, so that whatever takes a table takes its vectors along for nothing.

# N rows, D width, M mapped rows, K rows that came later
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.arrays import Longs, lengths_of
from adrec.errors import DataError

FOLDER = "vectors"
_NOTHING = -1

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Vectors:
    """N vectors. A row is one of `base`, which may be mapped from disk, or of `newer`, or missing."""

    base: NDArray[np.floating]
    """(M, D) float16 or float32; a row of NaN is missing"""
    newer: Floats
    """(K, D)"""
    index: Longs
    """(N,) row of `base`, or M + row of `newer`, or -1 where nothing is known"""

    @classmethod
    def of(cls, column: pa.ChunkedArray | pa.Array | None, width: int, rows: int, *, where: str) -> "Vectors":
        """A column of a table of so many rows; None: all are missing. Raises DataError naming the first cell that does not fit.

        The largest chunk of a column of fixed width is taken as it lies; others are copied.
        """
        if column is None:
            return cls(np.zeros((0, width), np.float32), np.zeros((0, width), np.float32), np.full(rows, _NOTHING, np.int64))
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        parts = [
            _numbers(chunk, width, where=where, first_row=int(start)) for chunk, start in zip(chunks, starts, strict=False)
        ]
        order = sorted(range(len(parts)), key=lambda number: -len(chunks[number]))
        index, stored = np.full(rows, _NOTHING, np.int64), 0
        for number in order:
            values, known = parts[number]
            index[starts[number] : starts[number + 1]] = np.where(known, stored + np.arange(len(values)), _NOTHING)
            stored += len(values)
        nothing = np.zeros((0, width), np.float32)
        newer = [parts[number][0].astype(np.float32) for number in order[1:]]
        return cls(parts[order[0]][0] if order else nothing, np.concatenate([nothing, *newer]), index)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def width(self) -> int:
        """D."""
        return int(self.base.shape[1])

    def rows(self, rows: NDArray[np.integer]) -> Floats:
        """(n, D) the given rows, NaN where missing: the only place that copies."""
        place = self.index[rows]
        found = np.full((len(place), self.width), np.nan, np.float32)
        mapped, later = (place >= 0) & (place < len(self.base)), place >= len(self.base)
        if mapped.any():
            found[mapped] = self.base[place[mapped]]
        if later.any():
            found[later] = self.newer[place[later] - len(self.base)]
        return found

    def take(self, rows: NDArray[np.integer]) -> "Vectors":
        """The given rows, copied by nobody until they are asked for."""
        return replace(self, index=self.index[rows])

    def without(self, gone: NDArray[np.bool_]) -> "Vectors":
        """The same with the rows where `gone` (N,) missing."""
        return replace(self, index=np.where(gone, _NOTHING, self.index))

    def with_rows(self, rows: NDArray[np.integer], own: "Vectors", size: int) -> "Vectors":
        """N = `size` vectors: these, with those of `own` (K) at `rows` (K,), which may lie behind the last.

        Costs what has come later, not the catalogue.
        """
        index = np.full(size, _NOTHING, np.int64)
        index[: len(self)] = self.index
        values, known = own.rows(np.arange(len(rows))), own.index >= 0
        before = index[rows]
        again = known & (before >= len(self.base))  # it came later already: its place is used again
        newer = self.newer.copy() if again.any() else self.newer
        newer[before[again] - len(self.base)] = values[again]
        fresh = known & ~again
        index[rows] = np.where(known, before, _NOTHING)
        index[rows[fresh]] = len(self.base) + len(newer) + np.arange(int(fresh.sum()))
        return replace(self, newer=np.concatenate([newer, values[fresh]]), index=index)

    def with_row(self, row: int, own: "Vectors") -> "Vectors":
        """The same with the one vector of `own` at `row`, or behind the last."""
        return self.with_rows(np.array([row]), own, max(len(self), row + 1))


class VectorWriter:
    """Writes a `.npy` file of `rows` vectors batch by batch, in constant memory."""

    def __init__(self, path: Path, rows: int, width: int, precision: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.width, self.dtype = width, np.dtype(precision)
        self._handle = open(path, "wb")  # noqa: SIM115
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(self._handle, header)
        self._first = self._handle.tell()

    def add(self, column: pa.Array, *, where: str) -> None:
        """The next rows, a column of a batch."""
        self._handle.write(self._as_stored(column, where).tobytes())

    def put(self, rows: NDArray[np.integer], column: pa.Array, *, where: str) -> None:
        """The given rows, a column of a batch, in any order: what is sorted by nobody needs no memory to be sorted in."""
        stored, size = self._as_stored(column, where), self.width * self.dtype.itemsize
        ends = np.flatnonzero(np.diff(rows) != 1) + 1  # runs of neighbours are written at once
        for start, stop in zip([0, *ends], [*ends, len(rows)], strict=True):
            if stop > start:
                self._handle.seek(self._first + int(rows[start]) * size)
                self._handle.write(stored[start:stop].tobytes())

    def _as_stored(self, column: pa.Array, where: str) -> NDArray[np.floating]:
        values, known = _numbers(column, self.width, where=where)
        made = np.where(known[:, None], values, np.float32(np.nan))
        if self.dtype == np.float16:
            made = np.clip(made, -65_504, 65_504)  # beyond that a float16 is infinite
        return np.ascontiguousarray(made, self.dtype)

    def close(self) -> None:
        """Finish the file."""
        self._handle.close()


def file_of(folder: Path, table: str, column: str) -> Path:
    """The file of a column of vectors in a prepared folder."""
    return folder / FOLDER / table / f"{quote(column, safe='')}.npy"


def stored_columns(folder: Path, table: str) -> list[str]:
    """The columns of vectors that a prepared folder has of a table."""
    return sorted(unquote(file.stem) for file in (folder / FOLDER / table).glob("*.npy"))


def open_vectors(folder: Path, table: str, column: str) -> NDArray[np.floating]:
    """(N, D) a column of vectors of a prepared folder, mapped. Raises DataError where the file is not whole."""
    path = file_of(folder, table, column)
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0][:160]
        raise DataError(f"{path}: not a whole file of vectors ({reason}). Run 'adrec preprocess' again.") from None
    if mapped.ndim != 2 or mapped.dtype not in (np.float16, np.float32):
        raise DataError(f"{path}: holds no vectors of float16 or float32. Run 'adrec preprocess' again.")
    return np.asarray(mapped)


def with_vectors(table: pa.Table, folder: Path, name: str) -> pa.Table:
    """A table of a prepared folder with its columns of vectors, as views of the mapped files."""
    for column in stored_columns(folder, name):
        mapped = open_vectors(folder, name, column)
        if len(mapped) != len(table):
            raise DataError(
                f"{file_of(folder, name, column)}: {len(mapped):,} rows, its table has {len(table):,}. "
                "Run 'adrec preprocess' again."
            )
        table = table.append_column(column, as_arrow(mapped))
    return table


def as_arrow(vectors: NDArray[np.floating]) -> pa.FixedSizeListArray:
    """(N, D) contiguous vectors as an Arrow column over the same memory."""
    kind = pa.float16() if vectors.dtype == np.float16 else pa.float32()
    if not vectors.size:
        return pa.array([], pa.list_(kind, vectors.shape[1]))
    flat = pa.Array.from_buffers(kind, vectors.size, [None, pa.py_buffer(vectors)])
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def split_vectors(table: pa.Table, columns: Iterable[str]) -> tuple[pa.Table, Mapping[str, pa.ChunkedArray]]:
    """The table without those of `columns` that it has, and these."""
    found = {column: table[column] for column in columns if column in table.column_names}
    return table.drop_columns(list(found)) if found else table, found


def _valid(column: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), bool)


def _numbers(column: pa.Array, width: int, *, where: str, first_row: int = 0) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """(N, D) and which rows are filled (N,). Fixed lists of float16 or float32 are not copied. Raises DataError."""
    kind, known = column.type, _valid(column)
    if pa.types.is_null(kind):
        return np.full((len(column), width), np.nan, np.float32), known
    is_fixed = pa.types.is_fixed_size_list(kind)
    if not (is_fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not _is_number(kind.value_type):
        raise DataError(f"{where} is {kind}, expected lists of {width} numbers. Make the column one of lists.")
    lengths = np.full(len(column), kind.list_size) if is_fixed else lengths_of(column)
    _refuse(known & (lengths != width), f"has another width than {width}", where, first_row)
    if is_fixed:
        flat = column.values.slice(column.offset * width, len(column) * width)
    else:
        flat = column.drop_null().flatten()
    if flat.null_count or flat.type not in (pa.float16(), pa.float32()):
        flat = pc.cast(flat, pa.float32(), safe=False)
    numbers = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
    if not is_fixed and not known.all():
        spread = np.full((len(column), width), np.nan, np.float32)
        spread[known] = numbers
        return spread, known
    return numbers, known


def _is_number(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_null)
    return any(is_of(kind) for is_of in kinds)


def _refuse(bad: NDArray[np.bool_], problem: str, where: str, first_row: int) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        more = f" ({len(rows):,} rows in all)" if len(rows) > 1 else ""
        raise DataError(f"{where}, row {first_row + int(rows[0]) + 1:,}: {problem}{more}. Leave the cell empty, or mend it.")
