"""What counters are kept by, as numbers: a stable hash of each value, so that a state needs no index and no vocabulary.

A user, an ad and a value of a column have the same code in every command, on every machine and in every later run: states
of other days and other shards add up. 63 bits are enough for a chance of one in a thousand to confuse any two of 100 million.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.arrays import combined, with_row
from adrec.data.features.categorical import to_strings
from adrec.data.hashing import hash_strings, mix
from adrec.errors import DataError
from adrec.schema import ADS, NOBODY, USERS
from adrec.specs import CounterSpec

Ints = NDArray[np.int64]
NO_CODE = -1
"""A missing value: it is under no key."""
USER_BITS = 24
"""Leading bits of a key that are its user's alone, so that the keys of a partition of the users lie together."""
_ROWS_AT_ONCE = 1 << 18
_ALIASES = {"advertiser": "advertiser_id"}
_REST = np.int64((1 << (63 - USER_BITS)) - 1)


def codes_of(values: pa.Array | pa.ChunkedArray, column: str) -> Ints:
    """int64 (N,) in [0, 2^63), NO_CODE where null or `NOBODY`. Raises DataError for a column that holds no categories."""
    codes = np.empty(len(values), dtype=np.int64)
    for start in range(0, max(len(values), 1), _ROWS_AT_ONCE):  # hashing takes ten times the memory of its codes
        codes[start : start + _ROWS_AT_ONCE] = _codes(to_strings(combined(values.slice(start, _ROWS_AT_ONCE)), column))
    return codes


def _codes(values: pa.Array) -> Ints:
    encoded = values.dictionary_encode()
    of_value = (hash_strings(encoded.dictionary) >> np.uint64(1)).astype(np.int64)
    of_value[pc.equal(encoded.dictionary, NOBODY).to_numpy(zero_copy_only=False)] = NO_CODE
    index = encoded.indices.fill_null(len(of_value)).to_numpy(zero_copy_only=False)
    codes: Ints = np.append(of_value, NO_CODE)[index]
    return codes


