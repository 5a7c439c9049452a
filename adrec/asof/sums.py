"""Running sums by key, read strictly before each row's moment: the engine under every counter.

A state holds one entry a key. `step` takes the next rows in time order, tells each row what its key had gathered at
earlier moments, and moves the state on. Any cutting of the rows into steps gives the same bits, even through a moment
that several rows share, because a step starts from the last moment's parts and not from their total.

Fading sums follow x_i = w_i + 2^(-(t_i - t_{i-1}) / h) x_{i-1}, one element a distinct (key, moment). That recurrence is a
bidiagonal triangular system, so LAPACK's neighbour BLAS `dtbsv` runs it at compiled speed, in order and without the
overflow or cancellation of rescaled prefix sums.

Cost: one sort of the step's keys, then linear passes. Memory: 8 x (3 + events x (2 + half-lives)) bytes a key.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dtbsv

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[np.generic]]

MICROSECONDS_AN_HOUR = 3_600_000_000.0
NEVER = np.iinfo(np.int64).max
NO_KEY = -1
"""Rows with this key (a missing value) add nothing and see nothing."""


class KeyedSums:
    """All-time and fading sums of E kinds of events, by key.

    K keys, E events, H half-lives (hours).
    """

    def __init__(self, events: int, half_lives: Sequence[float] = ()) -> None:
        self.half_lives = tuple(half_lives)
        self.keys: Ints = np.zeros(0, dtype=np.int64)  # (K,) ascending
        self.time: Ints = np.zeros(0, dtype=np.int64)  # (K,) the key's last moment, microseconds
        self.earlier_time: Ints = np.zeros(0, dtype=np.int64)  # (K,) the moment before that
        self.now: Ints = np.zeros((0, events), dtype=np.int64)  # (K, E) gathered at the last moment itself
        self.before: Ints = np.zeros((0, events), dtype=np.int64)  # (K, E) gathered strictly before it
        self.faded: Floats = np.zeros((0, len(self.half_lives), events))  # (K, H, E) up to earlier_time, as of then

    def step(self, keys: Ints, times: Ints, weights: Ints) -> tuple[Ints, Floats]:
        """Sums at moments strictly before each row's, then take the rows in.

        keys (N,), times (N,) microseconds, none before an earlier step's, weights (N, E).
        Returns counts int64 (N, E) and faded float64 (N, H, E).
        """
        rows = len(keys)
        counts = np.zeros((rows, self.now.shape[1]), dtype=np.int64)
        faded = np.zeros((rows, len(self.half_lives), self.now.shape[1]))
        order = _by_key_then_time(keys, times)
        if not len(order):
            return counts, faded
        key, time = keys[order], times[order]
        new_key = np.concatenate([[True], key[1:] != key[:-1]])
        new_run = new_key | np.concatenate([[True], time[1:] != time[:-1]])  # a run: one key at one moment
        starts = np.flatnonzero(new_run)
        run_weights = np.add.reduceat(weights[order], starts, axis=0)
        first_run = np.flatnonzero(new_key[starts])  # (G,) each key's first run
        group = np.cumsum(new_key[starts]) - 1  # (R,) run -> key
        slots = self._slots(key[starts][first_run], time[starts][first_run])

        # Elements of a key: its state up to the moment before the last, its last moment, then the step's runs. A first
        # run at that same last moment is folded into it.
        folded = time[starts][first_run] == self.time[slots]
        sizes = np.bincount(group) + 2 - folded
        bases = np.cumsum(sizes) - sizes
        place = bases[group] + 2 + np.arange(len(starts)) - first_run[group] - folded[group]
        element_time = np.empty(int(sizes.sum()), dtype=np.int64)
        element_weight = np.zeros((len(element_time), weights.shape[1]), dtype=np.int64)
        element_time[bases], element_time[bases + 1] = self.earlier_time[slots], self.time[slots]
        element_time[place] = time[starts]
        element_weight[bases + 1] = self.now[slots]
        element_weight[place] += run_weights

        summed = np.cumsum(element_weight, axis=0)
        offset = self.before[slots] - summed[bases]
        run_of_row = np.cumsum(new_run) - 1
        counts[order] = (summed[place - 1] + offset[group])[run_of_row]
        last = bases + sizes - 1
        gap = np.diff(element_time, prepend=0).astype(np.float64) / MICROSECONDS_AN_HOUR
        gap[bases] = np.inf  # nothing flows from one key into the next
        for at, half_life in enumerate(self.half_lives):
            fade = np.exp2(-gap / half_life)
            for event in range(weights.shape[1]):
                begin = element_weight[:, event].astype(np.float64)
                begin[bases] = self.faded[slots, at, event]
                value = _recur(fade, begin)
                faded[order, at, event] = (fade[place] * value[place - 1])[run_of_row]
                self.faded[slots, at, event] = value[last - 1]
        self.before[slots] = summed[last - 1] + offset
        self.now[slots] = element_weight[last]
        self.time[slots], self.earlier_time[slots] = element_time[last], element_time[last - 1]
        return counts, faded

    def peek(self, keys: Ints, times: Ints) -> tuple[Ints, Floats]:
        """What `step` would tell rows at or after the last step's end, each by itself; the state stays as it is."""
        counts = np.zeros((len(keys), self.now.shape[1]), dtype=np.int64)
        faded = np.zeros((len(keys), len(self.half_lives), self.now.shape[1]))
        slots, known = _find(self.keys, keys)
        slots = slots[known]
        after = (times[known] > self.time[slots])[:, None]
        counts[known] = self.before[slots] + np.where(after, self.now[slots], 0)
        since_last = np.maximum(times[known] - self.time[slots], 0)[:, None] / MICROSECONDS_AN_HOUR
        between = (self.time[slots] - self.earlier_time[slots])[:, None] / MICROSECONDS_AN_HOUR
        for at, half_life in enumerate(self.half_lives):
            before = self.faded[slots, at] * np.exp2(-between / half_life)
            faded[known, at] = np.where(after, (before + self.now[slots]) * np.exp2(-since_last / half_life), before)
        return counts, faded

    def _slots(self, keys: Ints, first_times: Ints) -> Ints:
        """Positions of ascending `keys` in the state, new ones inserted with an empty past."""
        slots, known = _find(self.keys, keys)
        if not known.all():
            new = ~known
            at = slots[new]
            self.keys = np.insert(self.keys, at, keys[new])
            self.time = np.insert(self.time, at, first_times[new])
            self.earlier_time = np.insert(self.earlier_time, at, first_times[new])
            self.now = np.insert(self.now, at, 0, axis=0)
            self.before = np.insert(self.before, at, 0, axis=0)
            self.faded = np.insert(self.faded, at, 0.0, axis=0)
            slots = slots + np.cumsum(new) - new
        return slots

    def to_arrays(self) -> Arrays:
        """The state as plain arrays."""
        names = ("keys", "time", "earlier_time", "now", "before", "faded")
        return {name: getattr(self, name) for name in names}

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state saved by `to_arrays`."""
        for name, values in arrays.items():
            setattr(self, name, np.array(values))


class FirstSeen:
    """When each key was first seen, and when first by another request than that one."""

    def __init__(self) -> None:
        self.keys: Ints = np.zeros(0, dtype=np.int64)
        self.first: Ints = np.zeros(0, dtype=np.int64)  # (K,) microseconds
        self.request: Ints = np.zeros(0, dtype=np.int64)  # (K,) a request of that moment
        self.other: Ints = np.zeros(0, dtype=np.int64)  # (K,) first moment of any other request, NEVER if none

    def step(self, keys: Ints, times: Ints, requests: Ints) -> Ints:
        """First moment before each row's at which another request had the key, NEVER if none. Then take the rows in.

        keys, times, requests: (N,) in time order. Returns int64 (N,).
        """
        seen = np.full(len(keys), NEVER, dtype=np.int64)
        order = _by_key_then_time(keys, times)
        if not len(order):
            return seen
        key, time, request = keys[order], times[order], requests[order]
        new_key = np.concatenate([[True], key[1:] != key[:-1]])
        starts = np.flatnonzero(new_key)
        group = np.cumsum(new_key) - 1
        slots, known = _find(self.keys, key[starts])
        if not known.all():
            new = ~known
            at = slots[new]
            self.keys = np.insert(self.keys, at, key[starts][new])
            self.first = np.insert(self.first, at, time[starts][new])
            self.request = np.insert(self.request, at, request[starts][new])
            self.other = np.insert(self.other, at, NEVER)
            slots = slots + np.cumsum(new) - new
        differs = np.where(request != self.request[slots][group], time, NEVER)
        self.other[slots] = np.minimum(self.other[slots], np.minimum.reduceat(differs, starts))
        moment = np.where(request == self.request[slots][group], self.other[slots][group], self.first[slots][group])
        seen[order] = np.where(moment < time, moment, NEVER)
        return seen

    def peek(self, keys: Ints, times: Ints) -> Ints:
        """First moments before each row's, for rows of new requests; the state stays as it is."""
        seen = np.full(len(keys), NEVER, dtype=np.int64)
        slots, known = _find(self.keys, keys)
        first = self.first[slots[known]]
        seen[known] = np.where(first < times[known], first, NEVER)
        return seen

    def to_arrays(self) -> Arrays:
        """The state as plain arrays."""
        return {name: getattr(self, name) for name in ("keys", "first", "request", "other")}

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state saved by `to_arrays`."""
        for name, values in arrays.items():
            setattr(self, name, np.array(values))


def _find(known: Ints, keys: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Positions of `keys` in ascending `known` (where to insert, if absent), and whether they are there."""
    slots = np.searchsorted(known, keys)
    found = slots < len(known)
    found[found] = known[slots[found]] == keys[found]
    return slots, found


