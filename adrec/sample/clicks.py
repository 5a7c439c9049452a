"""The sample's click model: who would click what, and what happens after the click. `docs/data/sample.md` has the formulas.

A position-based model (Richardson, Dominowska and Ragno 2007): a click needs the slot to be looked at and the ad to please.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adrec.sample import catalogue, makers
from adrec.sample.world import Ads, Floats, Integers, Users

SCENARIOS = ("social", "search", "email", "vertical")
SCENARIO_SHARE = (0.45, 0.3, 0.1, 0.15)
SLOTS = np.array([4, 5, 1, 3])
"""Ads a request shows."""
DISCOUNT = np.array([0.35, 0.55, 0.0, 0.25])
"""Slot k is looked at with probability k ** -DISCOUNT of its scenario; the first always."""

# Terms of the click logit.
INTERCEPT = -2.85
SCENARIO_EFFECT = np.array([0.0, 0.2, 0.3, 0.1])
INTEREST_WEIGHT = np.array([2.3, 1.1, 2.3, 2.0])
QUERY_WEIGHT = 1.7
OFFER_EFFECT = np.array([0.0, 0.35, 0.8, -0.7])
TOPIC_SPREAD = 0.15
AGE_WEIGHT = 0.25
REGION_WEIGHT = 0.1
PRICE_WEIGHT = -0.1
FOREIGN_LANGUAGE = -1.5
QUALITY_SPREAD = 0.05
USER_SPREAD = 0.05
EVENING_EFFECT = 0.2
MAKER_WEIGHT = 2.2
"""Of ads with a graph: each user is fond of the makers of one group."""
LOOK_WEIGHT = 1.6
"""Of ads with pictures: the hue that each age likes best is another."""
KEY_WEIGHT = 1.6
"""Of ads with sounds: the pitch that each region likes best is another."""

# Terms of the conversion logit, given a click.
CONVERSION_INTERCEPT = -3.2
CONVERSION_INTEREST = 1.4
CONVERSION_PRICE = -0.6
CONVERSION_HALF_PRICE = 0.5
ADVERTISER_SPREAD = 0.5
DELAY_MEDIAN_HOURS = 8.0
DELAY_SPREAD = 1.2
DELAY_LIMIT_HOURS = 168.0


@dataclass(frozen=True)
class Delays:
    """How much later than usual conversions come."""

    times: float = 1.0
    """so many times the usual median and limit"""
    by_price: float = 0.0
    """log of the median for each standard deviation of the ad's price: above 0 what is dear takes longer to be bought"""


USUAL = Delays()


@dataclass(frozen=True)
class Effects:
    """Effects drawn once a world: `topic` (T,) and `advertiser` (V,) in logits, `policy_noise` (6, T)."""

    topic: Floats
    advertiser: Floats
    policy_noise: Floats


def draw_effects(advertisers: int, generator: np.random.Generator) -> Effects:
    """Draw the world's effects."""
    topics = len(catalogue.topics())
    return Effects(
        TOPIC_SPREAD * generator.normal(size=topics),
        ADVERTISER_SPREAD * generator.normal(size=advertisers),
        generator.normal(size=(6, topics)) / 6**0.5,
    )


def affinity(users: Users, user: Integers, topic: Integers) -> Floats:
    """How much each user likes each topic, in [0, 1]; (N,) from (N,) and (N,)."""
    matches = users.liked[user] == topic[:, None]
    return np.asarray((matches * users.strength[user]).sum(axis=1), np.float64)


def examination(scenario: Integers, position: Integers) -> Floats:
    """Probability that the slot is looked at, in (0, 1]; (N,)."""
    return np.asarray(position ** -DISCOUNT[scenario], np.float64)


def attraction(
    ads: Ads, users: Users, effects: Effects,
    *, user: Integers, ad: Integers, scenario: Integers, query_topic: Integers, hour: Integers,
) -> Floats:  # fmt: skip
    """Probability of a click on an ad that is looked at, in (0, 1); (N,)."""
    topic, category = ads.topic[ad], ads.category[ad]
    groups = len(catalogue.categories())
    age_wave = np.cos(2 * np.pi * (users.age[user] / len(catalogue.AGE_BANDS) - category / groups))
    region_wave = np.sin(2 * np.pi * (users.region[user] / len(catalogue.REGIONS) + category / groups))
    logit = (
        INTERCEPT
        + SCENARIO_EFFECT[scenario]
        + INTEREST_WEIGHT[scenario] * affinity(users, user, topic)
        + QUERY_WEIGHT * (query_topic == topic)
        + effects.topic[topic]
        + OFFER_EFFECT[ads.offer[ad]]
        + AGE_WEIGHT * age_wave
        + REGION_WEIGHT * region_wave
        + PRICE_WEIGHT * ads.price_z[ad]
        + FOREIGN_LANGUAGE * (users.language[user] != ads.language[ad])
        + QUALITY_SPREAD * ads.quality[ad]
        + USER_SPREAD * users.bias[user]
        + EVENING_EFFECT * (hour >= 18)
    )
    if ads.look is not None:
        logit = logit + LOOK_WEIGHT * np.cos(2 * np.pi * (ads.look[ad] - users.age[user] / len(catalogue.AGE_BANDS)))
    if ads.key is not None:
        logit = logit + KEY_WEIGHT * np.cos(2 * np.pi * (ads.key[ad] - users.region[user] / len(catalogue.REGIONS)))
    if ads.maker is not None:
        logit = logit + MAKER_WEIGHT * (makers.group_of(ads.maker[ad]) == makers.fond_of(user))
    return sigmoid(logit)


@dataclass(frozen=True)
class Outcome:
    """What followed the impressions; (N,). Delay (hours) and dwell (seconds) are NaN where nothing happened."""

    click: NDArray[np.bool_]
    conversion: NDArray[np.bool_]
    delay_hours: Floats
    dwell_seconds: Floats


def draw_outcome(
    probability: Floats, ads: Ads, users: Users, effects: Effects,
    *, user: Integers, ad: Integers, generator: np.random.Generator, delays: Delays = USUAL,
) -> Outcome:  # fmt: skip
    """Draw click, conversion, its delay and the time spent, for impressions with click probability `probability`."""
    count = len(probability)
    click = generator.random(count) < probability
    match = affinity(users, user, ads.topic[ad])
    conversion = click & (generator.random(count) < conversion_rate(ads, users, effects, user=user, ad=ad))
    longer = delays.by_price * ads.price_z[ad] + DELAY_SPREAD * generator.normal(size=count)
    delay = np.minimum(delays.times * DELAY_MEDIAN_HOURS * np.exp(longer), delays.times * DELAY_LIMIT_HOURS)
    dwell = np.exp(np.log(15.0) + 0.9 * match + 0.7 * generator.normal(size=count))
    return Outcome(click, conversion, np.where(conversion, delay, np.nan), np.where(click, np.round(dwell, 1), np.nan))


def conversion_rate(ads: Ads, users: Users, effects: Effects, *, user: Integers, ad: Integers) -> Floats:
    """Probability that a click converts, in (0, 1); (N,)."""
    return sigmoid(
        CONVERSION_INTERCEPT
        + CONVERSION_INTEREST * affinity(users, user, ads.topic[ad])
        + CONVERSION_PRICE * ads.price_z[ad]
        + CONVERSION_HALF_PRICE * (ads.offer[ad] == catalogue.OFFERS.index("half"))
        + effects.advertiser[ads.advertiser[ad]]
    )


def sigmoid(logit: Floats) -> Floats:
    """1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-logit)), np.float64)
