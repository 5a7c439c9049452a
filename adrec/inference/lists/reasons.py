"""One plain sentence why an ad is shown, in the user's language, from the strongest evidence at hand.

Evidence, strongest first: a word of the query in the ad's text; a word of the user's interests in it; a past click linked to
the same entity (by the same maker); the past click most like the ad; the share of the ad's category in the history; at last the
click probability alone. It says what speaks for the ad, not what the network computed: `adrec explain` does that.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

SIMILAR_FROM = 0.5
"""Cosine from which a past click counts as like the ad."""
SHARE_FROM = 0.2
"""Share of the history from which a category counts as followed."""

_SENTENCES = {
    "explored": ("Shown to learn whether it interests you.", "试投放：了解您是否感兴趣。"),
    "query": ("Matches your search: “{}”.", "与您搜索的“{}”相符。"),
    "interest": ("Matches your interest in {}.", "与您关注的“{}”相符。"),
    "linked": ("You clicked “{}”, with the same {}: {}.", "您点击过“{}”，两者的{}相同：{}。"),
    "similar": ("Similar to “{}”, which you clicked.", "与您点击过的“{}”相似。"),
    "category": ("{} of your recent clicks are in {}.", "您近期的点击有{}属于“{}”。"),
    "score": ("Estimated click probability {}.", "预计点击率 {}。"),
}


class Evidence(NamedTuple):
    """What is known about N shown ads."""

    chinese: NDArray[np.bool_]  # (N,) whether the sentence is in Chinese, else in English
    query_word: pa.Array  # (N,) string, null where there is none
    interest_word: pa.Array  # (N,) string, null where there is none
    similarity: NDArray[np.floating]  # (N,) largest cosine to a past click, NaN where there is none
    similar_title: pa.Array  # (N,) title of that click
    category: pa.Array  # (N,) category of the ad, null where it has none
    category_share: NDArray[np.floating]  # (N,) its share of the history, in [0, 1]
    score: NDArray[np.floating]  # (N,) click probability
    explored: NDArray[np.bool_]  # (N,) chosen at random
    linked: tuple[pa.Array, pa.Array, pa.Array] | None = None
    """(N,) title of a past click, relation and entity that it shares with the ad, null where none; None: nobody knows"""


def sentences(evidence: Evidence) -> pa.Array:
    """(N,) strings."""
    similar = np.nan_to_num(evidence.similarity, nan=-1.0) >= SIMILAR_FROM
    followed, linked = evidence.category_share >= SHARE_FROM, evidence.linked
    weakest_first: list[tuple[str, pa.Array, Callable[[], tuple[pa.Array, ...]]]] = [
        (
            "category",
            pc.and_(pa.array(followed), evidence.category.is_valid()),
            lambda: (_percent(evidence.category_share, 0), evidence.category),
        ),
        (
            "similar",
            pc.and_(pa.array(similar), evidence.similar_title.is_valid()),
            lambda: (_shortened(evidence.similar_title),),
        ),
        *([("linked", linked[0].is_valid(), lambda: (_shortened(linked[0]), *linked[1:]))] if linked is not None else []),
        ("interest", evidence.interest_word.is_valid(), lambda: (evidence.interest_word,)),
        ("query", evidence.query_word.is_valid(), lambda: (evidence.query_word,)),
        ("explored", pa.array(evidence.explored), lambda: ()),
    ]
    result = _sentence("score", evidence.chinese, _percent(evidence.score, 1))
    for kind, holds, values in weakest_first:
        if holds.true_count:  # a sentence that no ad needs is not written
            result = pc.if_else(holds, _sentence(kind, evidence.chinese, *values()), result)
    return result


def _sentence(kind: str, chinese: NDArray[np.bool_], *values: pa.Array) -> pa.Array:
    english, han = (_filled(template, values, len(chinese)) for template in _SENTENCES[kind])
    return pc.if_else(pa.array(chinese), han, english)


def _filled(template: str, values: tuple[pa.Array, ...], rows: int) -> pa.Array:
    parts = template.split("{}")
    joined: list[pa.Array | pa.Scalar] = [pa.array([parts[0]]).take(pa.array(np.zeros(rows, dtype=np.int64)))]
    for value, literal in zip(values, parts[1:], strict=True):
        joined += [value, pa.scalar(literal)]
    return pc.binary_join_element_wise(*joined, pa.scalar(""))


def _percent(share: NDArray[np.floating], digits: int) -> pa.Array:
    shown = np.round(np.nan_to_num(share) * 100, digits)
    text = pc.cast(pa.array(shown.astype(np.int64) if digits == 0 else shown), pa.string())
    return pc.binary_join_element_wise(text, pa.scalar("%"), pa.scalar(""))


def _shortened(title: pa.Array) -> pa.Array:
    long = pc.greater(pc.utf8_length(title), 60)
    cut = pc.binary_join_element_wise(pc.utf8_slice_codeunits(title, 0, 58), pa.scalar("…"), pa.scalar(""))
    return pc.if_else(long, cut, title)
