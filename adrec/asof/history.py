"""Point-in-time history: the newest H of a user's clicks strictly before `shown_at`, from other requests, newest last.

Works on one part of the users at a time, whole columns at once. Ties in time are not earlier.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.hashing import mix
from adrec.errors import DataError

Ints = NDArray[np.int64]


class Events(NamedTuple):
    """What users did, M events in no particular order; ties in time keep the order given."""

    user: Ints
    ad: Ints
    time: Ints
    """microseconds"""
    request: Ints
    """hash of the request"""


class Windows(NamedTuple):
    """Which slice of the log each of N rows may see: `ad[start:end]`, newest last."""

    start: Ints
    end: Ints


class HistoryLog:
    """Events of some users in (user, time) order, with what an earlier run carried over.

    `ad` and `time` are the log; windows point into them. Windows of requests that see themselves (rows of one request
    at several moments) are written out behind the log without the request's own events.
    """

    def __init__(self, carried: Mapping[str, NDArray[np.generic]] | None, events: Events) -> None:
        if carried:
            old = Events(*(np.asarray(carried[name], dtype=np.int64) for name in ("user", "ad", "time", "request")))
            events = Events(*(np.concatenate(pair) for pair in zip(old, events, strict=True)))
        order = np.lexsort((events.time, events.user))
        self.user, self.ad, self.time, self.request = (column[order] for column in events)

    def windows(self, user: Ints, time: Ints, request: Ints, limit: int, *, spread: NDArray[np.bool_]) -> Windows:
        """What N rows may see of their user's events.

        `spread` marks rows whose request has rows at several moments; only they can meet their own request's events.
        """
        is_row = np.concatenate([np.zeros(len(self.user), dtype=np.bool_), np.ones(len(user), dtype=np.bool_)])
        # At one moment rows stand before events, so that what is equal in time counts as not earlier.
        order = np.lexsort((~is_row, np.concatenate([self.time, time]), np.concatenate([self.user, user])))
        earlier = np.cumsum(~is_row[order])
        end = np.empty(len(user), dtype=np.int64)
        end[order[is_row[order]] - len(self.user)] = earlier[is_row[order]]
        start = np.maximum(np.searchsorted(self.user, user), end - limit)
        rows = np.flatnonzero(spread)
        if len(rows):
            start[rows], end[rows] = self._without_own(user[rows], end[rows], request[rows], limit)
        return Windows(start, end)

    def _without_own(self, user: Ints, end: Ints, request: Ints, limit: int) -> tuple[Ints, Ints]:
        """Windows behind the log for rows that must not see events of their own request."""
        names, of_event = np.unique(self.request, return_inverse=True)
        sizes = np.append(np.bincount(of_event, minlength=len(names)), 0)
        at = np.searchsorted(names, request)
        at = np.where((at < len(names)) & (np.append(names, 0)[at] == request), at, len(names))
        begin = np.maximum(np.searchsorted(self.user, user), end - limit - sizes[at])
        row, place = spans(begin, end)
        kept = self.request[place] != request[row]
        row, place = row[kept], place[kept]
        seen = np.bincount(row, minlength=len(user))
        rank_from_newest = np.cumsum(seen)[row] - 1 - np.arange(len(row))
        row, place = row[rank_from_newest < limit], place[rank_from_newest < limit]
        lengths = np.bincount(row, minlength=len(user))
        stop = len(self.ad) + np.cumsum(lengths)
        self.ad, self.time = np.append(self.ad, self.ad[place]), np.append(self.time, self.time[place])
        return stop - lengths, stop

    def carry(self, until: int, limit: int) -> dict[str, NDArray[np.generic]]:
        """What rows from moment `until` on may still need: each user's newest `limit` earlier events and all later ones."""
        count = len(self.user)
        past = self.time[:count] < until
        later: Ints = np.cumsum(past[::-1])[::-1] - past  # past events behind each, over all users
        last = np.searchsorted(self.user, self.user, side="right") - 1
        newer = later - later[last]
        kept = ~past | (newer < limit)
        return {
            "user": self.user[kept], "ad": self.ad[:count][kept], "time": self.time[:count][kept],
            "request": self.request[kept],
        }  # fmt: skip


