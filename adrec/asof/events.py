"""Impressions as weighted events, with clicks and conversions moved to the moment when they happened."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adrec.asof.spec import CLICKED, CONVERTED, LABELLED, SHOWN, KeyCounters, first_name, make_key
from adrec.asof.sums import NO_KEY
from adrec.data.hashing import mix

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class EventRows(NamedTuple):
    """N events."""

    time: Ints
    """microseconds"""
    request: Ints
    """hash of the request"""
    codes: dict[str, Ints]
    """by-name -> codes, -1 where missing"""
    weights: dict[str, Ints]
    """kind of event -> 0 or 1"""
    shown: Bools
    """True for impressions, False for what happened to them later"""


def impressions(time: Ints, request: Ints, codes: dict[str, Ints], click: Ints, conversion: Ints) -> EventRows:
    """One event an impression. click and conversion are 1, 0, or -1 where unknown."""
    weights = {
        SHOWN: np.ones(len(time), dtype=np.int64),
        LABELLED: (click >= 0).astype(np.int64),
        CLICKED: (click == 1).astype(np.int64),
        CONVERTED: (conversion == 1).astype(np.int64),
    }
    return EventRows(time, request, codes, weights, np.ones(len(time), dtype=np.bool_))


def move_late(rows: EventRows, late: Mapping[str, Ints]) -> tuple[EventRows, EventRows]:
    """Take clicks and conversions with a later moment of their own out of `rows`; return both parts.

    `late` maps a kind of event to its moments (N,). A moment at or before the impression changes nothing.
    """
    weights = dict(rows.weights)
    parts = [take(rows, np.zeros(0, dtype=np.int64))]
    for kind, moments in late.items():
        moved = np.flatnonzero((weights[kind] > 0) & (moments > rows.time))
        part = take(rows, moved)
        nothing = {name: np.zeros(len(moved), dtype=np.int64) for name in weights}
        nothing[kind] = part.weights[kind]
        parts.append(part._replace(time=moments[moved], weights=nothing, shown=np.zeros(len(moved), dtype=np.bool_)))
        weights[kind] = weights[kind].copy()
        weights[kind][moved] = 0
    return rows._replace(weights=weights), join(parts)


def take(rows: EventRows, index: Ints | Bools) -> EventRows:
    """Some events, by position or mask."""
    return EventRows(
        rows.time[index],
        rows.request[index],
        {name: code[index] for name, code in rows.codes.items()},
        {name: weight[index] for name, weight in rows.weights.items()},
        rows.shown[index],
    )


def join(parts: Sequence[EventRows]) -> EventRows:
    """Events one after another."""
    first = parts[0]
    return EventRows(
        np.concatenate([part.time for part in parts]),
        np.concatenate([part.request for part in parts]),
        {name: np.concatenate([part.codes[name] for part in parts]) for name in first.codes},
        {name: np.concatenate([part.weights[name] for part in parts]) for name in first.weights},
        np.concatenate([part.shown for part in parts]),
    )


def advance(
    counters: Iterable[KeyCounters], rows: EventRows, late: EventRows, until: int
) -> tuple[dict[str, NDArray[np.generic]], EventRows]:
    """Step every counter over `rows` and those of `late` that happen by `until`.

    Returns the sums before each of `rows`, and the late events that are still to come.
    """
    ready = late.time <= until
    events = join([rows, take(late, ready)]) if ready.any() else rows
    count = len(rows.time)
    sums: dict[str, NDArray[np.generic]] = {}
    for counter in counters:
        key = make_key([events.codes[name] for name in counter.plan.by], len(events.time))
        found = counter.step(key, events.time, events.request, events.weights, events.shown)
        sums.update({name: values[:count] for name, values in found.items()})
    return sums, take(late, ~ready)


def own_sums(counters: Iterable[KeyCounters], rows: EventRows, late: EventRows) -> dict[str, NDArray[np.generic]]:
    """What each row's own request had gathered before it under each counter's key: to be taken off the sums.

    `rows` and `late` hold requests with rows at several moments, whole.
    """
    events = join([rows, late])
    sums: dict[str, NDArray[np.generic]] = {}
    for counter in counters:
        if counter.sums is None:
            continue
        by = counter.plan.by
        key = make_key([events.codes[name] for name in by], len(events.time))
        bits = mix(mix(key.astype(np.uint64)) ^ events.request.astype(np.uint64))
        own = np.where(key == NO_KEY, NO_KEY, (bits >> np.uint64(1)).astype(np.int64))
        found = KeyCounters(counter.plan).step(own, events.time, events.request, events.weights, events.shown)
        found.pop(first_name(by), None)
        sums.update({name: values[: len(rows.time)] for name, values in found.items()})
    return sums


def events_to_arrays(rows: EventRows) -> dict[str, NDArray[np.generic]]:
    """Events as plain arrays."""
    arrays: dict[str, NDArray[np.generic]] = {"time": rows.time, "request": rows.request, "shown": rows.shown}
    arrays.update({f"code/{name}": code for name, code in rows.codes.items()})
    arrays.update({f"weight/{name}": weight for name, weight in rows.weights.items()})
    return arrays


def events_from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> EventRows:
    """The inverse of `events_to_arrays`."""

    def group(prefix: str) -> dict[str, Ints]:
        return {name.removeprefix(prefix): np.asarray(array) for name, array in arrays.items() if name.startswith(prefix)}

    return EventRows(
        np.asarray(arrays["time"]), np.asarray(arrays["request"]), group("code/"), group("weight/"), np.asarray(arrays["shown"])
    )
