"""Match a judged policy with a log: with which probability the policy shows each logged row, and what it shows in its place.

A place is a slot of a request where slots are matched, else any slot of a request. N logged rows, M rows of lists.
"""

from typing import NamedTuple

import numpy as np

from adrec.config.evaluation.evaluate import OffPolicySettings
from adrec.errors import DataError
from adrec.metrics.ties import Floats, Ints, totals
from adrec.stages.evaluation.reading.rows import Rows, codes_in, load_rows


class Judged(NamedTuple):
    """What the judged policy does in the place of each logged row (N,)."""

    name: str
    probability: Floats
    """of the logged ad; where propensities are given the slots above, so is this"""
    shown: Floats
    """how much it shows there: 0 where it has no list, or a shorter one"""
    expected: Floats | None
    """the model's expected reward of that"""
    by_slot: bool


def by_column(rows: Rows, settings: OffPolicySettings) -> Judged:
    """One action a row; the policy's probability of it stands beside it."""
    for column in (settings.policy_column, settings.expected_column):
        if column is not None and column not in rows:
            raise DataError(f"{rows.path}: column '{column}' is missing.")
    assert settings.policy_column is not None
    policy = rows.numbers(settings.policy_column).astype(np.float64)
    bad = np.flatnonzero(~((policy >= 0) & (policy <= 1)))
    if len(bad):
        raise DataError(
            f"{rows.path}: column '{settings.policy_column}', row {bad[0]}: {policy[bad[0]]:g} is not a probability in [0, 1]."
        )
    expected = None
    if settings.expected_column is not None:
        expected = rows.numbers(settings.expected_column).astype(np.float64)
    return Judged(settings.policy_column, policy, np.ones(len(policy)), expected, False)


def by_lists(rows: Rows, settings: OffPolicySettings, *, given_above: bool) -> Judged:
    """Lists for the logged requests. Raises DataError where the two do not fit together."""
    assert settings.policy is not None
    lists = load_rows(settings.policy)
    by_slot = settings.match_position
    if by_slot is None:
        by_slot = "position" in rows and "rank" in lists
    if by_slot and not ("position" in rows and "rank" in lists):
        raise DataError(f"{rows.path}: match_position needs `position` here and `rank` in {settings.policy}.")
    if given_above and settings.policy_is == "distribution":
        raise DataError(
            f"{settings.policy}: probabilities of single ads do not say what the policy shows below others, as propensities"
            " given the slots above need. Give its lists (policy_is: lists, drawn ones too) or a policy_column."
        )
    group, list_group = rows.group.codes.astype(np.int64), codes_in(lists.group, rows.group.values)
    slots = np.bincount(group, minlength=len(rows.group))
    probability = _probabilities(lists, settings)
    # Ranks below the slots that a request had cannot be judged by what it showed.
    judged = list_group >= 0
    if "rank" in lists:
        judged &= lists.numbers("rank") <= slots[np.maximum(list_group, 0)]
    if not judged.any():
        raise DataError(f"{settings.policy}: ranks none of the requests (or users) of {rows.path}.")
    list_group, probability = list_group[judged], probability[judged]
    position, rank = np.zeros(len(rows), dtype=np.int64), np.zeros(len(list_group), dtype=np.int64)
    if by_slot:
        position = rows.numbers("position").astype(np.int64)
        rank = lists.numbers("rank")[judged].astype(np.int64)
    depth = int(max(position.max(), rank.max())) + 1
    place, list_place = group * depth + position, list_group * depth + rank
    width = len(rows.ads) + 1
    list_ad = codes_in(lists.ads, rows.ads.values)[judged]
    action = place * width + rows.ads.codes
    list_action = list_place * width + np.where(list_ad < 0, len(rows.ads), list_ad)
    chosen = np.minimum(_sum_at(list_action, probability, action), 1)
    shown = _sum_at(list_place, probability, place)
    expected = None
    if "score" in lists:
        expected = _sum_at(list_place, probability * lists.numbers("score")[judged], place)
    if given_above and by_slot and (shown > 1).any():
        row = int(np.argmax(shown > 1))
        raise DataError(f"{settings.policy}: several ads at rank {position[row]} for the request of row {row} of {rows.path}.")
    if by_slot:
        return Judged(settings.policy.stem, chosen, shown, expected, True)
    if given_above:  # the list in any order: each slot shows one of those left of it
        left = shown - (rows.numbers("position").astype(np.float64) - 1)
        per_ad, per_place = 1 / np.maximum(left, 1) * (left > 0), 1 / np.maximum(shown, 1) * (left > 0)
    else:  # each of the request's slots could have shown the ad
        per_ad = per_place = 1 / slots[group]
    expected = None if expected is None else expected * per_place
    return Judged(settings.policy.stem, chosen * per_ad, shown * per_place, expected, False)


def _sum_at(keys: Ints, values: Floats, wanted: Ints) -> Floats:
    """Sum of `values` (M,) with each wanted key (N,), 0 where there is none."""
    distinct, place = np.unique(keys, return_inverse=True)
    sums = totals(place, values, len(distinct))
    at = np.minimum(np.searchsorted(distinct, wanted), len(distinct) - 1)
    return np.where(distinct[at] == wanted, sums[at], 0.0)


def _probabilities(lists: Rows, settings: OffPolicySettings) -> Floats:
    if settings.policy_is == "lists":
        return np.ones(len(lists))
    if "propensity" not in lists:
        raise DataError(f"{settings.policy}: column 'propensity' is missing; policy_is: distribution needs it.")
    return lists.numbers("propensity").astype(np.float64)
