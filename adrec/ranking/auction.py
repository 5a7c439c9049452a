"""Auction: what an ad is worth to a request, and what its click costs.

Value is the expected revenue score x bid, the order of the generalised second-price auction (Edelman, Ostrovsky and
Schwarz, "Internet advertising and the generalized second-price auction", AER 2007): the winner of a place pays per
click the least bid that would have kept the place.
"""

from collections.abc import Mapping

import numpy as np

from adrec.ranking.arrays import Bools, Floats, Ints

MICRO = 1_000_000
"""Money is counted in integer millionths, so that sums do not depend on their order and budgets hold to the last one."""


def revenue(score: Floats, bid: Floats) -> Floats:
    """Expected revenue of an impression: score x bid. A missing bid (NaN) is 0."""
    return np.asarray(score, dtype=np.float64) * np.nan_to_num(bid, nan=0.0)


def weighted(outputs: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """Sum over tasks of weight x output. Raises KeyError where a weighted task has no output."""
    parts = [weight * np.asarray(outputs[task], dtype=np.float64) for task, weight in weights.items()]
    total: Floats = np.sum(parts, axis=0)
    return total


def auction_order(value: Floats, ad: Ints, takes_part: Bools) -> Ints:
    """(R, C) columns of each request by falling value; equals by ad row; those who do not take part come last.

    value: (R, C) float; ad: (R, C) int; takes_part: (R, C) bool.
    """
    return np.lexsort((ad, np.where(takes_part, -value, np.inf)), axis=1)


def second_prices(
    value: Floats, score: Floats, bid: Floats, takes_part: Bools, ad: Ints, *, reserve: float, minimum: float = 0.0
) -> Floats:
    """(R, C) price per click: max(reserve, value of the next in order / own score), never above the own bid.

    What an ad must be worth to take part (`minimum`) is a rival of all: whoever bids less than `minimum` / score is not shown.


    Only ads that take part compete; the others get NaN. The last of the order pays the reserve. `reserve` must be at
    most the bid of all who take part.
    """
    order = auction_order(value, ad, takes_part)
    ordered = np.take_along_axis(np.where(takes_part, value, 0.0), order, axis=1)
    following = np.zeros_like(ordered)
    following[:, :-1] = ordered[:, 1:]
    following = np.maximum(following, minimum)
    next_value = np.empty_like(following)
    np.put_along_axis(next_value, order, following, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        price = np.where(score > 0, next_value / score, 0.0)
    price = np.minimum(np.maximum(price, reserve), np.nan_to_num(bid, nan=0.0))
    return np.where(takes_part, price, np.nan)


def in_slot(score: Floats, effect: Floats) -> Floats:
    """Click probabilities in a slot that adds `effect` to their log-odds; 0 and 1 stay what they are."""
    p = np.asarray(score, dtype=np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(p / (p + (1 - p) * np.exp(-effect)))


def expected_spend(price: Floats, score: Floats) -> Ints:
    """Millionths to reserve for an impression: price x score, rounded up. int64; a missing price costs nothing."""
    return np.ceil(np.nan_to_num(price, nan=0.0) * score * MICRO).astype(np.int64)


def budget_in_micros(budget: Floats) -> Ints:
    """Budgets in millionths, rounded down; no budget (NaN) is the largest int64."""
    limit = np.iinfo(np.int64).max
    bounded = np.minimum(np.nan_to_num(budget, nan=np.inf) * MICRO, float(2**62))
    return np.where(np.isnan(budget), limit, np.floor(bounded).astype(np.int64))
