"""What a text file looks like from its first bytes: its encoding and what separates its cells. For messages and for `init`."""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Sequence

DELIMITERS = (",", ";", "\t", "|", "\x01", "::", "^", " ")
"""The likeliest first."""
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_COMMON = {**dict.fromkeys(("gbk", "gb18030"), ("gb2312", b"\xb0", b"\xd7")), "big5": ("big5", b"\xa4", b"\xc6")}
"""Encoding -> where its common characters lie: a plane, and the first bytes."""
_HIGH_WORDS = re.compile(rb"[A-Za-z]*[\x80-\xff][@-~\x80-\xff]*")
_HALF = 1 << 16


def likely_encoding(start: bytes) -> str | None:
    """The encoding that the first bytes of a file are in (`utf-8` for plain text); None where nothing fits.

    Not sure: one-byte encodings of Western Europe have few bytes above 127 in a word, the others many.
    """
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    if start[:_HALF].count(0) > len(start[:_HALF]) // 5:
        return "utf-16-le" if start[1:_HALF:2].count(0) >= start[0:_HALF:2].count(0) else "utf-16-be"
    if _decodes(start, "utf-8"):
        return "utf-8"
    words = b"".join(_HIGH_WORDS.findall(start[:_HALF]))
    if sum(byte > 127 for byte in words) < 0.45 * len(words):  # now and then a letter with an accent
        return "cp1252"
    for encoding in ("gbk", "gb18030", "big5"):
        if _decodes(start, encoding) and _is_common_chinese(start[:_HALF], encoding):
            return encoding
    from charset_normalizer import from_bytes  # slow to import

    best = from_bytes(b"\n".join(line for line in start[:_HALF].split(b"\n") if _HIGH_WORDS.search(line))).best()
    return best.encoding if best is not None else None


def encoding_cure(start: bytes) -> str:
    """What to do about a file that begins so and is not UTF-8."""
    guess = likely_encoding(start)
    which = f"{guess}, at a guess" if guess not in {None, "utf-8"} else "gbk, utf-16, latin-1, ..."
    return f"Set `encoding` in the config ({which})."


def likely_delimiter(lines: Sequence[str]) -> str | None:
    """What separates cells in (nearly) all lines in the same number; None where nothing does."""
    lines = [line for line in lines if line.strip()]
    best: tuple[float, int] | None = None
    delimiter = None
    for place, mark in enumerate(DELIMITERS):
        counts = Counter(cells_in(line, mark) for line in lines)
        if not counts:
            return None
        most, share = counts.most_common(1)[0]
        agreeing = share / len(lines)
        # A mark that also occurs inside the cells of another agrees less, or gives fewer cells.
        if most > 1 and agreeing >= 0.8 and (best is None or (round(agreeing, 1), most) > best):
            if mark == " " and delimiter is not None:
                continue
            best, delimiter = (round(agreeing, 1), most), DELIMITERS[place]
    return delimiter


def cells_in(line: str, delimiter: str) -> int:
    """How many cells a line has, quoted ones taken whole."""
    if len(delimiter) > 1:
        return line.count(delimiter) + 1
    try:
        return len(next(csv.reader([line], delimiter=delimiter), []))
    except csv.Error:
        return 0


def _decodes(start: bytes, encoding: str) -> bool:
    """Whether all bytes are of `encoding`; the last character may be cut."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeError:
        return False
    return True


def _is_common_chinese(start: bytes, encoding: str) -> bool:
    """Whether most of what is not plain Latin are characters that the encoding puts first: the most used ones."""
    plane, least, greatest = _COMMON[encoding]
    odd = [character for character in start.decode(encoding, errors="ignore") if ord(character) > 127]
    marks = sum("\u3000" <= character <= "\u303f" or "\uff00" <= character <= "\uffef" for character in odd)
    leads = [character.encode(plane, errors="ignore")[:1] for character in odd if "\u4e00" <= character <= "\u9fff"]
    return sum(least <= lead <= greatest for lead in leads if lead) > 0.6 * max(len(odd) - marks, 1)
