"""Point-in-time counters: which sums a declaration needs, their keys, and the measures taken from them.

Everything counts events at moments strictly before `shown_at` and of other requests. Rates are smoothed towards the
overall rate of the same past, so nothing is fitted on the future.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adrec.asof.sums import MICROSECONDS_AN_HOUR, NEVER, NO_KEY, FirstSeen, KeyedSums
from adrec.config.features import CounterSpec
from adrec.data.hashing import mix
from adrec.schema import COUNTER_PREFIX

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SHOWN, LABELLED, CLICKED, CONVERTED = "shown", "labelled", "clicked", "converted"
"""Kinds of events: an impression; one whose click is known; a click; a conversion."""

_NEEDS = {
    "impressions": (SHOWN,),
    "clicks": (CLICKED,),
    "rate": (LABELLED, CLICKED),
    "conversions": (CONVERTED,),
    "conversion_rate": (CLICKED, CONVERTED),
}
_INITIAL_RATE = 0.05
_INITIAL_STRENGTH = 20.0
"""Before anything has happened the overall rate is this; it fades out like so many impressions."""


@dataclass(frozen=True)
class KeyPlan:
    """All that is summed under one key."""

    by: tuple[str, ...]
    events: tuple[str, ...]
    half_lives: tuple[float, ...]
    first: bool

    @property
    def of_user(self) -> bool:
        """True where the key holds one user's rows only, so that users can be worked through in parts."""
        return "user" in self.by

    def sum_names(self) -> list[str]:
        """Names of its sums, all time first, then each half-life."""
        return [sum_name(self.by, event, window) for window in (None, *self.half_lives) for event in self.events]


def plan_keys(specs: Iterable[CounterSpec], *, user_clicks: bool = False) -> list[KeyPlan]:
    """The distinct keys that `specs` need, each with the union of what is asked of it.

    `user_clicks` adds the user's all-time clicks (the length of a history).
    """
    events: dict[tuple[str, ...], set[str]] = {}
    half_lives: dict[tuple[str, ...], set[float]] = {}
    first: set[tuple[str, ...]] = set()

    def want(by: tuple[str, ...], names: Iterable[str], windows: Iterable[float | None] = ()) -> None:
        events.setdefault(by, set()).update(names)
        half_lives.setdefault(by, set()).update(window for window in windows if window is not None)

    if user_clicks:
        want(("user",), [CLICKED])
    for spec in specs:
        by = _canonical(spec.by)
        for measure in spec.measures:
            if measure == "hours_since_first":
                want(by, [])
                first.add(by)
            elif measure in _NEEDS:
                want(by, _NEEDS[measure], spec.half_lives_hours)
                if measure.endswith("rate"):
                    want((), _NEEDS[measure])
    order = {name: at for at, name in enumerate((SHOWN, LABELLED, CLICKED, CONVERTED))}
    return [
        KeyPlan(by, tuple(sorted(events[by], key=order.__getitem__)), tuple(sorted(half_lives[by])), by in first)
        for by in sorted(events)
    ]


def counter_names(specs: Iterable[CounterSpec]) -> list[str]:
    """Names of the columns that `specs` declare, in order."""
    names: list[str] = []
    for spec in specs:
        for measure in spec.measures:
            windows: Sequence[float | None] = spec.half_lives_hours if measure in _NEEDS else [None]
            names.extend(counter_name(spec, measure, window) for window in windows)
    return list(dict.fromkeys(names))


def counter_name(spec: CounterSpec, measure: str, half_life: float | None) -> str:
    """`counter_user_x_category_rate_24h`."""
    window = "" if half_life is None else f"_{half_life:g}h"
    return f"{COUNTER_PREFIX}{'_x_'.join(spec.by) or 'all'}_{measure}{window}"


def sum_name(by: tuple[str, ...], event: str, half_life: float | None) -> str:
    """Internal name of one sum."""
    return f"{'+'.join(by)}|{event}|{'all' if half_life is None else f'{half_life:g}h'}"


