"""Contributions of tokens → of words as a reader sees them: English by spaces, Chinese by jieba."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrec.data.text.segmenter import chinese_segmenter


@dataclass(frozen=True)
class Word:
    """A stretch of the ad's text, `text[start:end]`, and what it adds to the logit."""

    text: str
    start: int
    end: int
    contribution: float
    listed: float = 0.0
    """the part of `contribution` that the word has as an item of a list feature, whatever the text is about"""


def words_from_tokens(text: str, tokenizer: Any, contributions: NDArray[np.float64], max_tokens: int) -> list[Word]:
    """Words of `text` in order; a token's contribution goes to the word in which it starts.

    `contributions` (T,) of the tokens that `tokenizer` makes of `text`. What special tokens contribute (they are part of the
    baseline, so nothing) is left out. Words without a token (cut at `max_tokens`, or unknown) get 0.
    """
    hidden = [match.span() for token in getattr(tokenizer, "all_special_tokens", []) for match in _find(token, text)]
    spans = [
        (word, start, end)
        for word, start, end in chinese_segmenter().tokenize(text)
        if not word.isspace() and not any(left <= start < right for left, right in hidden)
    ]
    starts = np.array([start for _, start, _ in spans])
    totals = np.zeros(len(spans))
    offsets = _offsets(text, tokenizer, max_tokens)
    for (start, end), value in zip(offsets, contributions, strict=False):
        if end > start and len(starts):
            totals[max(int(np.searchsorted(starts, start, side="right")) - 1, 0)] += value
    return [Word(word, start, end, float(total)) for (word, start, end), total in zip(spans, totals, strict=True)]


def _find(token: str, text: str) -> Iterator[re.Match[str]]:
    """Where a special token stands in the text, as the template's separator does."""
    return re.finditer(re.escape(token), text)


def _offsets(text: str, tokenizer: Any, max_tokens: int) -> list[tuple[int, int]]:
    """(start, end) in `text` of each token; (0, 0) for special ones."""
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, truncation=True, max_length=max_tokens, return_offsets_mapping=True)
        return [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
    # Word tokenizers keep the order of the words: each token is looked for after the one before.
    found, place, lowered = [], 0, text.lower()
    known = {row: word for word, row in tokenizer.get_vocab().items()}
    for row in tokenizer([text], max_length=max_tokens)["input_ids"][0]:
        word = known[row]
        at = lowered.find(word, place)
        found.append((at, at + len(word)) if at >= 0 else (0, 0))
        place = max(place, at + len(word))
    return found