def make_key(by: Sequence[str], codes: Mapping[str, Ints], rows: int) -> Ints:
    """One int64 in [0, 2^63) for the values of all columns of `by` together, NO_CODE where one is missing."""
    if not by:
        return np.zeros(rows, dtype=np.int64)
    if len(by) == 1:
        return codes[by[0]]
    bits = np.zeros(rows, dtype=np.uint64)
    missing = np.zeros(rows, dtype=np.bool_)
    for name in by:
        bits = mix(bits + codes[name].astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        missing |= codes[name] < 0
    key = (bits >> np.uint64(1)).astype(np.int64)
    if "user" in by:
        key = (codes["user"] & ~_REST) | (key & _REST)
    return np.where(missing, NO_CODE, key)


class KeyColumns:
    """Where each name in a counter's `by` comes from: the row itself, its ad, or its user.

    A ads, U users; rows point into both by `ad_index` and `user_index`.
    """

    def __init__(self, names: Iterable[str], ads: pa.Table, users: pa.Table, as_of: Collection[str] = ()) -> None:
        """`as_of`: columns of the rows that hold a column of the ads or users as of the row; they go before the tables' own."""
        self.names = sorted({"user", "ad", *names})
        self._as_of = {name: column for name in self.names if (column := _as_of_source(name, as_of, ads)) is not None}
        self._ad_codes = {name: codes_of(ads[_source(name)], _source(name)) for name in self.names if _in(name, ads, "ad")}
        self.of_ad = {name: codes for name, codes in self._ad_codes.items() if name not in self._as_of}
        self.of_user = self._users_codes(users)
        self._over: tuple[pa.Table, KeyColumns] | None = None

        self._dense: dict[str, Ints] = {}

    def over(self, users: pa.Table) -> "KeyColumns":
        """The same ads with other users; the last ones asked for are remembered."""
        if self._over is None or self._over[0] is not users:
            other = copy(self)
            other.of_user = self._users_codes(users)
            self._over = (users, other)
        return self._over[1]

    def with_ad(self, row: int, ad: pa.Table) -> "KeyColumns":
        """The same with an ad (a table of one row) at `row`, or behind the last."""
        other = copy(self)
        own = {name: codes_of(ad[_source(name)], _source(name)) for name in self._ad_codes}
        other._ad_codes = {name: with_row(codes, row, own[name]) for name, codes in self._ad_codes.items()}
        other.of_ad = {name: other._ad_codes[name] for name in self.of_ad}
        other._dense, other._over = {}, None
        for name, dense in self._dense.items():
            same = np.flatnonzero(self._ad_codes[name] == own[name][0])
            code = dense[same[0]] if len(same) else dense.max(initial=NO_CODE) + 1
            missing = own[name][0] == NO_CODE
            other._dense[name] = with_row(dense, row, np.array([NO_CODE if missing else code]))
        return other

    @property
    def of_row(self) -> list[str]:
        """Names that are columns of the impressions."""
        return [name for name in self.names if name not in self.of_ad and name not in self.of_user]

    @property
    def sources(self) -> set[str]:
        """Columns behind the names that the ads do not answer for."""
        return {_source(name) for name in self.names if name not in self.of_ad}

    @property
    def row_columns(self) -> list[str]:
        """The columns of the impressions behind `of_row`."""
        return [self._row_column(name) for name in self.of_row]

    def check(self, specs: Iterable[CounterSpec], columns: Collection[str]) -> None:
        """Raise DataError for a counter whose columns are neither the ads', the users' nor among `columns` of the rows."""
        for key in self.of_row:
            if self._row_column(key) not in columns:
                raise DataError(
                    f"counters: '{key}' is a column of neither impressions, ads nor users. "
                    "Declare the column, or take the counter out of the config."
                )
        for spec in specs:
            if any(measure.startswith("history_") for measure in spec.measures):
                self.dense_ad_codes(spec.by[0])

    def dense_ad_codes(self, name: str) -> Ints:
        """(A,) an ad column as 0, 1, 2, ..., NO_CODE where missing. Raises DataError where `name` is none."""
        if name not in self._ad_codes:
            raise DataError(f"counters: '{name}' is no column of the ads, which history_share and history_count need.")
        if name not in self._dense:
            _, dense = np.unique(self._ad_codes[name], return_inverse=True)
            self._dense[name] = dense - (self._ad_codes[name] == NO_CODE).any()
        return self._dense[name]

    def codes(self, user: Ints, ad: Ints, rows: pa.Table | pa.RecordBatch) -> dict[str, Ints]:
        """Every name's codes for N rows with indices user, ad (N,). A column that `rows` lack is missing in all of them."""
        codes = {name: values[ad] for name, values in self.of_ad.items()}
        codes |= {name: values[user] for name, values in self.of_user.items()}
        for name in self.of_row:
            column = self._row_column(name)
            known = column in rows.schema.names
            codes[name] = codes_of(rows.column(column), column) if known else np.full(len(user), NO_CODE, dtype=np.int64)
        return codes

    def _users_codes(self, users: pa.Table) -> dict[str, Ints]:
        return {
            name: codes_of(users[_source(name)], _source(name))
            for name in self.names
            if name not in self.of_ad and name not in self._as_of and _in(name, users, "user")
        }

    def _row_column(self, name: str) -> str:
        return self._as_of.get(name, _source(name))


def _as_of_source(name: str, as_of: Collection[str], ads: pa.Table) -> str | None:
    """The column of the rows that holds `name` as of the row; what the ads have goes before the users' here too."""
    source = _source(name)
    if ADS.as_of_prefix + source in as_of:
        return ADS.as_of_prefix + source
    of_user = USERS.as_of_prefix + source
    return of_user if of_user in as_of and source not in ads.schema.names else None


def _in(name: str, table: pa.Table, alone: str) -> bool:
    """Whether a table has the column behind `name`. `user` and `ad` are the identifiers of their own tables."""
    if name in {"user", "ad"}:
        return name == alone
    return _source(name) in table.schema.names


def _source(name: str) -> str:
    return {"user": "user_id", "ad": "ad_id"}.get(name, _ALIASES.get(name, name))
