"""The words of pages in Chinese: English patterns -> Chinese ones, in zh.yaml. A sentence that has none stays English.

A pattern's `{n}`, `{m}`, `{k}`, `{s}`, `{nt}` and `{nr}` are numbers; any other `{name}` is whatever stands there:
a name, or words that are looked up in turn.
"""

import re
from functools import cache
from importlib.resources import files

_HOLE = re.compile(r"\\\{(\w+)\\\}")
_NUMBER = r"[-+−–]?[\d.,]+(?:e[-+]\d+)?%?|nan|–"


def translated(text: object, *, language: str = "en") -> str:
    """`text` in the language of a page.

    >>> translated("5,603 rows", language="zh")
    '5,603 行'
    >>> translated("a title of yours", language="zh")
    'a title of yours'
    """
    words = str(text)
    if language == "en" or not words.strip():
        return words
    return _in_chinese(words)


def _in_chinese(words: str) -> str:
    exact, patterns = _catalogue()
    plain = " ".join(words.split())
    if plain in exact:
        return exact[plain]
    for pattern, chinese in patterns:
        match = pattern.fullmatch(plain)
        if match is not None:
            return chinese.format(**{name: _in_chinese(value) for name, value in match.groupdict().items()})
    return words


@cache
def _catalogue() -> tuple[dict[str, str], list[tuple[re.Pattern[str], str]]]:
    """Sentences without holes, and patterns; those with more words of their own first."""
    import yaml

    entries: dict[str, str] = yaml.safe_load((files("adrec.pages") / "zh.yaml").read_text(encoding="utf-8"))
    exact = {english: chinese for english, chinese in entries.items() if "{" not in english}
    holed = sorted(
        (english for english in entries if "{" in english), key=lambda english: -len(re.sub(r"\{.*?\}", "", english))
    )
    patterns = [(re.compile(_HOLE.sub(_group, re.escape(english))), entries[english]) for english in holed]
    return exact, patterns


def _group(hole: re.Match[str]) -> str:
    return f"(?P<{hole[1]}>{_NUMBER if hole[1] in _NUMBERS else '.+?'})"


_NUMBERS = frozenset({"n", "m", "k", "s", "nt", "nr"})
