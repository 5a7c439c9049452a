"""An explanation in words, in the reader's language: one plain sentence of what contributed, and the lines of its tables."""

import numpy as np

from adrec.inference.explain.counterfactual import Change
from adrec.inference.explain.explainer import Explanation, Part
from adrec.inference.explain.names import feature_name

_MOST = 2
_WORTH_NAMING = 0.02
_LONGEST = 60
_CLEARLY = 0.5
"""Deviations from the mean beyond which a number is called high or low."""


def sentence(explanation: Explanation, language: str | None = None) -> str:
    """`Click probability 31.0%, chiefly for your click on "..."; what speaks against it: ...`, or its Chinese form.

    `language` zh or en; None: the one that the user reads.
    """
    chinese = (language or explanation.reader) == "zh"
    parts = [part for part in explanation.parts if part.kind not in {"together", "word"}]
    # A word by itself says little: those that speak for the ad count together, and those that speak against it.
    for sign in (1, -1):
        words = [part for part in explanation.parts if part.kind == "word" and sign * part.contribution > 0]
        if words:
            lit = ("、" if chinese else ", ").join(part.name for part in words[:2])
            parts.append(Part("words", "words", lit, sum(part.contribution for part in words)))
    # What any ad gains is no reason for this one.
    parts = [part for part in parts if not (part.contribution > 0 and _for_any_ad(part))]
    strong = sorted(
        (part for part in parts if abs(part.contribution) >= _WORTH_NAMING), key=lambda part: -abs(part.contribution)
    )
    reasons = [_reason(part, chinese) for part in strong if part.contribution > 0][:_MOST]
    against = [_reason(part, chinese) for part in strong if part.contribution < 0][:_MOST]
    score = f"{explanation.score:.1%}"
    if chinese:
        text = f"点击概率 {score}"
        text += f"，主要因为{'、'.join(reasons)}" if reasons else ""
        text += f"；不利因素是{'、'.join(against)}" if against else ""
        return text + "。"
    text = f"Click probability {score}"
    text += f", chiefly for {' and '.join(reasons)}" if reasons else ""
    text += f"; what speaks against it: {' and '.join(against)}" if against else ""
    return text + "."


def part_label(part: Part, *, chinese: bool) -> str:
    """A part as a line of a table. Interests, search and clicks are there by how they match the ad."""
    value = _short(part.value)
    match part.kind:
        case "click":
            return f"与点击过的“{value or part.name}”的匹配" if chinese else f"match with your click on “{value or part.name}”"
        case "skipped":
            return f"与略过的“{value or part.name}”的匹配" if chinese else f"match with “{value or part.name}”, passed over"
        case "interests" if _for_any_ad(part):
            return f"兴趣“{value}”（对多数广告如此）" if chinese else f"your interests, as for most ads: {value}"
        case "query" if _for_any_ad(part):
            return f"搜索词“{value}”（对多数广告如此）" if chinese else f"your search, as for most ads: {value}"
        case "interests":
            return f"与兴趣“{value}”的匹配" if chinese else f"match with your interests: {value}"
        case "query":
            return f"与搜索词“{value}”的匹配" if chinese else f"match with your search: {value}"
        case "word":
            return f"文案“{part.name}”" if chinese else f"{'words' if ' ' in part.name else 'word'} “{part.name}”"
    name = feature_name(part.name, chinese=chinese)
    return f"{name}{'：' if chinese else ': '}{value}" if value else name


def change_label(change: Change, *, chinese: bool) -> str:
    """A change as a line of a table."""
    value = _short(change.value) or change.name
    match change.kind:
        case "click":
            return f"未点击过“{value}”" if chinese else f"without your click on “{value}”"
        case "skipped":
            return f"未略过“{value}”" if chinese else f"without passing over “{value}”"
        case "clicks":
            return f"没有全部 {change.value} 次点击" if chinese else f"without all {change.value} clicks"
        case "interests":
            return f"没有兴趣“{value}”" if chinese else f"without your interests: {value}"
        case "query":
            return f"没有搜索词“{value}”" if chinese else f"without your search: {value}"
        case "slot":
            return f"不限于第 {value} 位" if chinese else f"in any slot, not in slot {value}"
    return f"类别改为“{value}”" if chinese else f"in the category {value}"


def _reason(part: Part, chinese: bool) -> str:
    """A part as a phrase of a sentence."""
    value = _short(part.value) or part.name
    match part.kind:
        case "click":
            return f"曾点击“{value}”" if chinese else f"your click on “{value}”"
        case "skipped":
            return f"曾略过“{value}”" if chinese else f"passing over “{value}”"
        case "interests":
            return f"兴趣“{value}”" if chinese else f"your interests ({value})"
        case "query":
            return f"搜索词“{value}”" if chinese else f"your search “{value}”"
        case "words":
            return f"文案中的“{value}”" if chinese else f"the words “{value}”"
    name = feature_name(part.name, chinese=chinese)
    if part.deviation is not None:
        if abs(part.deviation) < _CLEARLY:
            return name if chinese else f"the {name}"
        if chinese:
            return f"{name}{'较高' if part.deviation > 0 else '较低'}"
        return f"{'high' if part.deviation > 0 else 'low'} {name}"
    if not part.value:
        return name if chinese else f"the {name}"
    return f"{name}“{value}”" if chinese else f"the {name} ({value})"


def _for_any_ad(part: Part) -> bool:
    """Whether most of it is no match: other ads gain (or lose) at least half as much."""
    return part.for_others is not None and part.for_others * np.sign(part.contribution) >= abs(part.contribution) / 2


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
