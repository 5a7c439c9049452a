"""How promises hold: clicks and conversions that lists promised, against those that came, per arm and day.

The promise of an impression is the score that its list gave. Only impressions that carry it count, and of clicks and
conversions the first on each of them. Kept: three numbers of 8 bytes an impression, for the newest days alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import chi2

from adrec.data.hashing import hash_strings, mix
from adrec.ranking.ledger import Counts
from adrec.serve.store.contract import in_micros

DAYS = 14
"""Days that are told, the newest."""
_DAY = 86_400_000_000
_LEVEL = 0.95


class Row(NamedTuple):
    """One arm on one day (UTC)."""

    arm: str
    day: str
    impressions: int
    promised: float
    """clicks, as the scores say"""
    clicks: int
    ratio: float | None
    """promised over observed clicks: 1 is right, 2 is twice too much; None without clicks"""
    low: float | None
    high: float | None
    """its interval at 95 %: the observed clicks are taken for Poisson (Garwood 1936)"""
    conversions: int
    conversion_rate: float | None
    """conversions of a click"""
    value: float
    """what the conversions were worth"""


@dataclass
class _Day:
    """Impressions of one day: by arm, and which of them were clicked and converted."""

    shown: dict[str, Counts] = field(default_factory=dict)
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    """arm → impressions, promised clicks, clicks, conversions, millionths of value"""
    clicked: Counts = field(default_factory=Counts)
    converted: Counts = field(default_factory=Counts)


class Health:
    """Takes in slices of events in their order; a click may come days later, or twice."""

    def __init__(self) -> None:
        self._days: dict[int, _Day] = {}

    def take(self, events: pa.Table) -> None:
        """Count N events."""
        key = _keys(events)
        named = events["request_id"].is_valid().to_numpy()
        is_kind = {kind: pc.equal(events["kind"], kind).to_numpy() & named for kind in ("impression", "click", "conversion")}
        self._show(events, key, is_kind["impression"] & events["score"].is_valid().to_numpy())
        for kind, column in (("click", 2), ("conversion", 3)):
            if is_kind[kind].any():
                self._act(kind, column, key[is_kind[kind]], in_micros(events["value"])[is_kind[kind]])

    def rows(self) -> Iterator[Row]:
        """Every arm of every day, the oldest first."""
        for day, held in sorted(self._days.items()):
            for arm, (shown, promised, clicks, conversions, value) in sorted(held.sums.items()):
                low, high = chi2.ppf((1 - _LEVEL) / 2, 2 * clicks) / 2, chi2.ppf((1 + _LEVEL) / 2, 2 * clicks + 2) / 2
                yield Row(
                    arm=arm,
                    day=str(np.datetime64(day, "D")),
                    impressions=int(shown),
                    promised=float(promised),
                    clicks=int(clicks),
                    ratio=float(promised / clicks) if clicks else None,
                    low=float(promised / high),
                    high=float(promised / low) if clicks else None,
                    conversions=int(conversions),
                    conversion_rate=float(conversions / clicks) if clicks else None,
                    value=float(value) / 1e6,
                )

    def as_dicts(self) -> list[dict[str, Any]]:
        """`rows` as plain values."""
        return [row._asdict() for row in self.rows()]

    def state(self) -> dict[str, np.ndarray]:
        """Arrays by name, from which `go_on` continues."""
        arrays: dict[str, np.ndarray] = {}
        for day, held in self._days.items():
            counts = {"clicked": held.clicked, "converted": held.converted}
            counts |= {f"shown/{arm}": shown for arm, shown in held.shown.items()}
            for name, counted in counts.items():
                arrays |= {f"{day}/{what}/{name}": values for what, values in counted.state().items()}
            arrays |= {f"{day}/sums/{arm}": sums for arm, sums in held.sums.items()}
        return arrays

    def go_on(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take in what `state` gave. Raises KeyError or ValueError for something else."""
        for name, values in arrays.items():
            day, what, which = name.split("/", 2)
            held = self._days.setdefault(int(day), _Day())
            if what == "sums":
                held.sums[which] = values.copy()
            elif what == "key":
                counted = Counts(values, arrays[f"{day}/count/{which}"])
                if which.startswith("shown/"):
                    held.shown[which.removeprefix("shown/")] = counted
                else:
                    setattr(held, which, counted)

    def forget(self, events: pa.Table) -> None:
        """Drop the traces of N events of somebody; the sums, which tell of nobody, stay."""
        keys = _keys(events)
        for held in self._days.values():
            held.clicked, held.converted, *shown = (
                counted.without(lambda key: np.isin(key, keys))
                for counted in (held.clicked, held.converted, *held.shown.values())
            )
            held.shown = dict(zip(held.shown, shown, strict=True))

    def _show(self, events: pa.Table, key: np.ndarray, mask: np.ndarray) -> None:
        rows = np.flatnonzero(mask)
        if not len(rows):
            return
        some = events.select(["arm", "score", "at"]).take(pa.array(rows))
        arms = pc.fill_null(some["arm"], "a").combine_chunks().dictionary_encode()
        days, scores = some["at"].to_numpy() // _DAY, some["score"].to_numpy()
        for day in np.unique(days):
            held = self._days.setdefault(int(day), _Day())
            for number, arm in enumerate(arms.dictionary.tolist()):
                mine = np.flatnonzero((days == day) & (arms.indices.to_numpy() == number))
                shown = held.shown.setdefault(arm, Counts())
                _, first = np.unique(key[rows[mine]], return_index=True)
                new = mine[first[shown.get(key[rows[mine[first]]]) == 0]]
                shown.add(key[rows[new]])
                held.sums.setdefault(arm, np.zeros(5))[:2] += len(new), scores[new].sum()
        for day in sorted(self._days)[:-DAYS]:
            del self._days[day]

    def _act(self, kind: str, column: int, key: np.ndarray, value: np.ndarray) -> None:
        _, first = np.unique(key, return_index=True)
        key, value = key[first], value[first]
        for _, held in sorted(self._days.items(), reverse=True):
            done = held.clicked if kind == "click" else held.converted
            for arm, shown in held.shown.items():
                mine = shown.get(key) > 0
                fresh = mine & (done.get(key) == 0)
                done.add(key[fresh])
                held.sums[arm][column] += int(fresh.sum())
                if kind == "conversion":
                    held.sums[arm][4] += float(value[fresh].sum())
                key, value = key[~mine], value[~mine]


def _keys(events: pa.Table) -> np.ndarray:
    """(N,) hashes of what an impression and its clicks have in common."""
    keys = np.zeros(len(events), np.uint64)
    for name in ("request_id", "user_id", "ad_id"):
        keys = mix(keys + hash_strings(events[name].combine_chunks()))
    key: np.ndarray = (keys >> np.uint64(1)).astype(np.int64)
    return key
