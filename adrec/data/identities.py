"""Which ads, or users, have a vector of their own, and where it lies: a row each, or two rows of small tables by hash.

Constant memory whatever their number: rare ones share the vector of the unseen, and of more than so many each is the product
of a row of one table and a row of another (quotient and remainder: Shi et al. 2020). The hash is of the identifier alone, so
that a day later, when others are the most frequent, each is found where it was.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.arrays import places
from adrec.data.hashing import hash_strings


@dataclass(frozen=True)
class OwnVectors:
    """Those that have one."""

    ids: pa.StringArray
    """identifiers"""
    hashed: int = 0
    """rows of each of the two tables; 0: a row each, in the order of `ids`"""

    @classmethod
    def of(cls, ids: pa.Array, impressions: pa.Array, *, min_count: int, most_rows: int | None) -> "OwnVectors":
        """Those of `ids` (N,) with `min_count` impressions or more, hashed where they are more than `most_rows`."""
        often = ids.filter(pc.greater_equal(impressions, min_count)) if min_count > 1 else ids
        return cls(often, most_rows if most_rows is not None and len(often) > most_rows else 0)

    @property
    def rows(self) -> int:
        """Rows of the table where each has its own; 0 where they are hashed."""
        return 0 if self.hashed else len(self.ids)

    def codes(self, ids: pa.Array) -> NDArray[np.int32]:
        """(M,) 0 for whatever has none, else from 1: the place among `ids`, or 1 + row of the first table times `hashed` plus
        row of the second."""
        if not len(self.ids):
            return np.zeros(len(ids), np.int32)
        place = places(ids, self.ids)
        if not self.hashed:
            return (place + 1).astype(np.int32)
        code = (hash_strings(ids) % np.uint64(self.hashed**2)).astype(np.int64) + 1
        return np.where(place >= 0, code, 0).astype(np.int32)


NOBODYS = OwnVectors(pa.array([], pa.string()))
"""Where nothing has one."""
