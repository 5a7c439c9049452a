"""An explanation as one plain sentence, in the language of the ad: only what contributed, the strongest first."""

from adrec.inference.explain.explainer import Explanation, Part

_MOST = 2
_WORTH_NAMING = 0.02


def sentence(explanation: Explanation) -> str:
    """`Likely (31 %), because you clicked "..."; less so because of ...`, or its Chinese form."""
    chinese = explanation.language == "zh"
    # Only what a reader knows as such: a word by itself says little, so words count together as the ad's text.
    words = sum(word.contribution for word in explanation.words)
    parts = [*(part for part in explanation.parts if part.kind != "other"), Part("text", "text", "", words)]
    strong = sorted(
        (part for part in parts if abs(part.contribution) >= _WORTH_NAMING), key=lambda part: -abs(part.contribution)
    )
    reasons = [_name(part, explanation, chinese) for part in strong if part.contribution > 0][:_MOST]
    against = [_name(part, explanation, chinese) for part in strong if part.contribution < 0][:_MOST]
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


def _name(part: Part, explanation: Explanation, chinese: bool) -> str:
    if part.kind == "click":
        return f"曾点击“{part.value}”" if chinese else f'your click on "{part.value}"'
    if part.kind == "skipped":
        return f"曾略过“{part.value}”" if chinese else f'passing over "{part.value}"'
    if part.kind == "interests":
        return f"兴趣“{part.value}”" if chinese else f"your interests ({part.value})"
    if part.kind == "query":
        return f"搜索词“{part.value}”" if chinese else f'your search "{part.value}"'
    if part.kind == "text":
        positive = [word.text for word in sorted(explanation.words, key=lambda word: -word.contribution)]
        lit = positive[:2] if part.contribution > 0 else positive[::-1][:2]
        return f"文案中的“{'、'.join(lit)}”" if chinese else f'the words "{", ".join(lit)}"'
    readable = part.name.removeprefix("counter_").replace("_", " ")
    shown = f" ({part.value})" if part.value else ""
    return f"特征 {readable}{shown}" if chinese else f"{readable}{shown}"
