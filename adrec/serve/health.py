"""How promises hold: clicks and conversions that lists promised, against those that came, per arm and day.

The promise of an impression is what its list gave: the probabilities of a click and of a conversion. Only impressions that
carry one count, and of clicks and conversions the first on each of them. Kept: three numbers of 8 bytes an impression, for
the newest days alone.
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
from adrec.schema import CONVERSION_SCORE
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
    """promised over observed clicks of impressions that promised: 1 is right, 2 is twice too much; None without clicks"""
    low: float | None
    high: float | None
    """its interval at 95 %: the observed clicks are taken for Poisson (Garwood 1936)"""
    promised_conversions: float
    conversions: int
    conversion_ratio: float | None
    """as `ratio`, of conversions. They come late: the newest days promise what has not come yet"""
    conversion_low: float | None
    conversion_high: float | None
    conversion_rate: float | None
    """conversions of a click"""
    value: float
    """what the conversions were worth"""


class _Sums(NamedTuple):
    """Places in the sums of an arm on a day."""

    impressions: int = 0
    came: slice = slice(1, 3)
    """clicks, conversions"""
    promising: slice = slice(3, 5)
    """impressions that promised a click, a conversion"""
    promised: slice = slice(5, 7)
    """the sums of those promises"""
    kept: slice = slice(7, 9)
    """clicks and conversions that came of them"""
    micros: int = 9
    """millionths of value"""


_SUMS = _Sums()
_PROMISES = ("score", CONVERSION_SCORE)


@dataclass
class _Day:
    """Impressions of one day: by arm, and which of them were clicked and converted."""

    shown: dict[str, Counts] = field(default_factory=dict)
    """of an impression 1 if it promised a click, and 2 more if it promised a conversion"""
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    """arm → (10,) see `_Sums`"""
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
        self._show(events, key, is_kind["impression"])
        for place, kind in enumerate(("click", "conversion")):
            if is_kind[kind].any():
                self._act(place, key[is_kind[kind]], in_micros(events["value"])[is_kind[kind]])

    def rows(self) -> Iterator[Row]:
        """Every arm of every day, the oldest first."""
        for day, held in sorted(self._days.items()):
            for arm, sums in sorted(held.sums.items()):
                clicks, conversions = sums[_SUMS.came]
                of_clicks, of_conversions = map(_held, *(sums[part] for part in (_SUMS.promising, _SUMS.promised, _SUMS.kept)))
                yield Row(
                    arm=arm,
                    day=str(np.datetime64(day, "D")),
                    impressions=int(sums[_SUMS.impressions]),
                    promised=float(sums[_SUMS.promised][0]),
                    clicks=int(clicks),
                    ratio=of_clicks.ratio,
                    low=of_clicks.low,
                    high=of_clicks.high,
                    promised_conversions=float(sums[_SUMS.promised][1]),
                    conversions=int(conversions),
                    conversion_ratio=of_conversions.ratio,
                    conversion_low=of_conversions.low,
                    conversion_high=of_conversions.high,
                    conversion_rate=float(conversions / clicks) if clicks else None,
                    value=float(sums[_SUMS.micros]) / 1e6,
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

    def _show(self, events: pa.Table, key: np.ndarray, is_shown: np.ndarray) -> None:
        promises = np.column_stack([pc.fill_null(events[name], np.nan).to_numpy() for name in _PROMISES])
        rows = np.flatnonzero(is_shown & np.isfinite(promises).any(axis=1))
        if not len(rows):
            return
        some, promises = events.select(["arm", "at"]).take(pa.array(rows)), promises[rows]
        arms = pc.fill_null(some["arm"], "a").combine_chunks().dictionary_encode()
        days, is_promised = some["at"].to_numpy() // _DAY, np.isfinite(promises)
        kinds = is_promised @ np.array([1, 2])
        for day in np.unique(days):
            held = self._days.setdefault(int(day), _Day())
            for number, arm in enumerate(arms.dictionary.tolist()):
                mine = np.flatnonzero((days == day) & (arms.indices.to_numpy() == number))
                shown = held.shown.setdefault(arm, Counts())
                _, first = np.unique(key[rows[mine]], return_index=True)
                new = mine[first[shown.get(key[rows[mine[first]]]) == 0]]
                shown.add(key[rows[new]], kinds[new])
                sums = held.sums.setdefault(arm, np.zeros(10))
                sums[_SUMS.impressions] += len(new)
                sums[_SUMS.promising] += is_promised[new].sum(axis=0)
                sums[_SUMS.promised] += np.nansum(promises[new], axis=0)
        for day in sorted(self._days)[:-DAYS]:
            del self._days[day]

    def _act(self, place: int, key: np.ndarray, micros: np.ndarray) -> None:
        """Clicks (place 0) or conversions (1) of impressions of any day."""
        _, first = np.unique(key, return_index=True)
        key, micros = key[first], micros[first]
        for _, held in sorted(self._days.items(), reverse=True):
            done = (held.clicked, held.converted)[place]
            for arm, shown in held.shown.items():
                promised = shown.get(key)
                fresh = (promised > 0) & (done.get(key) == 0)
                done.add(key[fresh])
                held.sums[arm][_SUMS.came][place] += fresh.sum()
                held.sums[arm][_SUMS.kept][place] += (promised[fresh] >> place & 1).sum()
                if place:
                    held.sums[arm][_SUMS.micros] += float(micros[fresh].sum())
                key, micros = key[promised == 0], micros[promised == 0]


class _Ratio(NamedTuple):
    ratio: float | None
    low: float | None
    high: float | None


def _held(promising: float, promised: float, came: float) -> _Ratio:
    """Promised over observed of so many impressions that promised, with its interval."""
    if not promising:
        return _Ratio(None, None, None)
    low, high = chi2.ppf((1 - _LEVEL) / 2, 2 * came) / 2, chi2.ppf((1 + _LEVEL) / 2, 2 * came + 2) / 2
    return _Ratio(float(promised / came) if came else None, float(promised / high), float(promised / low) if came else None)


def _keys(events: pa.Table) -> np.ndarray:
    """(N,) hashes of what an impression and its clicks have in common."""
    keys = np.zeros(len(events), np.uint64)
    for name in ("request_id", "user_id", "ad_id"):
        keys = mix(keys + hash_strings(events[name].combine_chunks()))
    key: np.ndarray = (keys >> np.uint64(1)).astype(np.int64)
    return key
