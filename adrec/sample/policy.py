"""The sample's logging policy: which ad is shown in which slot, with the exact probability of that choice.

For each slot the policy draws one ad of the slot's lane from a softmax over noisy relevance and bid, mixed with a little
uniform exploration. The lanes rotate by a uniform offset a request, so over the whole catalogue

    propensity(ad, slot | user, context) = 1/L [ (1 - e) exp(s(user, topic, language)) w(ad) / Z(lane) + e / n(lane) ]

with w(ad) = bid^g (times a boost while the ad is new), Z(lane) the sum of the numerators over the lane's running ads and
n(lane) their number. It sums to 1 over all running ads at each slot. Cost: rows x topics x languages.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adrec.sample import catalogue
from adrec.sample.clicks import Effects
from adrec.sample.world import LANES, MAX_LIKED, Ads, Floats, Integers, Users

EXPLORATION = 0.1
BID_POWER = 0.5
RELEVANCE_WEIGHT = 2.0
NOISE_WEIGHT = 0.5
QUERY_WEIGHT = 2.5
OWN_LANGUAGE = 2.0
LAUNCH_BOOST = 1.5
LAUNCH_DAYS = 3


@dataclass(frozen=True)
class DayOfAds:
    """The ads that run on a day, sorted by (lane, topic, language). G = topics x languages."""

    order: Integers
    """(A',) ad numbers."""
    weight: Floats
    """(A',) w(ad)."""
    cumulative: Floats
    """(A' + 1,) running sum of weight."""
    bounds: Integers
    """(LANES * G + 1,) where each group begins in `order`."""

    def group_weights(self) -> Floats:
        """Sum of weights, (LANES, G)."""
        return np.diff(self.cumulative[self.bounds]).reshape(LANES, -1)

    def group_sizes(self) -> Integers:
        """Number of ads, (LANES, G)."""
        return np.diff(self.bounds).reshape(LANES, -1)


def ads_of_day(ads: Ads, day: int) -> DayOfAds:
    """Gather the ads that run on `day`."""
    languages = len(catalogue.LANGUAGES)
    groups = len(catalogue.topics()) * languages
    running = np.flatnonzero((ads.first_day <= day) & (day <= ads.last_day))
    group = (ads.lane[running] * groups) + ads.topic[running] * languages + ads.language[running]
    by_group = np.argsort(group, kind="stable")
    order = running[by_group]
    fresh = (ads.first_day[order] >= 0) & (day - ads.first_day[order] < LAUNCH_DAYS)
    weight = ads.bid[order] ** BID_POWER * np.where(fresh, LAUNCH_BOOST, 1.0)
    cumulative = np.concatenate([[0.0], np.cumsum(weight)])
    bounds = np.searchsorted(group[by_group], np.arange(LANES * groups + 1))
    return DayOfAds(order, weight, cumulative, bounds)


def draw_ads(
    day: DayOfAds, ads: Ads, users: Users, effects: Effects,
    *, user: Integers, vertical: Integers, query_topic: Integers, request: Integers, position: Integers,
    generator: np.random.Generator,
) -> tuple[Integers, Floats]:  # fmt: skip
    """Fill N slots of R requests. `user`, `vertical` (category or -1), `query_topic` (or -1): (R,);
    `request` (index into those) and `position` (1-based): (N,). Returns ad (N,) and propensity (N,)."""
    numerator = _group_scores(users, effects, user=user, vertical=vertical, query_topic=query_topic)  # (R, G)
    offset = generator.integers(0, LANES, len(user))
    lane = (offset[request] + position) % LANES
    softmax = numerator[request] * day.group_weights().astype(np.float32)[lane]  # (N, G)
    eligible = (numerator[request] > 0) * day.group_sizes().astype(np.float32)[lane]  # (N, G)
    explores = generator.random(len(request)) < EXPLORATION
    group = _choose(np.where(explores[:, None], eligible, softmax), generator)
    begin, end = day.bounds[lane * eligible.shape[1] + group], day.bounds[lane * eligible.shape[1] + group + 1]
    luck = generator.random(len(request))
    uniform_pick = begin + (luck * (end - begin)).astype(np.int64)
    target = day.cumulative[begin] + luck * (day.cumulative[end] - day.cumulative[begin])
    weighted_pick = np.searchsorted(day.cumulative, target, side="right") - 1
    pick = np.clip(np.where(explores, uniform_pick, weighted_pick), begin, end - 1)
    score = np.take_along_axis(numerator[request], group[:, None], axis=1)[:, 0].astype(np.float64)
    total = softmax.sum(axis=1, dtype=np.float64)
    exploit = score * day.weight[pick] / total
    propensity = ((1 - EXPLORATION) * exploit + EXPLORATION / eligible.sum(axis=1, dtype=np.float64)) / LANES
    return day.order[pick], propensity


def _group_scores(
    users: Users, effects: Effects, *, user: Integers, vertical: Integers, query_topic: Integers
) -> NDArray[np.float32]:
    """exp(s) of each (request, topic x language), 0 where the vertical shuts the topic out; (R, G)."""
    topics = len(catalogue.topics())
    score = (NOISE_WEIGHT * users.taste_noise[user] @ effects.policy_noise).astype(np.float32)  # (R, T)
    rows = np.arange(len(user))
    for slot in range(MAX_LIKED):
        # Slots without a topic hold -1 and strength 0: they add nothing to the last topic.
        score[rows, users.liked[user, slot]] += (RELEVANCE_WEIGHT * users.strength[user, slot]).astype(np.float32)
    searching = np.flatnonzero(query_topic >= 0)
    score[searching, query_topic[searching]] += QUERY_WEIGHT
    numerator = np.exp(score)
    category_of_topic = np.arange(topics) // (topics // len(catalogue.categories()))
    numerator *= (vertical < 0)[:, None] | (vertical[:, None] == category_of_topic)
    own = np.where(users.language[user][:, None] == np.arange(len(catalogue.LANGUAGES)), np.exp(OWN_LANGUAGE), 1.0)
    return (numerator[:, :, None] * own[:, None, :].astype(np.float32)).reshape(len(user), -1)


def _choose(weights: NDArray[np.float32], generator: np.random.Generator) -> Integers:
    """Draw one column a row in proportion to `weights` (N, G); never one of weight 0."""
    cumulative = np.cumsum(weights, axis=1, dtype=np.float64)
    target = generator.random(len(weights)) * cumulative[:, -1]
    chosen = (cumulative <= target[:, None]).sum(axis=1)
    return np.asarray(np.minimum(chosen, weights.shape[1] - 1), np.int64)
