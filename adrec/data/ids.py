"""Where an identifier stands in a large table, by hash: a few look-ups cost the same whatever the table's size.

Arrow builds a hash table of the whole table for every question: 479 ms at 3 million rows. Here the table's hashes are sorted
once (16 bytes a row, a second at 3 million) and remembered as long as the table is asked about.
"""

import threading
from collections import OrderedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.hashing import hash_strings

LARGE = 20_000
"""Tables below are looked up by Arrow."""
_FEW = 8
"""A question is short where the table is so many times as long."""
_REMEMBERED = 16

Key = tuple[tuple[int, ...], int, int]


class IdIndex:
    """The rows of identifiers (N,), of equal ones the first."""

    def __init__(self, ids: pa.Array) -> None:
        self.ids = ids
        hashed = hash_strings(ids)
        order = np.argsort(hashed, kind="stable")
        self._order = order[ids.is_valid().to_numpy(zero_copy_only=False)[order]]
        self._hashed = hashed[self._order]

    def places(self, cells: pa.Array) -> NDArray[np.int64]:
        """(M,) the row of each cell, -1 where there is none and where the cell is null."""
        wanted = hash_strings(cells)
        at = np.searchsorted(self._hashed, wanted).clip(max=max(len(self._hashed) - 1, 0))
        row = self._order[at] if len(self._order) else np.zeros(len(cells), np.int64)
        same = pc.fill_null(pc.equal(self.ids.take(pa.array(row)), cells), False) if len(self._order) else pa.array([])
        # Two identifiers of one hash are one in 10^13 of a million: the second would be unknown.
        return np.where(same.to_numpy(zero_copy_only=False), row, -1) if len(same) else np.full(len(cells), -1)


_INDEXES: OrderedDict[Key, IdIndex] = OrderedDict()
_LOCK = threading.Lock()


def index_of(ids: pa.Array, asked: int) -> IdIndex | None:
    """The index of a large array of strings about which little is asked; None where Arrow is as fast.

    An array is known again by its memory, which stays its own as long as it is remembered.
    """
    if len(ids) < LARGE or asked * _FEW > len(ids) or not pa.types.is_string(ids.type):
        return None
    key = tuple(buffer.address for buffer in ids.buffers() if buffer is not None), ids.offset, len(ids)
    with _LOCK:
        index = _INDEXES.get(key)
        if index is None:
            index = _INDEXES[key] = IdIndex(ids)
        _INDEXES.move_to_end(key)
        while len(_INDEXES) > _REMEMBERED:
            _INDEXES.popitem(last=False)
    return index
