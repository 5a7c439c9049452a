"""E-mail addresses and phone numbers in free text, masked as a reader would find them: after cleaning.

What is written in full width, in HTML entities or with zero-width characters between is the same to a model as in clear, so a
text is cleaned first; where it holds a contact, the cleaned and masked text takes its place, and any other stays as it was.
Phone numbers are those that the `phonenumbers` library holds valid, with a country code or as in one of the regions.
Costs a few passes of regular expressions; only texts with an @ or seven digits are looked at one by one, each distinct once.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.prepare.text.clean import gentle

EMAIL, PHONE = "[EMAIL]", "[PHONE]"
_AT = r"(?:\s?@\s?|\s*[\[({]\s*at\s*[\])}]\s*)"
_DOT = r"(?:[.。｡]|\s*[\[({]\s*dot\s*[\])}]\s*)"
_LATIN = r"[^\W\d_\u2e80-\U0003ffff]"
"""Letters of scripts that put spaces between words: an address ends where another script begins."""
_LOCAL = rf"(?:(?:{_LATIN}|[\d_\u0300-\u036f.%+'\-]){{0,63}}(?:{_LATIN}|[\d_])|[\u2e80-\U0003ffff]{{1,64}})"
_LABEL = r"[\w\u0300-\u036f\-]{1,63}"
_TOP = rf"(?:xn--[a-z0-9\-]+|[A-Za-z]{{2,24}}|(?:(?![A-Za-z]){_LATIN}){{2,24}}|[\u2e80-\U0003ffff]{{2,}})"
_ADDRESS = re.compile(rf"{_LOCAL}{_AT}(?:{_LABEL}{_DOT}){{1,8}}{_TOP}", re.IGNORECASE)
_MAYBE = r"@|(?i:[\[({]\s*at\s*[\])}])|(?:\p{Nd}[^\p{L}\p{Nd}]{0,3}){7,}"
_MOST_DECODINGS = 3
_WHOLE = 2**31 - 1


def masked(texts: pa.Array | pa.ChunkedArray, regions: Sequence[str]) -> pa.Array:
    """(N,) texts with [EMAIL] and [PHONE] for contacts. `regions` (CN, US): whose numbers are known without a country code."""
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    encoded = texts.cast(pa.string()).dictionary_encode()
    distinct = encoded.dictionary
    cleaned = gentle(distinct, max_characters=_WHOLE)
    for _ in range(_MOST_DECODINGS):  # an entity may be written in entities
        again = gentle(cleaned, max_characters=_WHOLE)
        if again.equals(cleaned):
            break
        cleaned = again
    rows = np.flatnonzero(pc.fill_null(pc.match_substring_regex(cleaned, _MAYBE), False).to_numpy(zero_copy_only=False))
    masked_texts: dict[int, str] = {}
    for row, text in zip(rows.tolist(), cleaned.take(pa.array(rows)).to_pylist(), strict=True):
        without = mask(text, tuple(regions))
        if without != text:
            masked_texts[row] = without
    if not masked_texts:
        return texts.cast(pa.string())
    changed = np.zeros(len(distinct), np.bool_)
    changed[list(masked_texts)] = True
    distinct = pc.replace_with_mask(
        distinct, pa.array(changed), pa.array([masked_texts[row] for row in sorted(masked_texts)], pa.string())
    )
    return distinct.take(encoded.indices)


@lru_cache(maxsize=10_000)
def mask(text: str, regions: tuple[str, ...]) -> str:
    """One clean text, masked."""
    text = _ADDRESS.sub(EMAIL, text)
    spans = _phones(text, regions)
    for start, end in sorted(spans, reverse=True):
        text = text[:start] + PHONE + text[end:]
    return text


def _phones(text: str, regions: Iterable[str]) -> list[tuple[int, int]]:
    """Where numbers are, none within another."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    spans: list[tuple[int, int]] = []
    for region in regions or ("ZZ",):
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID, max_tries=1_000):
            if all(match.end <= start or match.start >= end for start, end in spans):
                spans.append((match.start, match.end))
    return spans
