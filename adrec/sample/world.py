"""The sample's ads and users: hidden traits as arrays, and the words through which alone the traits can be read.

Memory grows with the number of ads and users, not with the number of impressions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.sample import catalogue
from adrec.schema import TIMESTAMP

DAYS = 14
START = datetime(2026, 3, 2, tzinfo=UTC)
LANES = 6
"""The ads are dealt into so many lanes; the slots of one request come from different lanes, so no ad is shown twice in it."""
MAX_LIKED = 4
_DAY_MICROSECONDS = 86_400_000_000

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Ads:
    """Hidden and visible traits, one entry an ad (A,). `first_day` and `last_day` are inclusive days of the log."""

    topic: Integers
    category: Integers
    language: Integers
    lane: Integers
    offer: Integers
    advertiser: Integers
    quality: Floats
    price_z: Floats
    bid: Floats
    first_day: Integers
    last_day: Integers
    table: pa.Table
    look: Floats | None = None
    """(A,) hue of its picture, in [0, 1); None where ads have no pictures"""
    key: Floats | None = None
    """(A,) pitch of its jingle, in [0, 1); None where ads have no sounds"""
    maker: Integers | None = None
    """(A,) who makes what it sells; None where there is no graph. Makers belong to groups: `makers.GROUPS`"""


@dataclass(frozen=True)
class Users:
    """Hidden and visible traits, one entry a user (U,), ordered by first day. `liked` (U, 4) topics, -1 where none."""

    liked: Integers
    strength: Floats
    language: Integers
    age: Integers
    region: Integers
    bias: Floats
    taste_noise: Floats
    activity: Floats
    first_day: Integers
    table: pa.Table


def counts(impressions: int) -> tuple[int, int]:
    """Ads and users of a log: 600 and 1,500 for 30,000 impressions; ads grow as the square root, users in proportion."""
    ads = max(288, round(800 * (impressions / 30_000) ** 0.5))
    return ads, max(60, impressions // 20)


def make_ads(count: int, advertiser_effects: Floats, generator: np.random.Generator) -> Ads:
    """Draw `count` ads. `advertiser_effects` only says how many advertisers there are."""
    topics = catalogue.topics()
    groups = len(catalogue.categories())
    per_category = len(topics) // groups
    number = np.arange(count)
    category = number % groups
    lane = (number // groups) % LANES
    topic = category * per_category + generator.integers(0, per_category, count)
    language = generator.integers(0, 2, count)
    offer = generator.choice(len(catalogue.OFFERS), count, p=catalogue.OFFER_SHARE)
    advertisers_each = max(1, len(advertiser_effects) // groups)
    advertiser = category + groups * generator.integers(0, advertisers_each, count)
    price_z = generator.normal(size=count)
    first_day, last_day = _ad_life(count, generator)
    # One ad of each category and lane always runs, so that every slot of every request can be filled.
    first_day[: groups * LANES], last_day[: groups * LANES] = -1, DAYS
    bid = np.round(0.5 * np.exp(0.4 * generator.normal(size=count)), 3)
    texts = _ad_texts(topic, language, offer, advertiser, generator)
    table = pa.table(
        {
            "ad_id": identifiers("a", count),
            **texts,
            "category": pa.array(catalogue.categories()).take(pa.array(category)),
            "advertiser_id": identifiers("v", len(advertiser_effects)).take(pa.array(advertiser)),
            "starts_at": _midnight(first_day),
            "ends_at": _midnight(last_day + 1),
            "bid": bid,
            "budget": np.round(bid * np.exp(generator.normal(4.5, 0.8, count)), 2),
            "price": np.round(20 * (1 + category) * np.exp(0.5 * price_z), 2),
        }
    )
    quality = generator.normal(size=count)
    return Ads(topic, category, language, lane, offer, advertiser, quality, price_z, bid, first_day, last_day, table)


def make_users(count: int, generator: np.random.Generator) -> Users:
    """Draw `count` users; about a sixth appear after the first day, and one in twelve states no interests."""
    late = generator.random(count) < 0.17
    first_day = np.sort(np.where(late, generator.integers(1, DAYS, count), 0))
    region = generator.choice(len(catalogue.REGIONS), count, p=(0.25, 0.25, 0.15, 0.15, 0.15, 0.05))
    language = (generator.random(count) < np.array(catalogue.CHINESE_SHARE)[region]).astype(np.int64)
    liked, strength = _tastes(count, generator)
    stated = (liked >= 0) & (generator.random(liked.shape) < 0.99)
    stated &= (generator.random(count) >= 0.04)[:, None]
    age = generator.choice(len(catalogue.AGE_BANDS), count, p=(0.22, 0.28, 0.22, 0.16, 0.12))
    table = pa.table(
        {
            "user_id": identifiers("u", count),
            "interests": _interests(liked, stated, language, generator),
            "age_band": pa.array(catalogue.AGE_BANDS).take(pa.array(age, mask=generator.random(count) < 0.04)),
            "region": pa.array(catalogue.REGIONS).take(pa.array(region)),
        }
    )
    activity = np.exp(0.9 * generator.normal(size=count)) * np.where(first_day > 0, 1.6, 1.0)
    noise = generator.normal(size=(count, 6))
    return Users(
        liked, strength, language, age, region, generator.normal(size=count), noise, activity, first_day, table
    )  # fmt: skip


def identifiers(prefix: str, count: int, start: int = 0) -> pa.Array:
    """`prefix` and a number of at least seven digits, from `start` on."""
    digits = pc.utf8_lpad(pa.array(np.arange(start, start + count)).cast(pa.string()), 7, padding="0")
    return pc.binary_join_element_wise(prefix, digits, "")


def _ad_life(count: int, generator: np.random.Generator) -> tuple[Integers, Integers]:
    """Two in five ads run from before the log on, one in five starts in its last three days. All run three days or more."""
    kind = generator.random(count)
    old = kind < 0.4
    first_day = np.where(kind < 0.8, generator.integers(0, DAYS, count), generator.integers(DAYS - 3, DAYS, count))
    first_day = np.where(old, -generator.integers(1, 10, count), first_day)
    length = generator.integers(3, 25, count)
    # An ad from before the log still runs on its first day.
    length = np.where(old, length - first_day, length)
    return first_day, first_day + length


def _midnight(day: Integers) -> pa.Array:
    start = int(START.timestamp() * 1_000_000)
    return pa.array(start + day * _DAY_MICROSECONDS).cast(TIMESTAMP)


def _tastes(count: int, generator: np.random.Generator) -> tuple[Integers, Floats]:
    """One to four liked topics each (-1 fills), with strengths 1, .85, .7, .55."""
    topics = len(catalogue.topics())
    size = generator.choice(np.arange(1, MAX_LIKED + 1), count, p=(0.15, 0.35, 0.3, 0.2))
    # Distinct by construction: steps of a random walk around the circle of topics, shorter than one round in all.
    steps = generator.integers(1, topics // MAX_LIKED, (count, MAX_LIKED))
    liked = (generator.integers(0, topics, count)[:, None] + np.cumsum(steps, axis=1)) % topics
    present = np.arange(MAX_LIKED) < size[:, None]
    strength = np.where(present, np.array([1.0, 0.95, 0.9, 0.85]), 0.0)
    return np.where(present, liked, -1), strength


def _interests(liked: Integers, stated: NDArray[np.bool_], language: Integers, generator: np.random.Generator) -> pa.Array:
    """A list of strings a user: one name of each stated topic, in the user's language."""
    flat_names, base, per = flat_phrases("names")
    user, slot = np.nonzero(stated)
    topic = liked[user, slot]
    picks = base[language[user], topic] + generator.integers(0, per, len(user))
    offsets = np.concatenate([[0], np.cumsum(stated.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat_names.take(pa.array(picks)))


def flat_phrases(kind: str) -> tuple[pa.Array, Integers, int]:
    """All `names` or `words` in one array, where each (language, topic) begins in it, and how many each has."""
    flat: list[str] = []
    base = np.zeros((len(catalogue.LANGUAGES), len(catalogue.topics())), np.int64)
    per = 0
    for code, language in enumerate(catalogue.LANGUAGES):
        for number, topic in enumerate(catalogue.topics()):
            base[code, number] = len(flat)
            phrases = getattr(topic, kind)[language]
            flat.extend(phrases)
            per = len(phrases)
    return pa.array(flat), base, per


def _ad_texts(
    topic: Integers, language: Integers, offer: Integers, advertiser: Integers, generator: np.random.Generator
) -> dict[str, pa.Array]:
    """Titles and descriptions. Each holds different words of the ad's topic; the offer stands at the title's end."""
    count = len(topic)
    words, base, per = flat_phrases("words")
    first = generator.integers(0, per, count)
    step = generator.integers(1, per // 2, (count, 2))
    second, third = (first + step[:, 0]) % per, (first + step[:, 0] + step[:, 1]) % per
    word = [words.take(pa.array(base[language, topic] + pick)) for pick in (first, second, third)]
    names, name_base, name_per = flat_phrases("names")
    called = generator.integers(0, name_per, count)
    other = (called + generator.integers(1, name_per, count)) % name_per
    name, other_name = (names.take(pa.array(name_base[language, topic] + pick)) for pick in (called, other))
    abroad = names.take(pa.array(name_base[1 - language, topic] + called))
    opener = _by_language(catalogue.OPENERS, language, generator.integers(0, 5, count))
    filler = _by_language(catalogue.FILLERS, language, generator.integers(0, 5, count))
    brand = _brands(advertiser, language)
    tail = pa.array(
        [
            phrase
            for lang in catalogue.LANGUAGES
            for kind in catalogue.OFFERS
            for phrase in catalogue.TAILS[lang][kind]
        ]
    ).take(pa.array((language * len(catalogue.OFFERS) + offer) * 4 + generator.integers(0, 4, count)))  # fmt: skip
    says_name = pa.array(generator.random(count) < 0.9)
    bilingual = pa.array(generator.random(count) < catalogue.BILINGUAL_SHARE)
    chinese = pa.array(language == 1)
    translated = pc.if_else(
        chinese, pc.binary_join_element_wise("（", abroad, "）", ""), pc.binary_join_element_wise(" (", abroad, ")", "")
    )  # fmt: skip
    name = pc.if_else(bilingual, pc.binary_join_element_wise(name, translated, ""), name)
    title = pc.binary_join_element_wise(opener, word[0], tail, "")
    english_body = pc.binary_join_element_wise(word[1], " and ", word[2], " from ", brand, "", "")
    english_body = pc.if_else(
        says_name, pc.binary_join_element_wise(english_body, ", for fans of ", name, " and ", other_name, ". ", filler, ""),
        pc.binary_join_element_wise(english_body, ". ", filler, ""),
    )  # fmt: skip
    chinese_body = pc.binary_join_element_wise(brand, "精选", word[1], "、", word[2], "")
    chinese_body = pc.if_else(
        says_name, pc.binary_join_element_wise(chinese_body, "，献给爱", name, "和", other_name, "的你。", filler, ""),
        pc.binary_join_element_wise(chinese_body, "。", filler, ""),
    )  # fmt: skip
    description = pc.if_else(chinese, chinese_body, english_body)
    return {"title": _capital(title), "description": _capital(description)}


def _capital(text: pa.Array) -> pa.Array:
    """First letter upper case, the rest untouched."""
    return pc.binary_join_element_wise(pc.utf8_upper(pc.utf8_slice_codeunits(text, 0, 1)), pc.utf8_slice_codeunits(text, 1), "")


def _by_language(phrases: Mapping[str, tuple[str, ...]], language: Integers, pick: Integers) -> pa.Array:
    flat = [phrase for code in catalogue.LANGUAGES for phrase in phrases[code]]
    return pa.array(flat).take(pa.array(language * len(phrases["en"]) + pick))


def _brands(advertiser: Integers, language: Integers) -> pa.Array:
    """A made-up name an advertiser, spelt in the ad's language."""
    starts, ends = catalogue.BRAND_STARTS, catalogue.BRAND_ENDS
    number = advertiser % (len(starts["en"]) * len(ends["en"]))
    return pc.binary_join_element_wise(
        _by_language(starts, language, number % len(starts["en"])),
        _by_language(ends, language, (number // len(starts["en"]) + number) % len(ends["en"])),
        "",
    )
