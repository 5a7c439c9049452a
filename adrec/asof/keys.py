"""Codes of what counters are kept by: a value's code never changes once it is given, so that a state can be carried on."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.features.categorical import to_strings
from adrec.errors import DataError

Ints = NDArray[np.int64]
_ALIASES = {"advertiser": "advertiser_id"}


class Codebook:
    """Strings to codes 0, 1, 2, ... in order of first appearance."""

    def __init__(self, values: pa.Array | None = None) -> None:
        self.values = values if values is not None else pa.array([], pa.string())

    def encode(self, text: pa.Array) -> Ints:
        """Codes int64 (N,), -1 where null; values not seen before are given the next codes."""
        unseen = pc.unique(text.drop_null())
        unseen = unseen.filter(pc.invert(pc.is_in(unseen, value_set=self.values)))
        if len(unseen):
            self.values = pa.concat_arrays([self.values, unseen])
        found = pc.index_in(text, value_set=self.values, skip_nulls=True)
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)


class KeyColumns:
    """Where each name in a counter's `by` comes from: the row itself, its ad, or its user."""

    def __init__(self, names: Iterable[str], ads: pa.Table, users: pa.Table | None, books: dict[str, pa.Array]) -> None:
        self.names = sorted(set(names))
        self.books = {name: Codebook(books.get(name)) for name in self.names if name not in {"user", "ad"}}
        self._of_ad = {name: self._encode(name, ads) for name in self.books if _source(name) in ads.schema.names}
        self._of_user = {
            name: self._encode(name, users)
            for name in self.books
            if users is not None and name not in self._of_ad and _source(name) in users.schema.names
        }

    @property
    def of_row(self) -> list[str]:
        """Names that are columns of the impressions."""
        return [name for name in self.books if name not in self._of_ad and name not in self._of_user]

    def in_ads(self, name: str) -> bool:
        """True where `name` is the ad itself or a column of the ads table."""
        return name == "ad" or name in self._of_ad

    def of_ad(self, name: str, ad_count: int) -> Ints:
        """Codes of an ad column by ad index, int64 (A,). Raises DataError when `name` is no ad column."""
        if name == "ad":
            return np.arange(ad_count)
        if not self.in_ads(name):
            raise DataError(f"counters: '{name}' is no column of the ads, which history_share and history_count need.")
        return self._of_ad[name]

    def has(self, name: str, batch: pa.RecordBatch) -> bool:
        """True where the rows carry the column behind `name`."""
        return _source(name) in batch.schema.names

    def row_codes(self, name: str, batch: pa.RecordBatch) -> Ints:
        """Codes of an impressions column. Raises DataError when no table has it."""
        column = _source(name)
        if not self.has(name, batch):
            raise DataError(
                f"counters: '{name}' is a column of neither impressions, ads nor users. "
                "Declare the column, or take the counter out of the config."
            )
        return self.books[name].encode(to_strings(batch.column(column), column))

    def codes(self, user: Ints, ad: Ints, of_row: dict[str, Ints]) -> dict[str, Ints]:
        """Every name's codes for N rows, int64 (N,), -1 where missing."""
        found: dict[str, Ints] = {"user": user, "ad": ad, **of_row}
        found.update({name: values[ad] for name, values in self._of_ad.items()})
        found.update({name: values[user] for name, values in self._of_user.items()})
        return found

    def _encode(self, name: str, table: pa.Table) -> Ints:
        return self.books[name].encode(to_strings(table[_source(name)].combine_chunks(), _source(name)))


def _source(name: str) -> str:
    return _ALIASES.get(name, name)
