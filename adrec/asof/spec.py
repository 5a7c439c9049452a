"""Point-in-time counters: which sums a declaration needs, their keys, and the measures taken from them.

Everything counts events at moments strictly before the first moment of the row's request. Rates are smoothed towards the
overall rate of the same past, so nothing is fitted on the future.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adrec.asof.sums import MICROSECONDS_AN_HOUR, NEVER, KeyedSums, Sums
from adrec.schema import COUNTER_PREFIX
from adrec.specs import CounterSpec

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
FIRST = "|first"
"""End of the name of a key's first moment."""
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

    def new_sums(self) -> KeyedSums:
        """Sums of nothing yet."""
        return KeyedSums(len(self.events), self.half_lives, first=self.first)

    def weights(self, weights: Mapping[str, Ints], rows: int) -> Ints:
        """(N, E) the weights of its kinds of events."""
        return np.stack([weights[event] for event in self.events], axis=1) if self.events else np.zeros((rows, 0), np.int64)

    def named(self, sums: Sums) -> dict[str, NDArray[np.generic]]:
        """Sums by their internal names; `<by>|first` holds first moments."""
        results: dict[str, NDArray[np.generic]] = {}
        for at, event in enumerate(self.events):
            results[sum_name(self.by, event, None)] = sums.counts[:, at]
            for window, half_life in enumerate(self.half_lives):
                results[sum_name(self.by, event, half_life)] = sums.faded[:, window, at]
        if sums.first is not None:
            results[first_name(self.by)] = sums.first
        return results


def plan_keys(specs: Iterable[CounterSpec]) -> list[KeyPlan]:
    """The distinct keys that `specs` need, each with the union of what is asked of it."""
    events: dict[tuple[str, ...], set[str]] = {}
    half_lives: dict[tuple[str, ...], set[float]] = {}
    first: set[tuple[str, ...]] = set()

    def want(by: tuple[str, ...], names: Iterable[str], windows: Iterable[float | None] = ()) -> None:
        events.setdefault(by, set()).update(names)
        half_lives.setdefault(by, set()).update(window for window in windows if window is not None)

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


def first_name(by: tuple[str, ...]) -> str:
    """Internal name of a key's first moment."""
    return f"{'+'.join(by)}{FIRST}"


def measure_counters(
    specs: Iterable[CounterSpec],
    sums: Mapping[str, NDArray[np.generic]],
    times: Ints,
    history_measure: Callable[[str, str], Floats],
) -> dict[str, NDArray[np.float32]]:
    """The declared columns, float32 (N,), from sums before `times` (N,), the first moments of the rows' requests.

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
                    # A key that nobody has seen is as new as can be.
                    values = (times - np.where(first == NEVER, times, first)) / MICROSECONDS_AN_HOUR
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


def _canonical(by: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(by))
