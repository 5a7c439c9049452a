"""What the events of a store add up to over one catalogue: caps, budgets, counters, histories, and how promises hold.

Events are taken in by slices, by one thread at a time. What requests read of it is replaced and never changed while they
read: nobody waits for a slice. About 100,000 events a second; of an event nothing is kept but what it adds to.
"""

import json
import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.asof.keys import codes_of
from adrec.asof.reader import AsOf
from adrec.data.arrays import combined
from adrec.data.hashing import hash_strings, mix
from adrec.ranking.ledger import Counts, Ledger, Shown
from adrec.serve.health import Health
from adrec.serve.state.learning import codes_of_events, learn
from adrec.serve.state.live import Live
from adrec.serve.store.contract import Slice, Totals, in_micros

_logger = logging.getLogger("adrec.serve")
_USER_BITS = 38
_ROOM = 1 << 20
"""Ads and campaigns that a ledger has keys for at least, so that a new ad changes no key."""
_UNNAMED = 1 << _USER_BITS
"""Of events that name no user: no request is counted under it."""


class Unmatched(NamedTuple):
    """Of N events, (N,) masks."""

    late: np.ndarray
    """of a moment within the log: it is kept, and counted by the log that has it"""
    unmatched: np.ndarray
    """a click without an impression, or a conversion without a click, that this server knows"""


def user_numbers(ids: pa.Array) -> np.ndarray:
    """(N,) by which the ledger knows users: 38 bits of their stable hash, so that no list of users is kept.

    Of a million users with events one in 270,000 shares the caps of another. Users without a name have one that none is.
    """
    codes = codes_of(ids, "user_id")
    return np.where(codes < 0, _UNNAMED, codes >> (63 - _USER_BITS))


