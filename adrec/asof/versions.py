"""What ads and users were like at a moment: the newest version known at or before it. Binary search, as in histories.

Only columns that change lie here; all others are the table's own. An ad or user without any version (a new one, one that a
server was told anew) is as its table says, at any moment; before its first version a value is missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.asof.history import TIMELESS, EventLog
from adrec.asof.keys import codes_of
from adrec.data.arrays import combined, integers
from adrec.data.disk.tables import read_table
from adrec.schema import ADS, KNOWN_FROM, USERS, TableSpec, as_of_column

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Versions:
    """V versions of the rows of one table, by key and moment."""

    spec: TableSpec
    log: EventLog
    """codes of the keys; `ads` are rows of `values`"""
    values: pa.Table
    """(V,) the columns that change"""
    _last: list["_Keys"] = field(default_factory=list, repr=False, compare=False)
    """of the table that was asked about last, whose keys are hashed once"""

    @classmethod
    def none(cls, spec: TableSpec) -> "Versions":
        """Nothing changes."""
        return cls(spec, EventLog.empty(), pa.table({}))

    @classmethod
    def load(cls, folder: Path, spec: TableSpec, table: pa.Table) -> "Versions":
        """Of a prepared folder whose table of `spec` is `table`; none where nothing changed."""
        file = folder / f"{spec.versions}.parquet"
        if not file.is_file():
            return cls.none(spec)
        rows = read_table(file)
        assert spec.key is not None
        codes = codes_of(table[spec.key], spec.key)[integers(rows[spec.index])]
        since = integers(pc.cast(rows[KNOWN_FROM], pa.int64()), TIMELESS)
        values = rows.drop_columns([spec.index, KNOWN_FROM]).combine_chunks()
        return cls(spec, EventLog.of(codes, np.arange(len(rows)), since), values)

    def without(self, ids: pa.Array) -> "Versions":
        """For a table that says anew what these are like."""
        assert self.spec.key is not None
        return replace(self, log=self.log.without(codes_of(ids, self.spec.key)), _last=[])

    def column(self, column: str, table: pa.Table, index: Ints, moments: Ints) -> pa.Array:
        """(N,) a column of rows `index` (N,) of `table` at `moments` (N,), microseconds; null where it is not known."""
        kind = self._kind(column, table)
        own = combined(table[column]).cast(kind) if column in table.column_names else pa.nulls(len(table), kind)
        values = own.take(pa.array(index))
        if column in self.values.column_names:
            keys = self._keys(table)
            first, end = self.log.before(keys.codes[index], moments + 1)
            row = np.where(end > first, self.log.ads[np.maximum(end - 1, 0)] if len(self.log.ads) else 0, 0)
            then = combined(self.values[column]).cast(kind).take(pa.array(row, mask=end == first))
            values = _chosen(keys.has_versions[index], then, values)
        said = self.spec.as_of_prefix + column
        if said in table.column_names:  # what the request itself says of its user
            told = combined(table[said]).cast(kind).take(pa.array(index))
            values = _chosen(told.is_valid().to_numpy(zero_copy_only=False), told, values)
        return values

    def _kind(self, column: str, table: pa.Table) -> pa.DataType:
        for source in (self.values, table):
            if column in source.column_names:
                return source.schema.field(column).type
        return pa.null()

    def _keys(self, table: pa.Table) -> "_Keys":
        assert self.spec.key is not None
        last = next(iter(self._last), None)  # read once: other threads may ask about other tables
        if last is None or last.table is not table:
            codes = codes_of(table[self.spec.key], self.spec.key)
            last = _Keys(table, codes, np.isin(codes, self.log.users))
            self._last[:] = [last]
        return last


class _Keys(NamedTuple):
    """Of the rows of a table."""

    table: pa.Table
    codes: Ints
    has_versions: NDArray[np.bool_]


@dataclass(frozen=True)
class Attributes:
    """Columns of ads and users as of a moment."""

    ads: Versions = field(default_factory=lambda: Versions.none(ADS))
    users: Versions = field(default_factory=lambda: Versions.none(USERS))

    def columns(
        self, wanted: Iterable[str], *, ads: pa.Table, users: pa.Table, ad: Ints, user: Ints, moments: Ints
    ) -> dict[str, pa.Array]:
        """Those of the `wanted` columns of the impressions that hold an ad's or a user's as of the row; N rows (user, ad)."""
        made = {}
        for name in wanted:
            source = as_of_column(name)
            if source is None:
                continue
            spec, column = source
            versions, table, index = (self.ads, ads, ad) if spec is ADS else (self.users, users, user)
            made[name] = versions.column(column, table, index, moments)
        return made


NOTHING_CHANGES = Attributes()


def _chosen(mask: NDArray[np.bool_], first: pa.Array, second: pa.Array) -> pa.Array:
    """`first` where the mask says so. (`if_else` knows no lists of every kind.)"""
    if mask.all():
        return first
    if not mask.any():
        return second
    rows = np.where(mask, 0, len(first)) + np.arange(len(first))
    return pa.concat_arrays([first, second]).take(pa.array(rows))