def make_key(codes: Sequence[Ints], rows: int) -> Ints:
    """One int64 >= 0 for the values of all `codes` (N,) together, NO_KEY where one is missing (negative).

    Up to two columns pack without loss (codes below 2^31); more are hashed to 63 bits.
    """
    if not codes:
        return np.zeros(rows, dtype=np.int64)
    missing = np.logical_or.reduce([code < 0 for code in codes])
    key = codes[0].astype(np.int64)
    if len(codes) == 2:
        key = (key << 32) | codes[1]
    elif len(codes) > 2:
        bits = np.zeros(rows, dtype=np.uint64)
        for code in codes:
            bits = mix(bits + code.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        key = (bits >> np.uint64(1)).astype(np.int64)
    return np.where(missing, NO_KEY, key)


class KeyCounters:
    """The state of one plan: its sums and, where asked for, its first moments."""

    def __init__(self, plan: KeyPlan) -> None:
        self.plan = plan
        self.sums = KeyedSums(len(plan.events), plan.half_lives) if plan.events else None
        self.firsts = FirstSeen() if plan.first else None

    def step(
        self, keys: Ints, times: Ints, requests: Ints, weights: Mapping[str, Ints], shown: NDArray[np.bool_]
    ) -> dict[str, NDArray[np.generic]]:
        """Sums before each of N rows by their internal names; `<by>|first` holds first moments (`shown` rows only)."""
        counts = faded = first = None
        if self.sums is not None:
            stacked = np.stack([weights[event] for event in self.plan.events], axis=1)
            counts, faded = self.sums.step(keys, times, stacked)
        if self.firsts is not None:
            first = np.full(len(keys), NEVER, dtype=np.int64)
            first[shown] = self.firsts.step(keys[shown], times[shown], requests[shown])
        return self._named(counts, faded, first)

    def peek(self, keys: Ints, times: Ints) -> dict[str, NDArray[np.generic]]:
        """As `step` for rows of new requests after the last step, each by itself; the state stays as it is."""
        counts, faded = self.sums.peek(keys, times) if self.sums is not None else (None, None)
        return self._named(counts, faded, self.firsts.peek(keys, times) if self.firsts is not None else None)

    def _named(self, counts: Ints | None, faded: Floats | None, first: Ints | None) -> dict[str, NDArray[np.generic]]:
        results: dict[str, NDArray[np.generic]] = {}
        if counts is not None and faded is not None:
            for at, event in enumerate(self.plan.events):
                results[sum_name(self.plan.by, event, None)] = counts[:, at]
                for window, half_life in enumerate(self.plan.half_lives):
                    results[sum_name(self.plan.by, event, half_life)] = faded[:, window, at]
        if first is not None:
            results[first_name(self.plan.by)] = first
        return results

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The state as plain arrays."""
        parts = {"sums": self.sums, "firsts": self.firsts}
        return {f"{name}/{key}": array for name, part in parts.items() if part for key, array in part.to_arrays().items()}

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state saved by `to_arrays`."""
        for name, part in (("sums", self.sums), ("firsts", self.firsts)):
            if part is not None:
                part.restore(
                    {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}
                )


def first_name(by: tuple[str, ...]) -> str:
    """Internal name of a key's first moment."""
    return f"{'+'.join(by)}|first"


def measure_counters(
    specs: Iterable[CounterSpec],
    sums: Mapping[str, NDArray[np.generic]],
    times: Ints,
    history_measure: Callable[[str, str], Floats],
) -> dict[str, NDArray[np.float32]]:
    """The declared columns, float32 (N,), from the sums of other requests' earlier events.

    rate = (clicks + strength x overall rate) / (impressions with a known click + strength), the overall rate being
    (all clicks so far + 1) / (all such impressions so far + 20). conversion_rate likewise, per click.
    `history_measure(column, measure)` answers history_count and history_share.
    """
    columns: dict[str, NDArray[np.float32]] = {}
    for spec in specs:
        by = _canonical(spec.by)

        def total(event: str, half_life: float | None, key: tuple[str, ...] = by) -> Floats:
            return np.asarray(sums[sum_name(key, event, half_life)], dtype=np.float64)

        for measure in spec.measures:
            for half_life in spec.half_lives_hours if measure in _NEEDS else [None]:
                if measure.startswith("history_"):
                    values = history_measure(spec.by[0], measure)
                elif measure == "hours_since_first":
                    first = np.asarray(sums[first_name(by)], dtype=np.int64)
                    hours = (times - np.where(first == NEVER, times, first)) / MICROSECONDS_AN_HOUR
                    values = np.where(first == NEVER, np.nan, hours)
                elif measure.endswith("rate"):
                    tried, done = _NEEDS[measure]
                    overall = total(done, None, ()) + _INITIAL_STRENGTH * _INITIAL_RATE
                    overall = overall / (total(tried, None, ()) + _INITIAL_STRENGTH)
                    strength = spec.prior_strength
                    values = (total(done, half_life) + strength * overall) / (total(tried, half_life) + strength)
                else:
                    values = total(_NEEDS[measure][0], half_life)
                if spec.log1p and not measure.endswith(("rate", "share")):
                    values = np.log1p(values)
                columns[counter_name(spec, measure, half_life)] = values.astype(np.float32)
    return columns


def history_matches(codes: Ints, ad: Ints, offsets: Ints, values: NDArray[np.integer], measure: str) -> Floats:
    """history_count or history_share of N rows: ads of each history whose code (A,) is that of the row's `ad`.

    Row i's history is values[offsets[i]:offsets[i + 1]], offsets (N + 1,). Ads without a code match nothing.
    """
    of_item = np.repeat(codes[ad], np.diff(offsets))
    same = np.concatenate([[0], np.cumsum((codes[values] == of_item) & (of_item >= 0))])
    count: Floats = (same[offsets[1:]] - same[offsets[:-1]]).astype(np.float64)
    return np.divide(count, np.maximum(np.diff(offsets), 1)) if measure == "history_share" else count


def _canonical(by: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(by))
