"""What the sample's ads can be about and how they say it: topics, offers and phrases in Chinese and English.

A topic is readable only in words: `category` is coarser (five topics each), and a user's interests are named by other
words than the ones ads use, so that a model has to learn that "jogging" and "cushioned sneakers" belong together.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

LANGUAGES = ("en", "zh")
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55+")
REGIONS = ("cn-north", "cn-south", "us-east", "us-west", "eu-west", "sg")
CHINESE_SHARE = (0.97, 0.97, 0.04, 0.04, 0.03, 0.5)
"""Share of each region's users who read Chinese."""

BILINGUAL_SHARE = 0.5
"""Share of the ads that repeat the topic's name in the other language, as ads in bilingual markets do."""

OFFERS = ("plain", "gift", "half", "terms")
"""What the copy promises: nothing, something free, half the price, or strings attached."""
OFFER_SHARE = (0.46, 0.2, 0.2, 0.14)

# TAILS[language][offer]: endings of a title.
TAILS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "plain": ("", ", new season", ", now in stock", ", made to last"),
        "gift": (", free delivery", ", gift included", ", first month free", ", free trial"),
        "half": (", half price", ", 50% off today", ", buy one get one", ", clearance at half the cost"),
        "terms": (", deposit required", ", no refunds", ", two-year contract", ", extra fees apply"),
    },
    "zh": {
        "plain": ("", "，新品上市", "，现货供应", "，经久耐用"),
        "gift": ("，免费配送", "，附赠礼品", "，首月免费", "，免费试用"),
        "half": ("，五折", "，限时半价", "，买一送一", "，清仓对折"),
        "terms": ("，需付定金", "，不支持退款", "，签约两年", "，另收手续费"),
    },
}
OPENERS = {
    "en": ("", "Discover ", "Meet the ", "Pick your ", "Ready for "),
    "zh": ("", "发现", "遇见", "挑选", "现在就选"),
}
FILLERS = {
    "en": (
        "Rated highly by thousands of customers.",
        "Delivered to your door within the week.",
        "Designed by people who care about detail.",
        "Visit our store or order online.",
        "Our team answers every question.",
    ),
    "zh": ("数千名顾客好评。", "一周之内送到家。", "由注重细节的人打造。", "欢迎到店或在线下单。", "客服解答每一个问题。"),
}
BRAND_STARTS = {
    "en": ("Nor", "Al", "Bri", "Cal", "Dor", "El", "Fen", "Gar", "Hal", "Ivo", "Jun", "Kel", "Lum", "Mar", "Ost", "Pel"),
    "zh": ("安", "博", "辰", "达", "恩", "飞", "冠", "恒", "嘉", "凯", "朗", "茂", "诺", "鹏", "锐", "盛"),
}
BRAND_ENDS = {
    "en": ("way", "ton", "vena", "mont", "field", "ora", "dell", "more", "wick", "stad", "lio", "bury"),
    "zh": ("乐", "源", "思", "和", "美", "通", "维", "尚", "泰", "优", "信", "宁"),
}


@dataclass(frozen=True)
class Topic:
    """One subject. `names[language]` are what users call it, `words[language]` what ads sell."""

    category: str
    name: str
    names: dict[str, tuple[str, ...]]
    words: dict[str, tuple[str, ...]]


@cache
def topics() -> tuple[Topic, ...]:
    """All topics, those of a category next to each other, the same number in each."""
    raw = json.loads(files("adrec.sample").joinpath("topics.json").read_text(encoding="utf-8"))
    return tuple(
        Topic(
            entry["category"],
            entry["topic"],
            {language: tuple(entry[language]["names"]) for language in LANGUAGES},
            {language: tuple(entry[language]["words"]) for language in LANGUAGES},
        )
        for entry in raw
    )


def categories() -> tuple[str, ...]:
    """Category names, in topic order."""
    return tuple(dict.fromkeys(topic.category for topic in topics()))
