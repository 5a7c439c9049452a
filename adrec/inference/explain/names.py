"""Features by names that people use, in English and Chinese: a counter says what it counts, a calendar part what it tells."""

import re

from adrec.data.features import FeatureSet
from adrec.data.features.categorical import UNKNOWN
from adrec.schema import COUNTER_PREFIX, as_of_column

_NAMES = {
    "bid": ("bid", "出价"),
    "price": ("price", "价格"),
    "budget": ("budget", "预算"),
    "category": ("category", "类别"),
    "advertiser_id": ("advertiser", "广告主"),
    "language": ("language of the ad", "广告语言"),
    "user_language": ("language of the user", "用户语言"),
    "title": ("phrase in the title", "标题用语"),
    "description": ("phrase in the description", "描述用语"),
    "segmented": ("word", "词语"),
    "interests": ("interest", "兴趣"),
    "history_length": ("number of earlier clicks", "历史点击次数"),
    "scenario": ("scenario", "场景"),
    "position": ("slot on the page", "展示位置"),
    "age_band": ("age band", "年龄段"),
    "age": ("age", "年龄"),
    "gender": ("gender", "性别"),
    "region": ("region", "地区"),
    "city": ("city", "城市"),
    "country": ("country", "国家"),
    "device": ("device", "设备"),
    "this very ad": ("what was learned of this very ad", "对这条广告本身的了解"),
    "this very user": ("what was learned of this very user", "对该用户本身的了解"),
    "together": ("what several of these say together", "上述几项共同的作用"),
}
_KEYS = {
    "user": ("this user", "该用户"),
    "ad": ("this ad", "该广告"),
    "advertiser": ("this advertiser", "该广告主"),
    "all": ("all ads", "全部广告"),
}
_MEASURES = {
    "impressions": ("impressions of {}", "{}的展示次数"),
    "clicks": ("clicks of {}", "{}的点击次数"),
    "rate": ("click rate of {}", "{}的点击率"),
    "conversions": ("conversions of {}", "{}的转化次数"),
    "conversion_rate": ("conversion rate of {}", "{}的转化率"),
    "hours_since_first": ("hours since the first impression of {}", "{}首次展示至今的小时数"),
    "history_count": ("earlier clicks on {}", "历史点击中{}的次数"),
    "history_share": ("share of {} among earlier clicks", "历史点击中{}的占比"),
}
_PARTS = {
    "hour": ("hour of the day", "时段"),
    "weekday": ("day of the week", "星期"),
    "weekend": ("weekend", "周末"),
}
_WHOLE = {
    "text": ("words of the ad", "广告文案"),
    "history": ("match with earlier clicks", "与历史点击的匹配"),
    "clicks": ("match with earlier clicks", "与历史点击的匹配"),
    "skipped": ("match with ads passed over", "与略过的广告的匹配"),
    "interests": ("match with the interests", "与兴趣的匹配"),
    "query": ("match with the search", "与搜索词的匹配"),
}
_COUNTER = re.compile(
    rf"{COUNTER_PREFIX}(?P<by>.+?)_(?P<measure>{'|'.join(sorted(_MEASURES, key=len, reverse=True))})(?:_(?P<hours>[\d.]+)h)?"
)


def feature_name(name: str, *, chinese: bool = False) -> str:
    """A feature's name in words. A column of the advertiser's own keeps its name, with spaces."""
    counter = _COUNTER.fullmatch(name)
    if counter is not None:
        return _counter(counter["by"], counter["measure"], counter["hours"], chinese)
    of = as_of_column(name)
    own = of[1] if of is not None else name
    if own in _NAMES:
        return _NAMES[own][chinese]
    for part, words in _PARTS.items():
        if own.endswith(f"_{part}"):
            return words[chinese]
    return own.replace("_", " ")


def group_label(kind: str, name: str, *, chinese: bool = False) -> str:
    """An input of the model as a whole: a text, a match, or a feature and whose it is."""
    if kind in _WHOLE:
        return _WHOLE[kind][chinese]
    own = feature_name(name, chinese=chinese)
    if kind in ("ad", "ads") and name in ("bid", "price", "category"):
        return f"广告的{own}" if chinese else f"{own} of the ad"
    return own


def shown_category(fitted: FeatureSet, column: int, code: int) -> str:
    """What a code of a categorical column stands for."""
    if column < len(fitted.categories):
        return fitted.categories[column].value(code)
    return str(code - 1) if code else UNKNOWN  # an hour of the day, or a day of the week from Monday 0


def _counter(by: str, measure: str, hours: str | None, chinese: bool) -> str:
    keys = []
    for key in by.split("_x_"):
        if key in _KEYS:
            keys.append(_KEYS[key][chinese])
        else:
            keys.append(f"该{feature_name(key, chinese=True)}" if chinese else f"this {feature_name(key)}")
    text = _MEASURES[measure][chinese].format("与".join(keys) if chinese else " with ".join(keys))
    if hours is None:
        return text
    return f"近期（{hours} 小时半衰）{text}" if chinese else f"recent {text} (half-life {hours} h)"