class Tally:
    """Sums of events up to number `last`."""

    def __init__(self, live: Live, removed: Totals, *, counts_lists: bool, epoch: int, definition: str) -> None:
        """`removed`: what earlier events added up to, which are no more. `counts_lists`: some policy limits a user's lists.

        epoch: of the store whose events are counted; definition: of what is summed, for a snapshot.
        """
        self.asof, self.last, self.set_aside = _asof_of(live), 0, 0
        self.epoch, self.definition = epoch, definition
        self.health = Health()
        self.ledger = _ledger_of(live)
        self._lists = Counts() if counts_lists else None
        if removed.impressions:
            users, ads, counts = zip(*removed.impressions, strict=True)
            row = np.repeat(live.rows(pa.array(ads)), counts)
            self._show(live, np.repeat(user_numbers(pa.array(users)), counts)[row >= 0], row[row >= 0], None)
        if removed.spent and not live.ranker.clock.daily:  # nobody knows on which days
            row, micros = live.rows(pa.array(list(removed.spent))), np.array(list(removed.spent.values()), np.int64)
            self.ledger.charge(row[row >= 0], micros[row >= 0], np.zeros((row >= 0).sum(), np.int64))

    def take(self, live: Live, piece: Slice) -> None:
        """Count the events of a slice. `live`: any bundle over the catalogue."""
        events = piece.events
        if len(events):
            ads = live.rows(events["ad_id"])
            self.ledger = self._paid(live, events, ads)
            self._learn(live, events, ads)
            self.health.take(events)
        self.last, self.set_aside = piece.last, self.set_aside + piece.set_aside

    def state(self, live: Live) -> dict[str, np.ndarray]:
        """Arrays by name from which `go_on` continues, also over a catalogue in another order. Nothing of them is copied."""
        named = {
            "ledger": self.ledger.state(), "lists": self._lists.state() if self._lists is not None else {},
            "health": self.health.state(), "asof": self.asof.since(),
            "about": {
                "events": np.array([self.last, self.set_aside]), "ads": hash_strings(combined(live.ranker.ads.ids)),
                "campaigns": hash_strings(live.ranker.campaigns.cast(pa.string())),
            },
        }  # fmt: skip
        return {f"{room}/{name}": values for room, arrays in named.items() for name, values in arrays.items()}

    def go_on(self, live: Live, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from what `state` gave, instead of counting those events. This tally has counted nothing.

        Raises KeyError, ValueError or IndexError for arrays that are none.
        """
        rooms: dict[str, dict[str, np.ndarray]] = {}
        for name, values in arrays.items():
            room, _, rest = name.partition("/")
            rooms.setdefault(room, {})[rest] = values
        about = rooms["about"]
        ad = _row_of(about["ads"], hash_strings(combined(live.ranker.ads.ids)))
        campaign = _row_of(about["campaigns"], hash_strings(live.ranker.campaigns.cast(pa.string())))
        last, set_aside = map(int, about["events"])
        ledger, health = _ledger_of(live), Health()
        ledger.take_over(rooms["ledger"], ad, campaign)
        health.go_on(rooms.get("health", {}))
        lists = None if self._lists is None else Counts(rooms["lists"]["key"], rooms["lists"]["count"])
        self.asof.go_on(rooms["asof"], ad)  # the last one: where it cannot be done, nothing was
        self.ledger, self.health, self._lists, self.last, self.set_aside = ledger, health, lists, last, set_aside

    def forget(self, live: Live, user_id: str, events: pa.Table) -> None:
        """Drop what is known of a user and of these events of theirs, N, which need not have been counted."""
        [user], [number] = codes_of(pa.array([user_id]), "user_id"), user_numbers(pa.array([user_id]))
        self.asof.forget(int(user), codes_of_events(live, self.asof, events, np.maximum(live.rows(events["ad_id"]), 0)))
        self.health.forget(events)
        ledger = self.ledger.copy()
        ledger.forget(int(number))
        self.ledger = ledger
        if self._lists is not None and len(events):
            keys = _list_keys(user_numbers(combined(events["user_id"])), combined(events["request_id"]))
            self._lists = self._lists.without(lambda key: np.isin(key, keys))

    def grow(self, live: Live) -> None:
        """The catalogue has changed budgets, or more ads at its end."""
        self.ledger = self.ledger.grown(live.ranker.ads.budget, len(live.ranker.ledger.campaign))
        self.asof = _asof_of(live)

    def judged(self, live: Live, events: pa.Table) -> Unmatched:
        """Which of N events are late, and which belong to none before: to be told, before they are taken in."""
        ads, times = live.rows(events["ad_id"]), events["at"].to_numpy()
        last = self.asof.last_moment
        late = times <= last if last is not None else np.zeros(len(times), np.bool_)
        users = codes_of(events["user_id"], "user_id")
        known = self.ledger.seen(user_numbers(events["user_id"]), np.maximum(ads, 0)) > 0
        is_shown, is_click = (pc.equal(events["kind"], kind).to_numpy() for kind in ("impression", "click"))
        pairs = mix(users.astype(np.uint64)) + mix(hash_strings(events["ad_id"].combine_chunks()))
        matched = is_shown | (is_click & (known | np.isin(pairs, pairs[is_shown])))
        converted = np.flatnonzero(~is_shown & ~is_click)
        if len(converted):
            found = self.asof.clicks(users[converted], times[converted] + 1, self.asof.max_clicks)
            owner = np.repeat(np.arange(len(converted)), np.diff(found.offsets))
            matched[converted[owner[found.ads == ads[converted][owner]]]] = True
            matched |= np.isin(pairs, pairs[is_click]) & ~is_shown & ~is_click
        return Unmatched(late, ~matched)

    def _learn(self, live: Live, events: pa.Table, ads: np.ndarray) -> None:
        """Counters and histories. An event that cannot be taken in is looked for by halves and set aside, whatever it is."""
        try:
            learn(live, self.asof, events, ads)
        except Exception as error:
            if len(events) == 1:
                self.set_aside += 1
                _logger.warning(json.dumps({"event_set_aside": type(error).__name__}))
                return
            half = len(events) // 2
            self._learn(live, events.slice(0, half), ads[:half])
            self._learn(live, events.slice(half), ads[half:])

    def _paid(self, live: Live, events: pa.Table, ads: np.ndarray) -> Ledger:
        """A ledger with the events of a slice: impressions count towards caps, all prices against budgets."""
        self.ledger = self.ledger.copy()
        micros = in_micros(events["price"])
        paid = (ads >= 0) & (micros > 0)
        if paid.any():
            self.ledger.charge(ads[paid], micros[paid], live.ranker.clock.day(events["at"].to_numpy()[paid]))
        shown = np.flatnonzero((ads >= 0) & pc.equal(events["kind"], "impression").to_numpy())
        if len(shown):
            some = events.select(["user_id", "request_id"]).take(pa.array(shown))
            users = user_numbers(some["user_id"])
            self._show(live, users, ads[shown], self._new_lists(users, some["request_id"]))
        return self.ledger

    def _show(self, live: Live, users: np.ndarray, ads: np.ndarray, lists: np.ndarray | None) -> None:
        """Impressions of `ads` (N,) to `users` (N,); `lists` (N,) where one opens a list, None: they all do."""
        rows = ads[:, None]
        shown = Shown(rows, live.ranker.campaign[rows], np.zeros(rows.shape, np.int64))
        self.ledger.commit(users, shown, lists)

    def _new_lists(self, users: np.ndarray, requests: pa.ChunkedArray) -> np.ndarray | None:
        """(N,) impressions that are the first of their list; one without the id of its request is a list by itself."""
        if self._lists is None:
            return None
        names = requests.combine_chunks()
        keys = _list_keys(users, names)
        _, first = np.unique(keys, return_index=True)
        is_new = np.zeros(len(keys), np.bool_)
        is_new[first] = self._lists.get(keys[first]) == 0
        named = names.is_valid().to_numpy(zero_copy_only=False)
        self._lists.add(keys[is_new & named])
        opens: np.ndarray = is_new | ~named
        return opens


def _ledger_of(live: Live) -> Ledger:
    budget, campaigns = live.ranker.ads.budget, len(live.ranker.ledger.campaign)
    return Ledger(budget, campaigns, room=max(_ROOM, 2 * len(budget)), daily=live.ranker.clock.daily)


def _asof_of(live: Live) -> AsOf:
    asof = live.ranker.known.asof
    assert asof is not None, "a server always has one, if only of a log to come"
    return asof


def _list_keys(users: np.ndarray, requests: pa.Array) -> np.ndarray:
    """(N,) by which lists are told apart."""
    keys: np.ndarray = (mix(users.astype(np.uint64)) + hash_strings(requests)).view(np.int64)
    return keys


def _row_of(names: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) the place of each hashed name among those that are known, -1 where it is none."""
    if not len(known):
        return np.full(len(names), -1)
    order = np.argsort(known, kind="stable")
    place = order[np.minimum(np.searchsorted(known[order], names), len(known) - 1)]
    rows: np.ndarray = np.where(known[place] == names, place, -1)
    return rows
