"""Running sums by key, read strictly before a moment: the engine under every counter.

One entry a key. `step` takes the next events in time order and tells rows what their key had gathered at earlier moments;
`peek` tells without taking anything in; `merge` takes in the sums of other events, of any moments. Any cutting of the
events into steps gives the same bits, even through a moment that several events share, because a step starts from the last
moment's parts and not from their total. Rows that only ask leave no trace.

Fading sums follow x_i = w_i + 2^(-(t_i - t_{i-1}) / h) x_{i-1}, one element a distinct (key, moment). That recurrence is a
bidiagonal triangular system, so LAPACK's neighbour BLAS `dtbsv` runs it at compiled speed, in order and without the
overflow or cancellation of rescaled prefix sums.

Large states lie on disk: `base` is a read-only mapping, and what changes is kept beside it. Cost of a step: one sort of
its rows, then linear passes. Size: 16 + 12 E bytes a key, 8 (1 + H E) more with half-lives, 8 more with first moments.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dtbsv

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Arrays = dict[str, NDArray[Any]]

MICROSECONDS_AN_HOUR = 3_600_000_000.0
NEVER = np.iinfo(np.int64).max
NO_KEY = -1
"""Rows with this key (a missing value) add nothing and see nothing."""
_MOST_LOOSE = 65_536
_GROWTH = 4
"""A layer that is not so many times as large as the one over it is joined with it: each key moves a few times only."""


class Sums(NamedTuple):
    """What N rows see: events strictly before their moments."""

    counts: Ints
    """(N, E)"""
    faded: Floats
    """(N, H, E) as of the row's moment"""
    first: Ints | None
    """(N,) microseconds of the key's first event, NEVER where there was none; None where first moments are not kept"""


