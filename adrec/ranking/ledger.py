"""Ledger: what earlier lists have used up of budgets and caps, and what a request may therefore still show.

Requests are taken in order of time. An impression reserves its expected spend (price x click probability), counted in
integer millionths; an ad takes part only while what is left covers the most it could be charged (bid x probability),
so that no budget is ever overspent in expectation.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from adrec.ranking.arrays import Bools, Floats, Ints
from adrec.ranking.auction import expected_spend

UNLIMITED = 2**31 - 1
"""A cap that is none."""
MOST_SPENT = 2**62
"""Spend is counted up to here, millionths: a sum of prices never wraps around into credit."""
_RUN_GROWTH = 4


_COUNTED = ("user_ad", "user_campaign", "user_lists", "spent_on_day")


class Caps(NamedTuple):
    """The limits that hold for each of R requests; UNLIMITED where there is none."""

    user_ad: Ints  # (R,) most times one ad is shown to one user
    user_campaign: Ints  # (R,) most times ads of one campaign are shown to one user
    campaign: Ints  # (R,) most impressions of one campaign
    user_lists: Ints  # (R,) most lists with at least one ad for one user
    charges: Bools  # (R,) whether budgets bind
    released: Floats  # (R, 1), or (R, C) by candidate: share of the budget that may be spent by now, in [0, 1]
    day: Ints  # (R,) whose budget is spent; read only where budgets are daily
    top_n: Ints  # (R,) length of the list: what a campaign has left matters only below it


class Offer(NamedTuple):
    """The candidates of R requests as the ledger sees them."""

    user: Ints  # (R,) user number
    ad: Ints  # (R, C) ad row, -1 where empty
    campaign: Ints  # (R, C) campaign number, -1 none
    most: Ints  # (R, C) millionths that showing the ad could reserve at most: bid x score


class Shown(NamedTuple):
    """The lists of R requests, N slots; -1 where a slot is empty."""

    ad: Ints  # (R, N)
    campaign: Ints  # (R, N)
    spend: Ints  # (R, N) millionths reserved, 0 where empty


class Allowance(NamedTuple):
    """What is left for each candidate."""

    available: Bools  # (R, C)
    campaign_left: Ints  # (R, C) how many more ads of its campaign the list may show, at most top_n


class Ledger:
    """Running totals. `budget` (A,) int64 millionths; `campaigns` how many campaigns there are."""

    def __init__(self, budget: Ints, campaigns: int, *, room: int = 0, daily: bool = False) -> None:
        """`room`: ads and campaigns that there may be one day; a user and an ad have the same key until then.

        `daily`: each day has the whole budget, and its own spend (16 bytes an ad and day).
        """
        self.budget = budget
        self._ads, self._campaigns = max(room, len(budget)), max(room, campaigns)
        self.spent: Ints = np.zeros(len(budget), dtype=np.int64)
        self.campaign: Ints = np.zeros(campaigns, dtype=np.int64)
        self.spent_on_day = Counts() if daily else None
        """millionths of an ad on a day; `spent` stays 0"""
        self.user_ad = Counts()
        self.user_campaign = Counts()
        self.user_lists = Counts()

    def allowance(self, offer: Offer, caps: Caps, shown: Shown | None = None) -> Allowance:
        """What each request may show; with `shown`, as each would find it after the lists of the requests above it."""
        ads, campaigns = self._ads, self._campaigns if len(self.campaign) else 0
        user = offer.user[:, None]
        ad, campaign = np.maximum(offer.ad, 0), np.maximum(offer.campaign, 0)
        day = caps.day[:, None] if self.spent_on_day is not None else np.zeros((1, 1), dtype=np.int64)
        spent = self.spent[ad] if self.spent_on_day is None else self.spent_on_day.get(day * ads + ad)
        seen = self.user_ad.get(user * ads + ad)
        lists = self.user_lists.get(user)
        with_user = self.user_campaign.get(user * campaigns + campaign) if campaigns else np.zeros_like(ad)
        in_all = self.campaign[campaign] if campaigns else np.zeros_like(ad)
        if shown is not None:
            there = shown.ad >= 0
            in_campaign = shown.campaign >= 0
            row = np.broadcast_to(np.arange(len(shown.ad))[:, None], shown.ad.shape)
            spent = spent + earlier_sum((day * ads + shown.ad)[there], row[there], shown.spend[there], day * ads + ad)
            seen = seen + earlier_sum((user * ads + shown.ad)[there], row[there], None, user * ads + ad)
            sent = there.any(axis=1)
            lists = lists + earlier_sum(offer.user[sent], np.flatnonzero(sent), None, user)
            if campaigns:
                key = user * campaigns + shown.campaign
                with_user = with_user + earlier_sum(key[in_campaign], row[in_campaign], None, user * campaigns + campaign)
                in_all = in_all + earlier_sum(shown.campaign[in_campaign], row[in_campaign], None, campaign)
        affordable = offer.most <= _released(self.budget[ad], caps.released) - spent
        available = (offer.ad >= 0) & (affordable | ~caps.charges[:, None])
        available &= (seen < caps.user_ad[:, None]) & (lists < caps.user_lists[:, None])
        left = np.minimum(caps.user_campaign[:, None] - with_user, caps.campaign[:, None] - in_all)
        left = np.where(offer.campaign >= 0, np.minimum(left, caps.top_n[:, None]), caps.top_n[:, None])
        return Allowance(available, left)

    def commit(self, user: Ints, shown: Shown, opens: Bools | None = None, *, day: Ints | None = None) -> None:
        """Record the lists of R requests for `user` (R,). opens (R,): rows that begin a list, None where each does.

        day (R,): whose budgets are spent, where they are daily and something was.
        """
        there = shown.ad >= 0
        in_campaign = shown.campaign >= 0
        users = np.broadcast_to(user[:, None], shown.ad.shape)
        if self.spent_on_day is None:
            np.add.at(self.spent, shown.ad[there], shown.spend[there])
        elif day is not None:
            self.spent_on_day.add((day[:, None] * self._ads + shown.ad)[there], shown.spend[there])
        np.add.at(self.campaign, shown.campaign[in_campaign], 1)
        self.user_ad.add((users * self._ads + shown.ad)[there])
        self.user_campaign.add((users * self._campaigns + shown.campaign)[in_campaign])
        self.user_lists.add(user[there.any(axis=1) if opens is None else opens & there.any(axis=1)])

    def charge(self, ad: Ints, micros: Ints, day: Ints) -> None:
        """Count what was paid for ads `ad` (N,) on days (N,), each at most 2^60 millionths; no sum grows beyond MOST_SPENT."""
        keys, place = np.unique(ad if self.spent_on_day is None else day * self._ads + ad, return_inverse=True)
        before = self.spent[keys] if self.spent_on_day is None else self.spent_on_day.get(keys)
        about = np.bincount(place, weights=micros.astype(np.float64), minlength=len(keys)) + before
        exact = np.zeros(len(keys), dtype=np.int64)
        np.add.at(exact, place, micros)  # wraps around only where the sum is cut anyway
        paid = np.where(about < MOST_SPENT, exact, MOST_SPENT - before)
        if self.spent_on_day is None:
            self.spent[keys] = before + paid
        else:
            self.spent_on_day.add(keys, paid)

    def grown(self, budget: Ints, campaigns: int) -> "Ledger":
        """A copy over a catalogue with other budgets, and with further ads and campaigns at its end."""
        other = self.copy()
        other.budget = budget
        other.spent = np.pad(other.spent, (0, len(budget) - len(other.spent)))
        other.campaign = np.pad(other.campaign, (0, campaigns - len(other.campaign)))
        ads, more = ("_ads", len(budget)), ("_campaigns", campaigns)
        for name, (held, size) in (("user_ad", ads), ("spent_on_day", ads), ("user_campaign", more)):
            width = getattr(self, held)
            if size > width and getattr(self, name) is not None:
                state = getattr(self, name).state()
                setattr(other, held, 2 * size)
                setattr(other, name, Counts(state["key"] // width * 2 * size + state["key"] % width, state["count"]))
        return other

    def seen(self, user: Ints, ad: Ints) -> Ints:
        """(N,) how often `ad` (N,) was shown to `user` (N,)."""
        return self.user_ad.get(user * self._ads + ad)

    def copy(self) -> "Ledger":
        """A ledger that goes its own way from here."""
        other = copy.copy(self)
        other.spent, other.campaign = self.spent.copy(), self.campaign.copy()
        for name in _COUNTED:
            setattr(other, name, copy.copy(getattr(self, name)))  # its arrays are replaced, never changed
        return other

    def state(self) -> dict[str, Ints]:
        """Arrays from which `restore` continues."""
        counts = {name: counted for name in _COUNTED if (counted := getattr(self, name)) is not None}
        arrays = {f"{name}_{part}": value for name, held in counts.items() for part, value in held.state().items()}
        room = np.array([self._ads, self._campaigns], dtype=np.int64)
        return {"spent": self.spent, "campaign": self.campaign, "room": room, **arrays}

    def restore(self, state: dict[str, Ints]) -> None:
        """Continue from what `state` gave."""
        self.spent, self.campaign = state["spent"], state["campaign"]
        for name in [name for name in _COUNTED if f"{name}_key" in state]:
            setattr(self, name, Counts(state[f"{name}_key"], state[f"{name}_count"]))

    def take_over(self, state: dict[str, Ints], ad: Ints, campaign: Ints) -> None:
        """Continue from the `state` of another ledger, whose ads and campaigns are rows `ad`, `campaign` of this one.

        They are -1 where it lacks them.
        """
        self.spent[ad[ad >= 0]] = state["spent"][ad >= 0]
        self.campaign[campaign[campaign >= 0]] = state["campaign"][campaign >= 0]
        ads, campaigns = state["room"].tolist()
        of_ad, of_campaign = (ad, ads, self._ads), (campaign, campaigns, self._campaigns)
        for name, (rows, width, own_width) in (
            ("user_ad", of_ad), ("spent_on_day", of_ad), ("user_campaign", of_campaign), ("user_lists", (None, 1, 1)),
        ):  # fmt: skip
            if getattr(self, name) is None or not len(key := state[f"{name}_key"]):
                continue
            row = key % width if rows is None else rows[key % width]
            there = row >= 0
            key, count = (key // width * own_width + row)[there], state[f"{name}_count"][there]
            order = np.argsort(key, kind="stable")
            setattr(self, name, Counts(key[order], count[order]))

    def forget(self, user: int) -> None:
        """Drop what is counted of a user; what ads were paid stays."""
        for name, width in (("user_ad", self._ads), ("user_campaign", self._campaigns), ("user_lists", 1)):
            setattr(self, name, getattr(self, name).without(lambda keys, width=width: keys // width == user))


class Counts:
    """Counts of integer keys, in sorted runs each a few times as large as the next: a key is moved a few times only."""

    def __init__(self, key: Ints | None = None, count: Ints | None = None) -> None:
        empty: Ints = np.zeros(0, dtype=np.int64)
        self._runs: tuple[tuple[Ints, Ints], ...] = ((empty if key is None else key, empty if count is None else count),)

    def get(self, keys: Ints) -> Ints:
        """How often each key was added. Any shape."""
        total = _look_up(self._runs[0], keys)
        for run in self._runs[1:]:
            total = total + _look_up(run, keys)
        return total

    def add(self, keys: Ints, amounts: Ints | None = None) -> None:
        """Count each key once more (a key may come several times), or so much more as `amounts` says."""
        if len(keys) == 0:
            return
        runs = list(self._runs)
        key, place, count = np.unique(keys, return_inverse=True, return_counts=True)
        if amounts is not None:
            count = np.zeros(len(key), dtype=np.int64)
            np.add.at(count, place, amounts)
        last: tuple[Ints, Ints] = key, count
        while runs and len(runs[-1][0]) < _RUN_GROWTH * len(last[0]):
            last = _merged(runs.pop(), last)
        self._runs = (*runs, last)

    def without(self, gone: Callable[[Ints], Bools]) -> "Counts":
        """The counts of the other keys."""
        held = self.state()
        kept = ~gone(held["key"])
        return Counts(held["key"][kept], held["count"][kept])

    def state(self) -> dict[str, Ints]:
        """Sorted keys and their counts."""
        key, count = self._runs[0]
        for run in self._runs[1:]:
            key, count = _merged((key, count), run)
        return {"key": key, "count": count}


def earlier_sum(key: Ints, row: Ints, weight: Ints | None, wanted: Ints) -> Ints:
    """(R, C) sum of the weights (1 each where None) of entries with key `wanted[r, c]` in rows before r.

    key, row, weight: (n,) int64 entries; wanted: (R, C) keys.
    """
    rows = len(wanted)
    order = np.lexsort((row, key))
    place = key[order].astype(np.int64) * rows + row[order]
    weights = np.ones(len(key), dtype=np.int64) if weight is None else weight[order]
    total = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(weights)])
    first = wanted.astype(np.int64) * rows
    until = np.searchsorted(place, first + np.arange(rows)[:, None])
    result: Ints = total[until] - total[np.searchsorted(place, first)]
    return result


def most_spend(bid: Floats, score: Floats) -> Ints:
    """Millionths an impression can reserve at most: a price never exceeds its bid."""
    return expected_spend(bid, score)


def _released(budget: Ints, share: Floats) -> Ints:
    """Millionths of each budget released so far; the whole of it at share 1, without rounding."""
    bounded = budget < np.iinfo(np.int64).max
    part = np.floor(np.where(bounded, budget, 0) * share).astype(np.int64)
    return np.where(bounded & (share < 1.0), part, budget)


def _look_up(run: tuple[Ints, Ints], keys: Ints) -> Ints:
    held, count = run
    if len(held) == 0:
        return np.zeros(keys.shape, dtype=np.int64)
    place = np.minimum(np.searchsorted(held, keys), len(held) - 1)
    return np.where(held[place] == keys, count[place], 0)


def _merged(one: tuple[Ints, Ints], other: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    key, inverse = np.unique(np.concatenate([one[0], other[0]]), return_inverse=True)
    count = np.zeros(len(key), dtype=np.int64)
    np.add.at(count, inverse, np.concatenate([one[1], other[1]]))
    return key, count
