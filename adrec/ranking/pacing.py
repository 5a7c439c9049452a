"""When budgets begin anew, and how much of them is released by now: by the requests of a batch, or by the clock.

`rank` knows all its requests, so that an even pace is the share of them that is done. A server knows the time alone: the share
of the day where budgets are daily, else the share of the ad's own time from start to end.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.ranking.arrays import Floats, Ints

_DAY = 86_400_000_000  # microseconds


@dataclass(frozen=True)
class BudgetClock:
    """`daily`: budgets are of a day, which begins at midnight in `time_zone`; else they are of all time."""

    daily: bool = False
    time_zone: str = "UTC"

    def day(self, moments: Ints) -> Ints:
        """(N,) number of the local day at moments (N,) in microseconds; 0 where budgets are not daily."""
        return self._local(moments) // _DAY if self.daily else np.zeros(len(moments), dtype=np.int64)

    def elapsed(self, moments: Ints) -> Floats:
        """(N,) share of the local day that is over, in [0, 1)."""
        share: Floats = (self._local(moments) % _DAY) / _DAY
        return share

    def _local(self, moments: Ints) -> Ints:
        aware = pa.array(moments, pa.int64()).cast(pa.timestamp("us", tz=self.time_zone))
        local = pc.local_timestamp(aware).cast(pa.int64())
        return np.asarray(local.to_numpy(zero_copy_only=False), dtype=np.int64)


def flown(starts: Ints, ends: Ints, moments: Ints, *, always: int, never: int) -> Floats:
    """(R, C) share of the time from `starts` to `ends` (R, C) that is over at moments (R,); 1 where either is not known."""
    known = (starts > always) & (ends < never) & (ends > starts)
    begin, end = np.where(known, starts, 0), np.where(known, ends, 1)
    share = np.clip((moments[:, None] - begin) / (end - begin), 0.0, 1.0)
    return np.where(known, share, 1.0)


class RequestShares(NamedTuple):
    """How many requests of a batch, which is in order of time, belong to each day."""

    first: Ints  # (D,) number of the day's first request
    requests: Ints  # (D,)

    @classmethod
    def of(cls, days: Ints) -> "RequestShares":
        """From the day of each request, in order."""
        _, first, count = np.unique(days, return_index=True, return_counts=True)
        return cls(first, count)

    def released(self, first: int, count: int) -> Floats:
        """(R, 1) share of its day's requests that are done after the block of requests `first`, `first + 1`, ..."""
        number = np.arange(first, first + count)
        day = np.searchsorted(self.first, number, side="right") - 1
        done = np.minimum(first + count - self.first[day], self.requests[day])
        share: Floats = (done / self.requests[day])[:, None]
        return share
