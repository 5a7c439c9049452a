"""Fill: from valued candidates to lists, slot by slot over a whole block of requests.

At each slot every request takes the feasible candidate of largest gain (see `diversify`), or one drawn by the
exploration. Feasible: takes part, not yet in the list, and its advertiser, category and campaign have room left.
"""

from typing import NamedTuple

import numpy as np

from adrec.ranking.arrays import Bools, Floats, Ints
from adrec.ranking.diversify import TINY, Diversifier
from adrec.ranking.explore import epsilon_greedy, greedy, thompson


class Room(NamedTuple):
    """A limit on ads of one group within a list."""

    group: Ints  # (R, C) group of each candidate, -1 none (never limited)
    most: Ints  # (R, C) how many of the group a list may hold


class Chance(NamedTuple):
    """How slots are explored. `deviation` None: epsilon-greedy (0 is greedy)."""

    seed: int
    request: Ints  # (R,) number of the request in the whole batch
    epsilon: float = 0.0
    deviation: Floats | None = None  # (R, C) standard deviation of the logit, for Thompson sampling
    measured: bool = True  # whether Thompson's propensities are wanted: they cost most of the time


class Filled(NamedTuple):
    """Lists of R requests."""

    column: Ints  # (R, N) candidate at each slot, -1 where empty (only at the end of a list)
    propensity: Floats  # (R, N) probability of the choice given the slots above
    explored: Bools  # (R, N) chosen by chance where another ad had the largest gain


def fill_lists(
    ad: Ints,
    score: Floats,
    value: Floats,
    takes_part: Bools,
    *,
    top_n: int,
    rooms: list[Room],
    diversifier: Diversifier,
    chance: Chance,
) -> Filled:
    """Fill `top_n` slots. All arrays (R, C). O(top_n R C) and what the diversifier adds."""
    requests, candidates = ad.shape
    rows = np.arange(requests)
    column = np.full((requests, top_n), -1, dtype=np.int64)
    propensity = np.full((requests, top_n), np.nan)
    explored = np.zeros((requests, top_n), dtype=bool)
    free = takes_part.copy()
    held = [np.zeros((requests, candidates), dtype=np.int64) for _ in rooms]
    log_value = np.log(np.maximum(value, TINY))
    for slot in range(min(top_n, candidates)):
        feasible = free.copy()
        for room, count in zip(rooms, held, strict=True):
            feasible &= (count < room.most) | (room.group < 0)
        taken: Bools = np.asarray(feasible.any(axis=1))
        if not taken.any():
            break
        offset = diversifier.offset()
        gain = diversifier.weight * log_value + offset
        best = greedy(gain, ad, feasible)
        if chance.deviation is not None:
            pick, probability = thompson(
                weight=diversifier.weight,
                offset=offset,
                unit_value=np.maximum(value, TINY) / np.maximum(score, TINY),
                score=score,
                deviation=chance.deviation,
                ad=ad,
                feasible=feasible,
                seed=chance.seed,
                request=chance.request,
                slot=slot,
                measured=chance.measured,
            )
        elif chance.epsilon > 0:
            pick, probability = epsilon_greedy(
                gain,
                ad,
                feasible,
                epsilon=chance.epsilon,
                seed=chance.seed,
                request=chance.request,
                slot=slot,
            )
        else:
            pick, probability = best, np.ones(requests)
        column[taken, slot] = pick[taken]
        propensity[taken, slot] = probability[taken]
        explored[:, slot] = taken & (pick != best)
        free[rows[taken], pick[taken]] = False
        for room, count in zip(rooms, held, strict=True):
            count += (room.group == room.group[rows, pick][:, None]) & taken[:, None]
        diversifier.chosen(pick, taken)
    return Filled(column, propensity, explored)
