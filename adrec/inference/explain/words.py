"""The words of an ad's text as a reader sees them (Chinese cut by jieba), and the text without some of them."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrec.data.text.segmenter import chinese_segmenter

MOST_STRETCHES = 40
"""A text of more words is cut into so many stretches of words: what each word of a long page adds is too little to tell."""


@dataclass(frozen=True)
class Word:
    """A stretch of the ad's text, `text[start:end]`: a word, or a few of a long text. `contribution`: see `Part`."""

    text: str
    start: int
    end: int
    contribution: float


def stretches(text: str, special: tuple[str, ...] = ()) -> list[tuple[int, int]]:
    """(start, end) of the words of `text` in order, at most MOST_STRETCHES. Neither punctuation nor `special` tokens."""
    hidden = [match.span() for token in special for match in re.finditer(re.escape(token), text)]
    spans = [
        (start, end)
        for word, start, end in chinese_segmenter().tokenize(text)
        if any(letter.isalnum() for letter in word) and not any(left <= start < right for left, right in hidden)
    ]
    if len(spans) <= MOST_STRETCHES:
        return spans
    return [(int(some[0, 0]), int(some[-1, 1])) for some in np.array_split(np.array(spans), MOST_STRETCHES)]


def without(text: str, spans: list[tuple[int, int]], present: NDArray[np.bool_]) -> str:
    """The text with only those of its `spans` that are `present` (W,); empty where none is, itself where all are."""
    if present.all():
        return text
    if not present.any():
        return ""
    pieces, end = [], 0
    for (start, stop), there in zip(spans, present.tolist(), strict=True):
        pieces.append(text[end:start])
        if there:
            pieces.append(text[start:stop])
        end = stop
    return " ".join("".join([*pieces, text[end:]]).split())


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """What stands in a text for the tokenizer alone."""
    return tuple(getattr(tokenizer, "all_special_tokens", ()))
