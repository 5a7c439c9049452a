"""Rank a block of requests: auction, lists and the ledger together, as if one request were served after the other.

What one request shows changes what later ones may show, through budgets and caps. Serving them one by one would be
slow, so a window of requests is ranked at once under the present totals; then each request's allowance is computed
again as it would have found it after the lists above it; the requests before the first whose allowance differs are
right and are committed, and the rest is ranked again. The result is exactly that of serving one by one. A window that
meets a conflict shrinks to twice what it got done, and grows again: budgets that run out cost a few rankings more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from adrec.ranking.arrays import Bools, Floats, Ints, rows_of
from adrec.ranking.auction import expected_spend, in_slot, second_prices
from adrec.ranking.diversify import Diversifier
from adrec.ranking.fill import Chance, Room, fill_lists
from adrec.ranking.ledger import UNLIMITED, Allowance, Caps, Ledger, Offer, Shown, most_spend


class Candidates(NamedTuple):
    """Scored candidates of R requests, C each."""

    number: Ints  # (R,) number of the request in the whole batch, in order of time
    user: Ints  # (R,) user number
    policy: Ints  # (R,) index into the list of ListPolicy
    ad: Ints  # (R, C) ad row, -1 where there are fewer than C
    score: Floats  # (R, C) click probability in [0, 1], whatever the slot
    value: Floats  # (R, C) >= 0
    bid: Floats  # (R, C) NaN where the ad has none
    advertiser: Ints  # (R, C) -1 none
    category: Ints  # (R, C) -1 none
    campaign: Ints  # (R, C) -1 none
    deviation: Floats  # (R, C) standard deviation of the logit; read only by Thompson policies


DiversifierOf = Callable[[Ints], Diversifier]
"""From the rows (r,) of the block to the state that diversifies their lists."""


@dataclass(frozen=True)
class ListPolicy:
    """The numbers of a policy that shape lists. Caps are UNLIMITED where there is none."""

    top_n: int
    auctioned: bool = False
    """Second prices (True), or each click costs its bid."""
    reserve: float = 0.0
    minimum_value: float = 0.0
    per_advertiser: int = UNLIMITED
    per_category: int = UNLIMITED
    user_ad: int = UNLIMITED
    user_campaign: int = UNLIMITED
    campaign: int = UNLIMITED
    user_lists: int = UNLIMITED
    budget: bool = True
    even_pacing: bool = False
    epsilon: float = 0.0
    thompson: bool = False

    def binds(self, has_budgets: bool) -> bool:
        """Whether a list may change what later ones show. `has_budgets`: any ad has one."""
        caps = (self.user_ad, self.user_campaign, self.campaign, self.user_lists)
        return any(cap < UNLIMITED for cap in caps) or (self.budget and has_budgets)


class Ranked(NamedTuple):
    """Lists of R requests, N slots (the longest policy's); -1 and NaN where a slot is empty."""

    column: Ints  # (R, N) candidate
    ad: Ints  # (R, N)
    price: Floats  # (R, N) per click; NaN where the ad has no bid
    propensity: Floats  # (R, N)
    explored: Bools  # (R, N) shown by chance, where another ad had the largest gain
    available: Bools  # (R, C) what budgets and caps let take part, as each request found it
    score: Floats  # (R, N) click probability of what is shown, in its slot


def rank_block(
    candidates: Candidates,
    policies: list[ListPolicy],
    diversifiers: list[DiversifierOf],
    ledger: Ledger,
    *,
    released: float | Floats,
    seed: int,
    effects: Floats | None = None,
    day: Ints | None = None,
) -> Ranked:
    """Rank R requests in order and record them in the ledger.

    `released`: share of every budget that policies with even pacing may have spent by the end of this block; or (R, 1) by
    request, or (R, C) by candidate. `effects` (R, N): what each slot adds to a click's log-odds; None: slots are alike. `day`
    (R,): of each request, where the ledger's budgets are daily.
    """
    requests, width = candidates.ad.shape
    slots = max(policy.top_n for policy in policies)
    share = np.full((requests, 1), released) if np.ndim(released) == 0 else np.asarray(released)
    caps = _caps(candidates.policy, policies, share, np.zeros(requests, dtype=np.int64) if day is None else day)
    result = Ranked(
        np.full((requests, slots), -1, dtype=np.int64),
        np.full((requests, slots), -1, dtype=np.int64),
        np.full((requests, slots), np.nan),
        np.full((requests, slots), np.nan),
        np.zeros((requests, slots), dtype=bool),
        np.zeros((requests, width), dtype=bool),
        np.full((requests, slots), np.nan),
    )
    best = candidates.score if effects is None else in_slot(candidates.score, effects.max(axis=1, keepdims=True))
    start, window = 0, requests
    while start < requests:
        rows = np.arange(start, min(start + window, requests))
        block = rows_of(candidates, rows)
        limits = rows_of(caps, rows)
        offer = Offer(block.user, block.ad, block.campaign, most_spend(block.bid, best[rows]))
        assumed = ledger.allowance(offer, limits)
        draft = any(policy.thompson for policy in policies)
        ranked, shown = _rank_window(block, rows, assumed, policies, diversifiers, slots, seed, effects, measured=not draft)
        met = ledger.allowance(offer, limits, shown)
        differs = (assumed.available != met.available).any(axis=1) | (assumed.campaign_left != met.campaign_left).any(axis=1)
        right = int(differs.argmax()) if differs.any() else len(rows)
        ledger.commit(block.user[:right], rows_of(shown, slice(right)), day=limits.day[:right])
        if draft:  # the same draws again, for those that stay, with their propensities
            kept = slice(right)
            ranked, _ = _rank_window(
                rows_of(block, kept),
                rows[kept],
                rows_of(assumed, kept),
                policies,
                diversifiers,
                slots,
                seed,
                effects,
                measured=True,
            )
        for whole, piece in zip(result, ranked, strict=True):
            whole[rows[:right]] = piece[:right]
        start += right
        window = 2 * right if right < len(rows) else 2 * window
    return result


def _caps(policy: Ints, policies: list[ListPolicy], released: Floats, day: Ints) -> Caps:
    def column(name: str) -> Ints:
        values: Ints = np.array([getattr(policy_, name) for policy_ in policies])[policy]
        return values

    even = np.array([policy_.even_pacing for policy_ in policies])[policy]
    return Caps(
        user_ad=column("user_ad"),
        user_campaign=column("user_campaign"),
        campaign=column("campaign"),
        user_lists=column("user_lists"),
        charges=column("budget").astype(bool),
        released=np.where(even[:, None], released, 1.0),
        day=day,
        top_n=column("top_n"),
    )


def _rank_window(
    block: Candidates,
    rows: Ints,
    allowance: Allowance,
    policies: list[ListPolicy],
    diversifiers: list[DiversifierOf],
    slots: int,
    seed: int,
    effects: Floats | None,
    *,
    measured: bool,
) -> tuple[Ranked, Shown]:
    """Rank a window of requests (`rows` of the block) under a fixed allowance, policy by policy."""
    requests = len(rows)
    column = np.full((requests, slots), -1, dtype=np.int64)
    price = np.full((requests, slots), np.nan)
    propensity = np.full((requests, slots), np.nan)
    explored = np.zeros((requests, slots), dtype=bool)
    for index, policy in enumerate(policies):
        mine = np.flatnonzero(block.policy == index)
        if len(mine) == 0:
            continue
        own = rows_of(block, mine)
        left = allowance.campaign_left[mine]
        takes_part = allowance.available[mine] & (left > 0) & (own.value >= policy.minimum_value)
        if policy.auctioned:
            prices = second_prices(
                own.value, own.score, own.bid, takes_part, own.ad, reserve=policy.reserve, minimum=policy.minimum_value
            )
        else:
            prices = own.bid
        rooms = [Room(own.campaign, left)]
        for group, most in ((own.advertiser, policy.per_advertiser), (own.category, policy.per_category)):
            if most < UNLIMITED:
                rooms.append(Room(group, np.full(group.shape, most)))
        filled = fill_lists(
            own.ad,
            own.score,
            own.value,
            takes_part,
            top_n=policy.top_n,
            rooms=rooms,
            diversifier=diversifiers[index](rows[mine]),
            chance=Chance(seed, own.number, policy.epsilon, own.deviation if policy.thompson else None, measured),
        )
        column[mine, : policy.top_n] = filled.column
        propensity[mine, : policy.top_n] = filled.propensity
        explored[mine, : policy.top_n] = filled.explored
        price[mine, : policy.top_n] = _at(prices, filled.column, np.nan)
    ad = _at(block.ad, column, -1)
    score = _at(block.score, column, np.nan)
    if effects is not None:
        score = in_slot(score, effects[rows, :slots])
    spend = np.where(column >= 0, expected_spend(price, np.nan_to_num(score)), 0)
    return Ranked(column, ad, price, propensity, explored, allowance.available, score), Shown(
        ad, _at(block.campaign, column, -1), spend
    )


def _at(values: Floats | Ints, column: Ints, missing: float) -> np.ndarray:
    """(R, N) values (R, C) at the columns (R, N); `missing` where the column is -1."""
    return np.where(column >= 0, np.take_along_axis(values, np.maximum(column, 0), axis=1), missing)
