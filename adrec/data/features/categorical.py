"""Categories and lists of them: vocabularies counted on training rows, stable hashes, and calendar parts.

Code 0 is the unknown bucket everywhere: rare values, values never seen, and missing ones.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.arrays import ends, lengths_of, ranges
from adrec.data.hashing import hash_strings
from adrec.errors import DataError

Codes = NDArray[np.int32]
UNKNOWN = "(unknown)"


def to_strings(column: pa.Array, name: str) -> pa.Array:
    """Strings, numbers, booleans or dictionaries of them as strings, null where missing. Raises DataError."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return to_strings(column.dictionary_decode(), name)
    if pa.types.is_string(kind):
        return column
    if pa.types.is_large_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_floating(kind):  # a number that is a category too: 17.0 is 17
        known = pc.if_else(pc.is_finite(column), column, pa.scalar(None, kind))
        is_whole = pc.and_(pc.equal(known, pc.floor(known)), pc.less(pc.abs(known), 2.0**53))
        whole = pc.if_else(is_whole, known, pa.scalar(None, kind)).cast(pa.int64()).cast(pa.string())
        return pc.coalesce(whole, known.cast(pa.string()))
    raise DataError(f"column '{name}' is {kind}, expected strings, numbers or booleans. Leave it out.")


def to_ragged(
    column: pa.Array, name: str, max_items: int, separators: tuple[str, ...] = ()
) -> tuple[NDArray[np.int64], pa.Array]:
    """A list column as offsets (N + 1,) and flat strings, each list cut to its first `max_items`. Raises DataError.

    Strings are split at any of `separators`, spaces around an item and empty items dropped.
    """
    if separators and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column = _split(column.cast(pa.string()), separators)
    kind = column.type
    if pa.types.is_null(kind):
        return np.zeros(len(column) + 1, dtype=np.int64), pa.array([], pa.string())
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise DataError(
            f"features: column '{name}' is {kind}, expected a list. Declare it as categorical, or give `separator`."
        )
    starts = ends(lengths_of(column))
    # flatten() leaves out null lists, whose length counts as 0 here.
    flat = to_strings(column.flatten(), name)
    kept = np.minimum(np.diff(starts), max_items)
    offsets = ends(kept)
    if offsets[-1] == starts[-1]:
        return offsets, flat
    return offsets, flat.take(pa.array(ranges(starts[:-1], kept)))


def _split(column: pa.Array, separators: tuple[str, ...]) -> pa.Array:
    """Strings as lists of their items."""
    first, *others = separators
    text = pc.fill_null(column, "")
    for other in others:
        text = pc.replace_substring(text, other, first)
    lists = pc.split_pattern(text, first)
    items = pc.utf8_trim_whitespace(lists.flatten())
    real = pc.not_equal(items, "")
    kept = ends(real.to_numpy(zero_copy_only=False))
    return pa.ListArray.from_arrays(pa.array(kept[lists.offsets.to_numpy()].astype(np.int32)), items.filter(real))


class VocabularyFitter:
    """Counts distinct values over batches; ends as a FittedVocabulary, commonest first, ties by value."""

    def __init__(self, name: str, *, min_count: int) -> None:
        self.name = name
        self.min_count = min_count
        self._counts = pa.table({"value": pa.array([], pa.string()), "count": pa.array([], pa.int64())})

    def add(self, values: pa.Array) -> None:
        """Take one batch of strings; nulls do not count."""
        counted = values.drop_null().value_counts()
        batch = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
        merged = pa.concat_tables([self._counts, batch]).group_by("value").aggregate([("count", "sum")])
        self._counts = merged.select(["value", "count_sum"]).rename_columns(["value", "count"])

    def fitted(self) -> "FittedVocabulary":
        """The vocabulary so far."""
        frequent = self._counts.filter(pc.greater_equal(self._counts["count"], self.min_count))
        frequent = frequent.sort_by([("count", "descending"), ("value", "ascending")])
        return FittedVocabulary(self.name, frequent["value"].combine_chunks())


@dataclass(frozen=True)
class FittedVocabulary:
    """Known values in code order: the value at i has code i + 1."""

    name: str
    values: pa.Array

    @property
    def cardinality(self) -> int:
        """Number of codes, the unknown bucket included."""
        return len(self.values) + 1

    def apply(self, values: pa.Array) -> Codes:
        """Codes int32 (N,), 0 for null and unknown."""
        found = pc.index_in(values, value_set=self.values, skip_nulls=True)
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int32) + np.int32(1)

    def behind(self, earlier: "FittedVocabulary") -> "FittedVocabulary":
        """The earlier one's values under their codes, then those that only this one knows."""
        fresh = self.values.filter(pc.invert(pc.is_in(self.values, value_set=earlier.values)))
        return FittedVocabulary(self.name, pa.concat_arrays([earlier.values.cast(pa.string()), fresh.cast(pa.string())]))

    def value(self, code: int) -> str:
        """What a code stands for, for people."""
        return str(self.values[code - 1]) if code else UNKNOWN

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"kind": "vocabulary", "name": self.name, "values": self.values.tolist()}


@dataclass(frozen=True)
class Hashed:
    """Codes by a stable hash: 1 + hash mod buckets; nothing is fitted, or which buckets have a code."""

    name: str
    buckets: int
    known: tuple[int, ...] | None = None
    """buckets in code order: the one at i has code i + 1, others are unknown; None: each has its own"""

    @property
    def cardinality(self) -> int:
        """Number of codes, code 0 (missing or unknown) included."""
        return (self.buckets if self.known is None else len(self.known)) + 1

    def apply(self, values: pa.Array) -> Codes:
        """Codes int32 (N,), 0 for null."""
        codes = (hash_strings(values) % np.uint64(self.buckets)).astype(np.int32) + np.int32(1)
        if values.null_count:
            codes[values.is_null().to_numpy(zero_copy_only=False)] = 0
        if self.known is None:
            return codes
        places = np.zeros(self.buckets + 1, np.int32)
        places[np.asarray(self.known, np.int64) + 1] = np.arange(1, len(self.known) + 1)
        return np.asarray(places[codes], np.int32)

    def value(self, code: int) -> str:
        """What a code stands for, for people."""
        return f"bucket {code if self.known is None else self.known[code - 1] + 1}" if code else UNKNOWN

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        counted = {} if self.known is None else {"known": list(self.known)}
        return {"kind": "hashed", "name": self.name, "buckets": self.buckets, **counted}


def known_buckets(counts: NDArray[np.int64], min_count: int) -> tuple[int, ...]:
    """Buckets that hold values often enough for a code, commonest first, as a vocabulary has its values."""
    order = np.argsort(-counts, kind="stable")
    return tuple(order[counts[order] >= max(min_count, 1)].tolist())


def coder_from_json(data: dict[str, Any]) -> FittedVocabulary | Hashed:
    """The inverse of `to_json` of both kinds."""
    if data["kind"] == "hashed":
        known = data.get("known")
        return Hashed(data["name"], int(data["buckets"]), None if known is None else tuple(int(bucket) for bucket in known))
    return FittedVocabulary(data["name"], pa.array(data["values"], pa.string()))