class KeyedSums:
    """All-time and fading sums of E kinds of events by key, and each key's first moment where `first`.

    K keys, H half-lives (hours). `columns` hold, per key: `time` of its last moment, what was gathered `now` (E) at that
    moment itself and `before` (E) strictly earlier; with half-lives the `earlier` moment before the last, and `faded` (H, E)
    up to it, as of then.
    """

    def __init__(
        self, events: int, half_lives: Sequence[float] = (), *, first: bool = False, base: "KeyedSums | None" = None
    ) -> None:
        """`base`: sums to go on from; they are read and never written."""
        self.half_lives, self.base, self.tells_first = tuple(half_lives), base, first
        self.is_layer = False
        """keep what changes apart from the base, however much it is"""
        self.most_loose = _MOST_LOOSE
        """Keys that change are inserted one step after another; so many become a layer."""
        self.events = events
        shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "time": ((), np.int64), "now": ((events,), np.uint32), "before": ((events,), np.int64),
        }  # fmt: skip
        if half_lives:
            shapes |= {"earlier": ((), np.int64), "faded": ((len(half_lives), events), np.float64)}
        if first:
            shapes["first"] = ((), np.int64)
        self.keys: Ints = np.zeros(0, dtype=np.int64)  # (K,) ascending
        self.columns: Arrays = {name: np.zeros((0, *shape), dtype=kind) for name, (shape, kind) in shapes.items()}

    def step(self, keys: Ints, times: Ints, weights: Ints, counted: Bools | None = None) -> Sums:
        """Sums at moments strictly before each row's; then take in the rows that are `counted` (all, where None).

        keys (N,), times (N,) microseconds, none before an earlier step's events, weights (N, E).
        """
        known = keys != NO_KEY
        order = _by_key_then_time(keys, times)
        if counted is None:
            counted = known
        is_event = counted[order]
        sums = self._nothing(len(keys))
        if not is_event.any():
            rows = np.flatnonzero(known)
            _fill(sums, rows, self.peek(keys[rows], times[rows]))
            return sums
        # Keys without an event among these rows are only looked at.
        new_key = np.concatenate([[True], keys[order][1:] != keys[order][:-1]])
        opens = np.flatnonzero(new_key)
        has_event = np.repeat(np.logical_or.reduceat(is_event, opens), np.diff(np.append(opens, len(order))))
        rows = order[~has_event]
        if len(rows):
            _fill(sums, rows, self.peek(keys[rows], times[rows]))
            order, is_event, new_key = order[has_event], is_event[has_event], new_key[has_event]
        self._step(sums, order, keys[order], times[order], weights, is_event, new_key)
        return sums

    def _step(self, sums: Sums, order: Ints, key: Ints, time: Ints, weights: Ints, is_event: Bools, new_key: Bools) -> None:
        """Rows `order` in order of (key, time), every key with an event among them."""
        columns = self.columns
        new_moment = new_key | np.concatenate([[True], time[1:] != time[:-1]])
        moment_starts = np.flatnonzero(new_moment)
        has_event = np.logical_or.reduceat(is_event, moment_starts)  # (M,) moments at which something happened
        key_of_moment = np.cumsum(new_key[moment_starts]) - 1
        event_moments = np.flatnonzero(has_event)
        starts = moment_starts[event_moments]  # (R,) runs: one key at one moment, with an event
        group = key_of_moment[event_moments]  # (R,) run -> key
        gathered = np.where(is_event[:, None], weights[order], 0)
        run_weights = np.add.reduceat(gathered, moment_starts, axis=0)[event_moments]
        first_run = np.flatnonzero(np.diff(group, prepend=-1))  # (G,) each key's first run
        slots = self._slots(key[starts][first_run], time[starts][first_run])
        columns = self.columns

        # Elements of a key: its state up to the moment before the last, its last moment, then the step's runs. A first
        # run at that same last moment is folded into it.
        folded = time[starts][first_run] == columns["time"][slots]
        sizes = np.bincount(group) + 2 - folded
        bases = np.cumsum(sizes) - sizes
        place = bases[group] + 2 + np.arange(len(starts)) - first_run[group] - folded[group]
        element_weight = np.zeros((int(sizes.sum()), self.events), dtype=np.int64)
        element_weight[bases + 1] = columns["now"][slots]
        element_weight[place] += run_weights
        # What a moment sees is the element before its own; a moment without events sees the last one before it.
        runs_before = np.cumsum(has_event) - has_event  # (M,) runs of all keys that stand before the moment
        of_key = runs_before - first_run[key_of_moment]  # of the moment's own key
        seen = np.where(of_key > 0, place[np.maximum(runs_before - 1, 0)], bases[key_of_moment] + 1)
        at_last = (of_key == 0) & (time[moment_starts] <= columns["time"][slots][key_of_moment])
        seen = np.where(at_last, bases[key_of_moment], seen)
        moment_of_row = np.cumsum(new_moment) - 1

        summed = np.cumsum(element_weight, axis=0)
        offset = columns["before"][slots] - summed[bases]
        sums.counts[order] = (summed[seen] + offset[key_of_moment])[moment_of_row]
        last = bases + sizes - 1
        if self.half_lives:
            element_time = np.empty(len(element_weight), dtype=np.int64)
            element_time[bases], element_time[bases + 1] = columns["earlier"][slots], columns["time"][slots]
            element_time[place] = time[starts]
            gap = np.diff(element_time, prepend=0).astype(np.float64) / MICROSECONDS_AN_HOUR
            gap[bases] = np.inf  # nothing flows from one key into the next
            since = (time[moment_starts] - element_time[seen]).astype(np.float64) / MICROSECONDS_AN_HOUR
            for at, half_life in enumerate(self.half_lives):
                fade, fade_since = np.exp2(-gap / half_life), np.exp2(-np.maximum(since, 0.0) / half_life)
                for event in range(self.events):
                    begin = element_weight[:, event].astype(np.float64)
                    begin[bases] = columns["faded"][slots, at, event]
                    value = _recur(fade, begin)
                    sums.faded[order, at, event] = (fade_since * value[seen])[moment_of_row]
                    columns["faded"][slots, at, event] = value[last - 1]
            columns["earlier"][slots] = element_time[last - 1]
        if sums.first is not None:
            first = columns["first"][slots][key_of_moment]
            sums.first[order] = np.where(first < time[moment_starts], first, NEVER)[moment_of_row]
        columns["before"][slots] = summed[last - 1] + offset
        columns["now"][slots] = element_weight[last]
        last_run = np.append(first_run[1:], len(group)) - 1
        columns["time"][slots] = np.maximum(time[starts][last_run], columns["time"][slots])

    def peek(self, keys: Ints, times: Ints) -> Sums:
        """What rows at or after the last step's end see, each by itself; the state stays as it is."""
        sums = self._nothing(len(keys))
        slots, known = _find(self.keys, keys)
        rows = np.flatnonzero(known)
        _fill(sums, rows, self._seen(slots[rows], times[rows]))
        if self.base is not None:
            others = np.flatnonzero(~known & (keys != NO_KEY))
            if len(others):
                _fill(sums, others, self.base.peek(keys[others], times[others]))
        return sums

    def _seen(self, slots: Ints, times: Ints) -> Sums:
        columns = self.columns
        time, now, before = columns["time"][slots], columns["now"][slots].astype(np.int64), columns["before"][slots]
        sums = self._nothing(len(slots))
        after = (times > time)[:, None]
        sums.counts[:] = before + np.where(after, now, 0)
        if self.half_lives:
            since = np.maximum(times - time, 0)[:, None] / MICROSECONDS_AN_HOUR
            between = (time - columns["earlier"][slots])[:, None] / MICROSECONDS_AN_HOUR
            for at, half_life in enumerate(self.half_lives):
                faded = columns["faded"][slots, at] * np.exp2(-between / half_life)
                sums.faded[:, at] = np.where(after, (faded + now) * np.exp2(-since / half_life), faded)
        if sums.first is not None:
            first = columns["first"][slots]
            sums.first[:] = np.where(first < times, first, NEVER)
        return sums

    def merge(self, other: "KeyedSums") -> None:
        """Take in the sums of other events: counts add up, and fading sums do once both are brought to one moment."""
        other = other.flat()
        if not len(other.keys):
            return
        theirs = other.columns
        slots = self._slots(other.keys, theirs["time"])
        mine = {name: values[slots] for name, values in self.columns.items()}
        time = np.maximum(mine["time"], theirs["time"])
        now = sum(np.where((side["time"] == time)[:, None], side["now"].astype(np.int64), 0) for side in (mine, theirs))
        total = sum(side["now"].astype(np.int64) + side["before"] for side in (mine, theirs))
        self.columns["now"][slots], self.columns["before"][slots], self.columns["time"][slots] = now, total - now, time
        if self.half_lives:
            # Each side as of the last moment before `time` at which either had anything.
            ends = [np.where(side["time"] < time, side["time"], side["earlier"]) for side in (mine, theirs)]
            earlier = np.maximum(*ends)
            faded = np.zeros_like(mine["faded"])
            for side, end in zip((mine, theirs), ends, strict=True):
                for at, half_life in enumerate(self.half_lives):

                    def fade(gap: Ints, half_life: float = half_life) -> Floats:
                        return np.exp2(-gap.astype(np.float64) / MICROSECONDS_AN_HOUR / half_life)[:, None]

                    value = side["faded"][:, at] * fade(end - side["earlier"])
                    value = value + np.where((side["time"] < time)[:, None], side["now"], 0)
                    faded[:, at] += value * fade(earlier - end)
            self.columns["faded"][slots], self.columns["earlier"][slots] = faded, earlier
        if self.tells_first:
            self.columns["first"][slots] = np.minimum(mine["first"], theirs["first"])

    def forget(self, keys: Ints) -> None:
        """Drop the entries of `keys`, as if nothing had ever happened under them."""
        whole = self.flat()
        kept = ~np.isin(whole.keys, keys)
        self.base = None
        self.keys, self.columns = whole.keys[kept], {name: values[kept] for name, values in whole.columns.items()}

    def flat(self) -> "KeyedSums":
        """The same sums without a base, keys ascending."""
        if self.base is None:
            return self
        base = self.base.flat()
        if not len(self.keys):
            return base
        return self._over(base)

    def _over(self, base: "KeyedSums") -> "KeyedSums":
        """The own entries and, where those lack a key, the ones of the single layer `base`; what lies under both stays."""
        whole = KeyedSums(self.events, self.half_lives, first=self.tells_first, base=base.base)
        slots, in_base = _find(base.keys, self.keys)
        new = ~in_base
        place = slots + np.cumsum(new) - new  # (K,) of the own keys among all
        of_base = np.ones(len(base.keys) + int(new.sum()), dtype=np.bool_)
        of_base[place[new]] = False

        def joined(theirs: NDArray[Any], own: NDArray[Any]) -> NDArray[Any]:
            values = np.empty((len(of_base), *own.shape[1:]), own.dtype)
            values[of_base] = theirs
            values[place] = own
            return values

        whole.keys = joined(base.keys, self.keys)
        whole.columns = {name: joined(base.columns[name], values) for name, values in self.columns.items()}
        return whole

    def between(self, low: int, high: int) -> "KeyedSums":
        """The entries with low <= key < high, layer by layer, as views."""
        start = int(np.searchsorted(self.keys, low)) if low < 1 << 63 else len(self.keys)
        stop = int(np.searchsorted(self.keys, high)) if high < 1 << 63 else len(self.keys)
        between = KeyedSums(self.events, self.half_lives, first=self.tells_first)
        between.keys = self.keys[start:stop]
        between.columns = {name: values[start:stop] for name, values in self.columns.items()}
        between.base = self.base.between(low, high) if self.base is not None else None
        return between

    def _nothing(self, rows: int) -> Sums:
        return Sums(
            np.zeros((rows, self.events), dtype=np.int64),
            np.zeros((rows, len(self.half_lives), self.events)),
            np.full(rows, NEVER, dtype=np.int64) if self.tells_first else None,
        )

    def _slots(self, keys: Ints, first_times: Ints) -> Ints:
        """Positions of ascending `keys` in the state; those not there come from the base, or begin with an empty past."""
        if self.is_layer:  # what changes is to be saved by itself
            pass
        elif len(self.keys) > self.most_loose:
            layer = KeyedSums(self.events, self.half_lives, first=self.tells_first, base=self.base)
            layer.keys, layer.columns = self.keys, self.columns
            while layer.base is not None and len(layer.base.keys) < _GROWTH * len(layer.keys):
                layer = layer._over(layer.base)
            self.base = layer
            self.keys, self.columns = self.keys[:0], {name: values[:0] for name, values in self.columns.items()}
        slots, known = _find(self.keys, keys)
        if known.all():
            return slots
        new = ~known
        fresh = keys[new]
        begin: Arrays = {name: np.zeros((len(fresh), *values.shape[1:]), values.dtype) for name, values in self.columns.items()}
        for name in ("time", "earlier", "first"):
            if name in begin:
                begin[name] = first_times[new].astype(np.int64)
        if self.base is not None:
            self.base._give(fresh, begin)
        at = slots[new]
        self.keys = np.insert(self.keys, at, fresh)
        self.columns = {name: np.insert(values, at, begin[name], axis=0) for name, values in self.columns.items()}
        return slots + np.cumsum(new) - new

    def _give(self, keys: Ints, columns: Arrays) -> None:
        """Put the entries of `keys` (N,) into `columns`, those of the newest layer that has them; others stay."""
        if self.base is not None:
            self.base._give(keys, columns)
        there, is_there = _find(self.keys, keys)
        for name, values in columns.items():
            values[is_there] = self.columns[name][there[is_there]]


