"""Lists of different lengths, end to end in one array."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.arrays import Longs, combined, ends, lengths_of, ranges, with_row


@dataclass(frozen=True)
class Ragged:
    """Lists end to end: list i is `values[offsets[i]:offsets[i + 1]]`. offsets (R + 1,) int64, values (V,) of whole numbers."""

    offsets: Longs
    values: NDArray[np.signedinteger]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Longs:
        """Length of each list, (R,) int64."""
        return np.diff(self.offsets)

    def take(self, rows: NDArray[Any]) -> "Ragged":
        """The lists of `rows`, in that order."""
        starts, lengths = self.offsets[rows], self.lengths[rows]
        return Ragged(ends(lengths), self.values[ranges(starts, lengths)])

    def with_row(self, row: int, own: "Ragged") -> "Ragged":
        """The lists with the one of `own` at `row`, or behind the last."""
        end = self.offsets[min(row + 1, len(self))]
        lengths = with_row(self.lengths, row, own.lengths)
        return Ragged(ends(lengths), np.concatenate([self.values[: self.offsets[row]], own.values, self.values[end:]]))

    def equals_previous(self) -> NDArray[np.bool_]:
        """(R,) whether each list equals the list before it. Lists of one length lie exactly that length apart."""
        lengths = self.lengths
        equal = np.zeros(len(lengths), bool)
        equal[1:] = lengths[1:] == lengths[:-1]
        earlier = np.arange(len(self.values)) - np.repeat(np.where(equal, lengths, 0), lengths)
        count = ends(self.values != self.values[earlier])  # of the places that differ
        return np.asarray(equal & (count[self.offsets[1:]] == count[self.offsets[:-1]]))

    @classmethod
    def empty(cls, count: int) -> "Ragged":
        """So many empty lists."""
        return cls(np.zeros(count + 1, np.int64), np.zeros(0, np.int32))


def ragged(column: pa.ChunkedArray) -> Ragged:
    """A list column as offsets and values; null is an empty list."""
    return Ragged(ends(lengths_of(column)), values_of(column).astype(np.int32, copy=False))


def values_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """The values of a list column, end to end."""
    return np.asarray(combined(pc.list_flatten(column)).to_numpy(zero_copy_only=False))