def spans(start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """All positions of N slices: for each, the slice's number and the position. Both int64 (total,)."""
    lengths = end - start
    row = np.repeat(np.arange(len(start)), lengths)
    first = np.cumsum(lengths) - lengths
    return row, np.arange(int(lengths.sum())) + np.repeat(start - first, lengths)


@dataclass
class HistoryReport:
    """What was found about histories, in requests unless it says otherwise."""

    requests: int = 0
    rows: int = 0
    empty: int = 0
    cut: int = 0
    """longer than the limit"""
    items: int = 0
    """ids in given histories"""
    unknown_items: int = 0
    """of them, ids that the ads table lacks: dropped"""
    differing: int = 0
    """rows whose given history is not that of the row before in the same request"""
    shown_in_history: int = 0
    """clicked rows whose ad is already in their given history: many of them mean that the history holds the answer"""
    source: str = "clicks"
    last_request: int | None = field(default=None, repr=False)
    last_print: int = field(default=0, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe counts."""
        return {name: value for name, value in vars(self).items() if not name.startswith("last_")}

    def count(self, requests: Ints, lengths: Ints, limit: int) -> NDArray[np.bool_]:
        """Take in the next rows, requests contiguous. Returns which rows open a request."""
        before = np.concatenate([[self.last_request if self.last_request is not None else ~requests[0]], requests[:-1]])
        opens = requests != before
        self.last_request = int(requests[-1])
        self.rows += len(requests)
        self.requests += int(opens.sum())
        self.empty += int((opens & (lengths == 0)).sum())
        self.cut += int((opens & (lengths > limit)).sum())
        return np.asarray(opens)


class GivenHistory(NamedTuple):
    """A `history` column as rows of the ads table."""

    offsets: Ints
    """(N + 1,)"""
    ads: NDArray[np.int32]
    """(total,) newest last, cut to the newest H, unknown ids left out"""
    lengths: Ints
    """(N,) ids as given, unknown ones included, not cut"""


def read_given(
    column: pa.Array,
    ad_ids: pa.Array,
    limit: int,
    report: HistoryReport,
    *,
    requests: Ints,
    ads: Ints,
    clicked: NDArray[np.bool_],
) -> GivenHistory:
    """Turn lists of ad ids, newest last, into ad indices. Raises DataError when the column holds no lists."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise DataError(
            f"impressions: column 'history' is {kind}, expected a list of ad ids. Declare its separator in the source."
        )
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False), dtype=np.int64)
    found = pc.fill_null(pc.index_in(column.flatten(), value_set=ad_ids, skip_nulls=True), -1)
    codes = np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    known = codes >= 0
    opens = report.count(requests, lengths, limit)
    report.items += int(lengths[opens].sum())
    report.unknown_items += int((~known & opens[row]).sum())
    place = np.arange(len(row)) - (np.cumsum(lengths) - lengths)[row]
    print_of = np.zeros(len(lengths), dtype=np.uint64)
    np.add.at(print_of, row, mix(codes.astype(np.uint64) ^ (place.astype(np.uint64) << np.uint64(32))))
    before = np.concatenate([np.array([report.last_print], dtype=np.uint64), print_of[:-1]])
    report.differing += int((~opens & (print_of != before)).sum())
    report.last_print = int(print_of[-1])
    row, codes = row[known], codes[known]
    holds = np.zeros(len(lengths), dtype=np.bool_)
    holds[row[codes == ads[row]]] = True
    report.shown_in_history += int((holds & clicked).sum())
    sizes = np.bincount(row, minlength=len(lengths))
    newest = (np.cumsum(sizes)[row] - 1 - np.arange(len(row))) < limit
    kept = np.minimum(sizes, limit)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(kept)])
    return GivenHistory(offsets, codes[newest].astype(np.int32), lengths)
