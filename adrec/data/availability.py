"""From when to when each ad may be shown: what a catalogue holds at a moment, for negatives and for ranks over all of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adrec.data.arrays import combined
from adrec.data.disk.tables import read_table
from adrec.schema import TIMESTAMP

Ints = NDArray[np.int64]
ALWAYS, NEVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max
FILE = "availability.parquet"


@dataclass(frozen=True)
class Availability:
    """(A,) from which moment on an ad is available, and from which on no longer, microseconds."""

    opens: Ints
    closes: Ints

    def __len__(self) -> int:
        return len(self.opens)

    @classmethod
    def of_ads(cls, ads: pa.Table) -> "Availability":
        """By `starts_at` and `ends_at` of a table of ads; without them always."""
        return cls(_moments(ads, "starts_at", ALWAYS), _moments(ads, "ends_at", NEVER))

    def at(self, moments: Ints) -> NDArray[np.bool_]:
        """(R, A) whether each ad is available at each of R moments."""
        return (self.opens[None, :] <= moments[:, None]) & (self.closes[None, :] > moments[:, None])

    def save(self, folder: Path) -> None:
        """A row an ad, `starts_at` and `ends_at`; empty for always and never."""
        columns = {
            name: pa.array(values, pa.int64(), mask=values == none).cast(TIMESTAMP)
            for name, values, none in (("starts_at", self.opens, ALWAYS), ("ends_at", self.closes, NEVER))
        }
        pq.write_table(pa.table(columns), folder / FILE, compression="zstd")

    @classmethod
    def load(cls, folder: Path) -> "Availability":
        """What `save` wrote."""
        return cls.of_ads(read_table(folder / FILE))


def _moments(ads: pa.Table, column: str, missing: int) -> Ints:
    if column not in ads.column_names:
        return np.full(len(ads), missing, np.int64)
    moments = combined(ads[column]).cast(TIMESTAMP).cast(pa.int64())
    return np.asarray(pc.fill_null(moments, missing).to_numpy(zero_copy_only=False), np.int64)
