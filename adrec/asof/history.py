"""Point-in-time history: the newest H of a user's clicks strictly before a moment, newest last. Ties in time are not earlier.

Clicks lie in one log, by user and time, on disk where there are many; a question is a binary search. A log may come with a
few newer clicks beside it, as a server has them.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.asof.sums import MICROSECONDS_AN_HOUR
from adrec.data.arrays import ends, places, ranges
from adrec.data.hashing import mix
from adrec.errors import DataError

Ints = NDArray[np.int64]
_KINDS: Mapping[str, type[np.generic]] = {"users": np.int64, "offsets": np.int64, "ads": np.int32, "times": np.int64}


_PIECE = 1 << 20
"""Acts in memory at once where logs are merged."""
TIMELESS = np.iinfo(np.int64).min
"""Moment of an act that came without one."""


class Histories(NamedTuple):
    """Lists of R questions, oldest first, newest last."""

    offsets: Ints
    """(R + 1,)"""
    ads: NDArray[np.int32]
    """(V,) rows of the ads"""
    times: Ints
    """(V,) microseconds, TIMELESS where unknown"""
    lengths: Ints
    """(R,) how many there were, not cut at H"""

    def hours(self, moments: Ints) -> NDArray[np.float32]:
        """(V,) age of each act at its question's moment (R,), NaN where unknown."""
        ages = (np.repeat(moments, np.diff(self.offsets)) - self.times) / MICROSECONDS_AN_HOUR
        return np.where(self.times == TIMELESS, np.nan, ages).astype(np.float32)


