"""Two renderings of a text, kept apart: gentle for subword encoders, segmented for word vectors, TF-IDF and whole words.

Everything works on Arrow arrays; only Chinese segmentation and HTML entities visit single texts, each distinct one once.
"""

import html
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from string import Formatter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.data.arrays import ends, lengths_of
from adrec.data.text.segmenter import chinese_segmenter
from adrec.errors import ConfigError

SEPARATOR = "[SEP]"
_TAG = r"</?[A-Za-z][^<>]*>|<!--[^>]*-->"
_INVISIBLE = r"[\p{Cc}\p{Cf}\x{FFFD}]+"


def gentle(texts: pa.Array, *, lowercase: bool = False, max_characters: int = 4000) -> pa.Array:
    """NFKC, no HTML, no control or zero-width characters, single spaces. Case, punctuation and words stay. Null stays."""
    cleaned = pc.utf8_normalize(_unescaped(_plain(texts)), form="NFKC")
    cleaned = pc.replace_substring_regex(cleaned, _TAG, " ")
    cleaned = pc.replace_substring_regex(pc.replace_substring_regex(cleaned, r"\s", " "), _INVISIBLE, "")
    cleaned = pc.replace_substring_regex(cleaned, r"[\p{Z}]+", " ")
    cleaned = pc.utf8_trim_whitespace(pc.utf8_slice_codeunits(cleaned, 0, max_characters))
    return pc.utf8_lower(cleaned) if lowercase else cleaned


def segmented(texts: pa.Array, *, stop_words: frozenset[str] = frozenset(), user_dictionary: Path | None = None) -> pa.Array:
    """Lower-case words joined by a space, without punctuation and `stop_words`; Chinese is cut by jieba. Null is empty."""
    plain = pc.utf8_lower(pc.fill_null(gentle(texts), ""))
    plain = pc.replace_substring(plain, SEPARATOR.lower(), " ")
    plain = _cut_chinese(plain, user_dictionary)
    words = pc.split_pattern_regex(
        pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, r"[^\p{L}\p{N}\p{M}]+", " ")), r"\s+"
    )
    flat = pc.list_flatten(words)
    is_kept = pc.not_equal(flat, "")
    if stop_words:
        is_kept = pc.and_(is_kept, pc.invert(pc.is_in(flat, value_set=pa.array(sorted(stop_words), pa.string()))))
    kept_before = ends(is_kept.to_numpy(zero_copy_only=False))
    lists = pa.ListArray.from_arrays(pa.array(kept_before[ends(lengths_of(words))], pa.int32()), pc.filter(flat, is_kept))
    return pc.binary_join(lists, " ")


def language(texts: pa.Array) -> pa.Array:
    """`zh` where Han characters are at least as many as Latin words, `en` for other mostly ASCII letters, else `other`.

    Any language written in plain Latin letters counts as `en`; text with kana or Hangul is `other`.
    """
    plain = pc.fill_null(_plain(texts), "")
    han = pc.count_substring_regex(plain, r"\p{Han}")
    foreign = pc.count_substring_regex(plain, r"[\p{Hiragana}\p{Katakana}\p{Hangul}]")
    latin_words = pc.count_substring_regex(plain, r"[A-Za-z]+")
    latin = pc.count_substring_regex(plain, r"[A-Za-z]")
    letters = pc.count_substring_regex(plain, r"\p{L}")
    is_chinese = pc.and_(pc.greater(han, 0), pc.and_(pc.greater_equal(han, latin_words), pc.equal(foreign, 0)))
    is_latin = pc.and_(pc.greater(latin, 0), pc.greater_equal(pc.multiply(latin, 2), letters))
    return pc.if_else(is_chinese, "zh", pc.if_else(is_latin, "en", "other"))


def template_columns(template: str) -> list[str]:
    """Names in braces, in order. Raises ConfigError for a template that cannot be read."""
    try:
        return [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigError(f"text template {template!r}: {error}. Write column names in braces: {{title}}.") from None


def fill_template(template: str, columns: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """Text of each row: parts between [SEP] marks whose columns are all empty are left out. Absent columns are empty."""
    template_columns(template)
    nothing = pa.array([""], pa.string()).take(pa.array(np.zeros(rows, np.int64)))
    filled = nothing
    for part in template.split(SEPARATOR):
        literals: list[pa.Array | pa.Scalar] = []
        present = pa.array(np.zeros(rows, bool))
        for literal, field, _, _ in Formatter().parse(part):
            literals.append(pa.scalar(literal))
            if field is not None:
                value = pc.fill_null(_as_text(columns[field]), "") if field in columns else nothing
                present = pc.or_(present, pc.not_equal(value, ""))
                literals.append(value)
        if not template_columns(part):
            present = pa.array(np.ones(rows, bool))
        if not literals:
            continue
        whole = pc.if_else(present, pc.utf8_trim_whitespace(pc.binary_join_element_wise(*literals, pa.scalar(""))), "")
        joined = pc.binary_join_element_wise(filled, whole, pa.scalar(f" {SEPARATOR} "))
        filled = pc.if_else(pc.equal(whole, ""), filled, pc.if_else(pc.equal(filled, ""), whole, joined))
    return filled


@lru_cache(maxsize=4)
def load_stop_words(maintained: bool, extra: Path | None) -> frozenset[str]:
    """stopwords-iso for Chinese and English where `maintained`, and the user's own file. Raises ConfigError."""
    words: set[str] = set()
    if maintained:
        import stopwordsiso

        words |= set(stopwordsiso.stopwords(["zh", "en"]))
    if extra is not None:
        words |= set(_lines(extra, "text.extra_stop_words"))
    return frozenset(word.strip().lower() for word in words if word.strip())


def _lines(path: Path, key: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path} cannot be read ({error}).") from None


def _cut_chinese(texts: pa.Array, user_dictionary: Path | None) -> pa.Array:
    has_han = pc.match_substring_regex(texts, r"\p{Han}").to_numpy(zero_copy_only=False)
    if not has_han.any():
        return texts
    if user_dictionary is not None:
        _lines(user_dictionary, "text.user_dictionary")
    cutter = chinese_segmenter(user_dictionary).lcut
    encoded = pc.filter(texts, pa.array(has_han)).dictionary_encode()
    cut = pa.array([" ".join(cutter(text)) for text in encoded.dictionary.to_numpy(zero_copy_only=False)], pa.string())
    return pc.replace_with_mask(texts, pa.array(has_han), cut.take(encoded.indices))


def _unescaped(texts: pa.Array) -> pa.Array:
    escaped = pc.fill_null(pc.match_substring_regex(texts, r"&[A-Za-z#]"), False).to_numpy(zero_copy_only=False)
    if not escaped.any():
        return texts
    plain = [html.unescape(text) for text in pc.filter(texts, pa.array(escaped)).to_numpy(zero_copy_only=False)]
    return pc.replace_with_mask(texts, pa.array(escaped), pa.array(plain, pa.string()))


def _plain(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    combined = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    return combined.cast(pa.string())


def _as_text(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    combined = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_list(combined.type):
        return pc.binary_join(combined.cast(pa.list_(pa.string())), ", ")
    return combined.cast(pa.string())
