"""Rows cut into named parts by a column: of the rows themselves, of their ads or of their users."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.errors import DataError
from adrec.stages.evaluation.reading.rows import Rows, ShortInts, encode, look_up

ALWAYS = ("cold_ad", "cold_user", "history_length", "category", "scenario", "language", "position", "day")
HISTORY_BINS = (0, 1, 5, 20, 50)
OTHER = "(other)"
MOST_VALUES = 20
"""Commonest values of a column that get a slice: what a table on a screen holds."""
QUANTILES = 4
"""Slices of a declared column of numbers with many values."""


@dataclass(frozen=True)
class Slicing:
    """One column cut into named parts; `codes` (N,) are the rows' parts, -1 for none."""

    column: str
    names: tuple[str, ...]
    codes: ShortInts


def slicings(rows: Rows, ads: pa.Table | None, users: pa.Table | None, columns: Sequence[str]) -> list[Slicing]:
    """Cut every usual and declared column that any of the tables has. Raises DataError for a declared column nobody has."""
    found = []
    for column in dict.fromkeys([*ALWAYS, *columns]):
        values = _values(rows, ads, users, column)
        if values is None:
            if column in columns:
                raise DataError(f"{rows.path}: slice column '{column}' is in none of the scored, ads and users tables.")
            continue
        slicing = _cut(column, values)
        if len(slicing.names) > 1:
            found.append(slicing)
    return found


def _values(rows: Rows, ads: pa.Table | None, users: pa.Table | None, column: str) -> pa.ChunkedArray | None:
    """A column for each row, from the scored table itself, else from its ad, else from its user."""
    if column == "day":
        if "shown_at" not in rows or not pa.types.is_timestamp(rows.table["shown_at"].type):
            return None
        return rows.table["shown_at"].cast(pa.date32())
    if column in rows:
        return rows.table[column]
    for codes, key, table in ((rows.ads, "ad_id", ads), (rows.users, "user_id", users)):
        if table is not None and column in table.column_names and column != key:
            one_each = look_up(codes.values, table, key, [column], where=f"the {key[:-3]}s table")[column]
            return one_each.take(pa.array(codes.codes))
    return None


def _cut(column: str, values: pa.ChunkedArray) -> Slicing:
    kind = values.type
    if pa.types.is_dictionary(kind):
        if pa.types.is_string(kind.value_type):
            return _cut_words(column, values, MOST_VALUES)
        values, kind = values.cast(kind.value_type), kind.value_type
    if column == "history_length":
        return _cut_numbers(column, values, HISTORY_BINS[1:])
    many = pc.count_distinct(values).as_py() > MOST_VALUES
    if (pa.types.is_floating(kind) or pa.types.is_integer(kind)) and many:
        numbers = values.drop_null().to_numpy()
        steps = np.linspace(0, 1, QUANTILES + 1)[1:-1]
        return _cut_numbers(column, values, np.unique(np.quantile(numbers, steps)))
    if pa.types.is_nested(kind):
        raise DataError(f"slice column '{column}' is {kind}; slices need one value a row.")
    return _cut_words(column, values, MOST_VALUES)


def _cut_words(column: str, values: pa.ChunkedArray, most: int) -> Slicing:
    coded = encode(values)
    counts = np.bincount(coded.codes, minlength=len(coded))
    named = pc.if_else(coded.values, "yes", "no") if pa.types.is_boolean(coded.values.type) else coded.values.cast(pa.string())
    words = pc.fill_null(named, "(none)").to_numpy(zero_copy_only=False)
    frequent = np.sort(np.argsort(-counts, kind="stable")[:most])
    frequent = frequent[np.lexsort((words[frequent].astype(str), _as_number(words[frequent])))]
    place = np.full(len(words), len(frequent))
    place[frequent] = np.arange(len(frequent))
    names = [*words[frequent].tolist(), *([OTHER] if len(frequent) < len(words) else [])]
    return Slicing(column, tuple(names), place.astype(np.int32)[coded.codes])


def _cut_numbers(column: str, values: pa.ChunkedArray, edges: Any) -> Slicing:
    """Parts [low, high) between the edges; nulls are in none."""
    numbers = values.cast(pa.float64()).to_numpy()
    codes = np.searchsorted(np.asarray(edges, dtype=np.float64), numbers, side="right").astype(np.int32)
    codes[np.isnan(numbers)] = -1
    whole = column == "history_length"
    names = [f"below {edges[0]:g}"]
    for low, high in pairwise(edges):
        names.append(f"{low:g} to {high - 1:g}" if whole else f"{low:g} to {high:g}")
    names.append(f"{edges[-1]:g} or more")
    if whole:
        names[0] = "none"
    return Slicing(column, tuple(names), codes)


def _as_number(words: Any) -> Any:
    """Sort key: numbers by value before everything else."""
    return np.array([float(word) if str(word).lstrip("-").isdigit() else np.inf for word in words])