def _fill(sums: Sums, rows: Ints, values: Sums) -> None:
    sums.counts[rows] = values.counts
    sums.faded[rows] = values.faded
    if sums.first is not None and values.first is not None:
        sums.first[rows] = values.first


def _find(known: Ints, keys: Ints) -> tuple[Ints, Bools]:
    """Positions of `keys` in ascending `known` (where to insert, if absent), and whether they are there."""
    slots = np.searchsorted(known, keys)
    is_known = slots < len(known)
    is_known[is_known] = known[slots[is_known]] == keys[is_known]
    return slots, is_known


def _by_key_then_time(keys: Ints, times: Ints) -> Ints:
    """Row numbers sorted by (key, time); rows without a key are left out."""
    rows: Ints = np.arange(len(keys), dtype=np.int64)
    if len(times) and (np.diff(times) < 0).any():
        rows = np.argsort(times, kind="stable")
    rows = rows[keys[rows] != NO_KEY]
    return rows[np.argsort(keys[rows], kind="stable")]


def _recur(fade: Floats, begin: Floats) -> Floats:
    """x_i = begin_i + fade_i x_{i-1}, x_{-1} = 0."""
    bands = np.empty((2, len(fade)), order="F")
    bands[0] = 1.0
    bands[1, :-1] = -fade[1:]
    bands[1, -1] = 0.0
    solved: Floats = dtbsv(1, bands, begin, lower=1, diag=1)
    return solved