@dataclass(frozen=True)
class EventLog:
    """M acts (clicks, or impressions without a click) of K users, by user and time."""

    users: Ints
    """(K,) codes, ascending"""
    offsets: Ints
    """(K + 1,) the acts of user k are offsets[k] up to offsets[k + 1]"""
    ads: NDArray[np.int32]
    """(M,) rows of the ads"""
    times: Ints
    """(M,) microseconds"""

    @classmethod
    def empty(cls) -> "EventLog":
        """Nobody has done anything."""
        return cls(np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64))

    @classmethod
    def of(cls, users: Ints, ads: NDArray[np.integer], times: Ints) -> "EventLog":
        """From acts in any order; those of one user at one moment keep theirs."""
        order = np.lexsort((times, users))
        starts = np.flatnonzero(np.diff(users[order], prepend=-1)) if len(order) else np.zeros(0, np.int64)
        return cls(users[order][starts], np.append(starts, len(order)), ads[order].astype(np.int32), times[order])

    @classmethod
    def write(cls, batches: Iterable[pa.RecordBatch], count: int, folder: Path) -> "EventLog":
        """To `folder` from `count` acts in order of (code, time): columns code, ad_index, time. Memory is one batch."""
        folder.mkdir(parents=True, exist_ok=True)
        written = {"ads": "ad_index", "times": "time"}
        users, starts, at, last = [], [], 0, -1
        with ExitStack() as stack:
            files = {column: stack.enter_context((folder / f"{column}.npy").open("wb")) for column in written}
            for column, file in files.items():
                kind = np.dtype(_KINDS[column])
                header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (count,)}
                np.lib.format.write_array_header_1_0(file, header)
            for batch in batches:
                code = batch.column("code").to_numpy()
                for column, name in written.items():
                    files[column].write(batch.column(name).to_numpy().astype(_KINDS[column], copy=False).tobytes())
                opens = np.flatnonzero(np.diff(code, prepend=last))
                users.append(code[opens])
                starts.append(at + opens)
                at, last = at + len(code), int(code[-1]) if len(code) else last
        codes = np.concatenate([np.zeros(0, np.int64), *users])
        np.save(folder / "users.npy", codes, allow_pickle=False)
        np.save(folder / "offsets.npy", np.concatenate([*starts, [count]]).astype(np.int64), allow_pickle=False)
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> "EventLog":
        """A written log, mapped into memory. Raises DataError where it is broken."""
        try:
            read = {column: np.load(folder / f"{column}.npy", mmap_mode="r", allow_pickle=False) for column in _KINDS}
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: no usable state ({error}). Run 'adrec preprocess' again.") from None
        if len(read["offsets"]) != len(read["users"]) + 1 or len(read["ads"]) != len(read["times"]):
            raise DataError(f"{folder}: no usable state (arrays of different lengths). Run 'adrec preprocess' again.")
        return cls(**read)

    def before(self, users: Ints, times: Ints) -> tuple[Ints, Ints]:
        """Where each of R users' acts begin and where those strictly before its moment end: both (R,), equal where none."""
        place = np.searchsorted(self.users, users)
        known = place < len(self.users)
        known[known] = self.users[place[known]] == users[known]
        place = np.where(known, place, 0)
        low = np.where(known, self.offsets[place], 0)
        high = np.where(known, self.offsets[place + 1] if len(self.users) else 0, 0)
        first = low.copy()
        while (open_ := np.flatnonzero(low < high)).size:
            middle = (low[open_] + high[open_]) // 2
            is_before = self.times[middle] < times[open_]
            low[open_] = np.where(is_before, middle + 1, low[open_])
            high[open_] = np.where(is_before, high[open_], middle)
        return first, low

    def histories(self, users: Ints, times: Ints, limit: int) -> Histories:
        """The newest `limit` acts of R users (codes) strictly before their moments."""
        first, end = self.before(users, times)
        start = np.maximum(first, end - limit)
        offsets = np.concatenate([[0], np.cumsum(end - start)])
        place = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], end - start)
        return Histories(offsets, np.asarray(self.ads[place]), np.asarray(self.times[place]), end - first)

    def without(self, users: Ints) -> "EventLog":
        """The log of all others."""
        stay = ~np.isin(self.users, users)
        mask = np.repeat(stay, np.diff(self.offsets))
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[stay])])
        return EventLog(self.users[stay], offsets, self.ads[mask], self.times[mask])

    def merged(self, other: "EventLog", folder: Path | None = None) -> "EventLog":
        """Both logs as one; at one moment those of `self` come first. Linear in `self`, and to `folder` out of core."""
        count = len(self.ads) + len(other.ads)
        if folder is None:
            ads, times = np.empty(count, np.int32), np.empty(count, np.int64)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            ads, times = (
                np.lib.format.open_memmap(folder / f"{column}.npy", mode="w+", dtype=_KINDS[column], shape=(count,))
                for column in ("ads", "times")
            )
        behind = self._behind(np.repeat(other.users, np.diff(other.offsets)), other.times)
        place = behind + np.arange(len(behind))
        ads[place], times[place] = other.ads, other.times
        for start in range(0, len(self.ads), _PIECE):
            own = np.arange(start, min(start + _PIECE, len(self.ads)))
            place = own + np.searchsorted(behind, own, side="right")
            ads[place], times[place] = self.ads[own[0] : own[-1] + 1], self.times[own[0] : own[-1] + 1]
        users = np.union1d(self.users, other.users)
        sizes = np.zeros(len(users), np.int64)
        for log in (self, other):
            sizes[np.searchsorted(users, log.users)] += np.diff(log.offsets)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        if folder is None:
            return EventLog(users, offsets, ads, times)
        for values in (ads, times):
            if isinstance(values, np.memmap):
                values.flush()
        np.save(folder / "users.npy", users, allow_pickle=False)
        np.save(folder / "offsets.npy", offsets, allow_pickle=False)
        return EventLog.load(folder)

    def _behind(self, users: Ints, times: Ints) -> Ints:
        """How many acts of the log come before each of R others, (R,), those of its user at its moment among them."""
        slot = np.searchsorted(self.users, users)
        known = slot < len(self.users)
        known[known] = self.users[slot[known]] == users[known]
        return np.where(known, self.before(users, times + 1)[1], self.offsets[slot])