def _by_key_then_time(keys: Ints, times: Ints) -> Ints:
    """Row numbers sorted by (key, time); rows without a key are left out."""
    rows: Ints = np.arange(len(keys), dtype=np.int64)
    if len(times) and (np.diff(times) < 0).any():
        rows = np.argsort(times, kind="stable")
    rows = rows[keys[rows] != NO_KEY]
    return rows[_stable_order(keys[rows])]


def _stable_order(keys: Ints) -> Ints:
    """A stable argsort of keys >= 0. Where key and row number fit one word, sorting that word is several times faster."""
    if not len(keys):
        return np.zeros(0, dtype=np.int64)
    high, low = keys >> 32, keys & 0xFFFFFFFF
    high -= high.min()
    width = int(low.max()) + 1
    bits = len(keys).bit_length()
    if (int(high.max()) + 1) * width < 1 << (63 - bits):
        word = ((high * width + low) << bits) | np.arange(len(keys))
        word.sort()
        return word & ((1 << bits) - 1)
    return np.argsort(keys, kind="stable")


def _recur(fade: Floats, begin: Floats) -> Floats:
    """x_i = begin_i + fade_i x_{i-1}, x_{-1} = 0."""
    bands = np.empty((2, len(fade)), order="F")
    bands[0] = 1.0
    bands[1, :-1] = -fade[1:]
    bands[1, -1] = 0.0
    solved: Floats = dtbsv(1, bands, begin, lower=1, diag=1)
    return solved
