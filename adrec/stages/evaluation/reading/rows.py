"""The rows to judge, as arrays: reads only the columns needed, identifiers as integer codes, faults named by row.

N rows in file order, strings as dictionaries. Nothing here depends on a model; a million rows take about 90 MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adrec.data.arrays import combined
from adrec.data.disk.tables import open_dataset, read_table
from adrec.errors import DataError
from adrec.schema import (
    BASELINE_PREFIX,
    CATALOGUE_RANK,
    CATALOGUE_SIZE,
    DRAWN,
    LABEL_OF_SCORE,
    PROPENSITY,
    PROPENSITY_GIVEN_ABOVE,
    TRUE_PROBABILITY,
    WEIGHT,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ShortInts = npt.NDArray[np.int32]
AnyInts = npt.NDArray[np.integer]

LABELS = ("click", "conversion", "rating", "dwell_seconds")
CONTEXT = (
    "user_id", "request_id", "ad_id", "shown_at", "position", "rank", PROPENSITY, PROPENSITY_GIVEN_ABOVE,
    "scenario", "cold_ad", "cold_user", "history_length", "value", "price", "bid", "reason", "category", "language",
    "advertiser_id", WEIGHT,
)  # fmt: skip
"""Columns used wherever a table has them."""


_MOST_UNITS = 1 << 16
"""Units of the bootstrap that rows of nobody make up."""


@dataclass(frozen=True)
class Codes:
    """Identifiers as integers: `values[codes]` are the identifiers of the rows."""

    codes: ShortInts
    values: pa.Array

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Rows:
    """A scored or ranked table, the columns that matter of it."""

    path: Path
    table: pa.Table
    columns: tuple[str, ...]
    """All columns of the file, also those that were not read."""
    users: Codes
    ads: Codes
    requests: Codes | None
    lone: npt.NDArray[np.bool_] | None = None
    """(N,) rows of no known request, where there are any: each has a request code of its own, whose value is null."""
    unnamed: npt.NDArray[np.bool_] | None = None
    """(N,) rows of nobody, where there are any: `users` has their requests' codes, or their own, whose value is null."""
    label_of_score: str | None = None
    """What `score` predicts, as the file says; None: the first label that the table has."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __contains__(self, column: object) -> bool:
        return column in self.table.column_names

    @property
    def is_ranked(self) -> bool:
        """True for a RANKED table: lists that a policy chose, rather than rows that were logged."""
        return "rank" in self and "reason" in self.columns

    def numbers(self, column: str) -> npt.NDArray[np.floating]:
        """A column as floats (N,), NaN where null; float32 stays float32."""
        return as_floats(self.table[column], where=f"{self.path}: column '{column}'")

    @property
    def group(self) -> Codes:
        """Requests where the table has them, else users."""
        return self.requests or self.users


def load_rows(path: Path, wanted: Sequence[str] = ()) -> Rows:
    """Read CONTEXT, the labels, every score, and `wanted`, of a Parquet file or folder. Raises DataError."""
    dataset = open_dataset(path)
    present = dataset.schema.names
    keep = {*CONTEXT, *LABELS, *wanted, "score", TRUE_PROBABILITY, CATALOGUE_SIZE, DRAWN}
    columns = [name for name in present if name in keep or name.startswith((BASELINE_PREFIX, CATALOGUE_RANK, "score_"))]
    table = read_table(path, columns=columns, dictionaries=True)
    if table.num_rows == 0:
        raise DataError(f"{path}: the table has no rows.")
    nothing = pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    users = encode(table["user_id"] if "user_id" in columns else nothing)
    ads = encode(table["ad_id"] if "ad_id" in columns else nothing)
    requests, lone = _requests(table, users) if "request_id" in columns else (None, None)
    if lone is not None and lone.all():
        requests, lone = None, None
    users, unnamed = _units(users, requests, lone)
    of_score = (dataset.schema.metadata or {}).get(LABEL_OF_SCORE, b"").decode() or None
    return Rows(path, table, tuple(present), users, ads, requests, lone, unnamed, of_score)


def _units(
    users: Codes, requests: Codes | None, lone: npt.NDArray[np.bool_] | None
) -> tuple[Codes, npt.NDArray[np.bool_] | None]:
    """The users, and which rows are of nobody: those of one request belong together, others stand alone.

    Many that stand alone share units that are dealt out in turn: draws of these are draws of as many independent parts.
    """
    names = users.values.cast(pa.string())
    is_nobody = pc.fill_null(pc.equal(names, ""), True).to_numpy(zero_copy_only=False)
    if not is_nobody.any():
        return users, None
    unnamed = is_nobody[users.codes]
    names = names.filter(pa.array(~is_nobody))
    codes = (np.cumsum(~is_nobody) - 1)[users.codes]
    rows = np.flatnonzero(unnamed)
    if requests is None:
        codes[rows] = len(names) + np.arange(len(rows)) % _MOST_UNITS
    else:
        codes[rows] = len(names) + requests.codes[rows] % _MOST_UNITS
        alone = rows[lone[rows]] if lone is not None else rows[:0]
        codes[alone] = len(names) + _MOST_UNITS + np.arange(len(alone)) % _MOST_UNITS
    used, codes = np.unique(codes, return_inverse=True)
    nobody = pa.nulls(int((used >= len(names)).sum()), pa.string())
    return Codes(codes.astype(np.int32), pa.concat_arrays([names, nobody])), unnamed


def _requests(table: pa.Table, users: Codes) -> tuple[Codes, npt.NDArray[np.bool_] | None]:
    """The rows' requests, and which rows have none.

    As preprocess does, a row without a request id (null or empty) belongs with the rows of its user and moment. Where these
    are not known either the row stands alone, and no metric of requests counts it.
    """
    known = encode(table["request_id"])
    names = known.values.cast(pa.string())
    is_absent = pc.fill_null(pc.equal(names, ""), True).to_numpy(zero_copy_only=False)
    if not is_absent.any():
        return known, None
    codes = (np.cumsum(~is_absent) - 1)[known.codes]
    absent = np.flatnonzero(is_absent[known.codes])
    owner = users.values.cast(pa.string()).take(pa.array(users.codes[absent]))
    moment = pa.nulls(len(absent), pa.int64())
    if "shown_at" in table.column_names and pa.types.is_timestamp(table["shown_at"].type):
        moment = combined(table["shown_at"]).cast(pa.timestamp("us", "UTC")).cast(pa.int64()).take(pa.array(absent))
    visits = encode(pa.chunked_array([pc.binary_join_element_wise(owner, moment.cast(pa.string()), "@")]))
    is_lone = visits.values.is_null().to_numpy(zero_copy_only=False)[visits.codes]
    names = names.filter(pa.array(~is_absent))
    named = visits.values.drop_null()
    # Where null is a value of its own, the codes behind it move up.
    place = (np.cumsum(visits.values.is_valid().to_numpy(zero_copy_only=False)) - 1)[visits.codes]
    codes[absent] = len(names) + np.where(is_lone, len(named) + np.cumsum(is_lone) - 1, place)
    values = pa.concat_arrays([names, named, pa.nulls(int(is_lone.sum()), pa.string())])
    lone = np.zeros(len(codes), dtype=bool)
    lone[absent] = is_lone
    return Codes(codes.astype(np.int32), values), lone if is_lone.any() else None


def encode(column: pa.ChunkedArray) -> Codes:
    """A code for each distinct value that occurs; null is a value of its own."""
    encoded = combined(column)
    if not pa.types.is_dictionary(encoded.type):
        encoded = combined(encoded.dictionary_encode(null_encoding="encode"))
    values = encoded.dictionary
    if encoded.null_count or len(values) != pc.count_distinct(values, mode="all").as_py():
        return encode(encoded.cast(encoded.type.value_type))
    codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int32)
    used = np.zeros(len(values), dtype=bool)
    used[codes] = True
    if used.all():
        return Codes(codes, values)
    return Codes((np.cumsum(used, dtype=np.int32) - 1)[codes], values.filter(pa.array(used)))


def as_floats(column: pa.ChunkedArray, *, where: str) -> npt.NDArray[np.floating]:
    """Numbers and booleans as floats, NaN where null. Raises DataError for other types."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise DataError(f"{where} is {kind}, expected numbers.")
    target = pa.float32() if kind == pa.float32() else pa.float64()
    values = pc.cast(column, pa.uint8()) if pa.types.is_boolean(kind) else column
    return np.asarray(pc.cast(values, target).to_numpy())


def look_up(keys: pa.Array, table: pa.Table, key: str, columns: Sequence[str], *, where: str) -> pa.Table:
    """Rows of `table` for each of `keys`, in their order; null where `key` has no such row. Raises DataError on doubles."""
    values = table[key].combine_chunks()
    if len(values) != pc.count_distinct(values).as_py():
        raise DataError(f"{where}: column '{key}' names a value twice. Keep one row for each.")
    place = pc.index_in(keys, value_set=values)
    return table.select(list(columns)).take(place)


def codes_in(codes: Codes, values: pa.Array) -> Ints:
    """The rows' identifiers as positions in `values`, -1 where they are not there; null is nowhere."""
    found = pc.index_in(codes.values.cast(values.type), value_set=values, skip_nulls=True)
    place = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
    return np.asarray(place, dtype=np.int64)[codes.codes]