def joined(older: Histories, newer: Histories, limit: int) -> Histories:
    """Lists of two logs for the same R questions, each cut to the newest `limit`, as one list each, by time, cut likewise."""
    count, lengths = len(older.lengths), older.lengths + newer.lengths
    if not len(newer.ads):
        return older._replace(lengths=lengths)
    ads, times = np.concatenate([older.ads, newer.ads]), np.concatenate([older.times, newer.times])
    before, behind = np.diff(older.offsets), np.diff(newer.offsets)
    both = (before > 0) & (behind > 0)
    if (older.times[older.offsets[1:][both] - 1] <= newer.times[newer.offsets[:-1][both]]).all():  # nothing to sort
        before = np.minimum(before, limit - behind)
        starts = np.stack([older.offsets[1:] - before, len(older.ads) + newer.offsets[:-1]], axis=1)
        place = ranges(starts.ravel(), np.stack([before, behind], axis=1).ravel())
        return Histories(ends(before + behind), ads[place], times[place], lengths)
    owner = np.concatenate([np.repeat(np.arange(count), sizes) for sizes in (before, behind)])
    order = np.lexsort((times, owner))
    sizes = np.bincount(owner, minlength=count)
    from_newest = np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(len(order))
    order = order[from_newest < limit]
    offsets = np.concatenate([[0], np.cumsum(np.minimum(sizes, limit))])
    return Histories(offsets, ads[order], times[order], lengths)


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
    last_print: int = field(default=0, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe counts."""
        return {key: value for key, value in vars(self).items() if not key.startswith("last_")}

    def count(self, opens: NDArray[np.bool_], lengths: Ints, limit: int) -> None:
        """Take in rows; `opens` (N,) marks the first of each request, lengths (N,)."""
        self.rows += len(opens)
        self.requests += int(opens.sum())
        self.empty += int((opens & (lengths == 0)).sum())
        self.cut += int((opens & (lengths > limit)).sum())


class GivenHistory(NamedTuple):
    """A `history` column as rows of the ads table."""

    offsets: Ints
    """(N + 1,)"""
    ads: NDArray[np.int32]
    """(total,) newest last, cut to the newest H, unknown ids left out"""
    lengths: Ints
    """(N,) ids as given, unknown ones included, not cut"""
    known: NDArray[np.bool_]
    """(items,) of all ids as given, whether the ads have them"""


def read_given(column: pa.Array, ad_ids: pa.Array, limit: int) -> GivenHistory:
    """Turn lists of ad ids, newest last, into ad indices."""
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False), dtype=np.int64)
    items = column.flatten().cast(pa.string())
    codes = places(items, ad_ids)
    known = codes >= 0
    row = np.repeat(np.arange(len(lengths)), lengths)[known]
    sizes = np.bincount(row, minlength=len(lengths))
    newest = (np.cumsum(sizes)[row] - 1 - np.arange(len(row))) < limit
    offsets = np.concatenate([[0], np.cumsum(np.minimum(sizes, limit))])
    return GivenHistory(offsets, codes[known][newest].astype(np.int32), lengths, known)


def report_given(
    report: HistoryReport, histories: GivenHistory, column: pa.Array, opens: NDArray[np.bool_], clicked_ad: Ints, limit: int
) -> None:
    """Count what is odd about given histories. clicked_ad (N,): the ad where the row was clicked, else -1."""
    report.source = "given"
    report.count(opens, histories.lengths, limit)
    row = np.repeat(np.arange(len(opens)), histories.lengths)
    report.items += int(histories.lengths[opens].sum())
    report.unknown_items += int((~histories.known & opens[row]).sum())
    place = np.arange(len(histories.ads)) - np.repeat(histories.offsets[:-1], np.diff(histories.offsets))
    owner = np.repeat(np.arange(len(opens)), np.diff(histories.offsets))
    prints = mix(histories.lengths.astype(np.uint64))
    np.add.at(prints, owner, mix(histories.ads.astype(np.uint64) ^ (place.astype(np.uint64) << np.uint64(32))))
    before = np.concatenate([np.array([report.last_print], dtype=np.uint64), prints[:-1]])
    report.differing += int((~opens & (prints != before)).sum())
    report.last_print = int(prints[-1]) if len(prints) else report.last_print
    holds = np.zeros(len(opens), dtype=np.bool_)
    holds[owner[histories.ads == clicked_ad[owner]]] = True
    report.shown_in_history += int(holds.sum())
