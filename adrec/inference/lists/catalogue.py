"""The catalogue as ranking sees it: what each ad is, pays and may, as arrays over the rows of the ads table."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.config.inference.rank import Policy
from adrec.data.arrays import cells_with_row, combined, places, with_row
from adrec.data.availability import ALWAYS, NEVER, Availability
from adrec.errors import DataError
from adrec.inference.lists.words import Words
from adrec.inference.rows import shown_titles, written_titles
from adrec.prepare.text.clean import language, load_stop_words, segmented
from adrec.ranking.auction import budget_in_micros
from adrec.ranking.constraints import Rules

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class AdColumns:
    """A ads."""

    table: pa.Table
    ids: pa.Array
    titles: pa.Array
    bid: NDArray[np.float64]
    """(A,) NaN where the ad has none"""
    budget: NDArray[np.integer]
    """(A,) millionths; the largest int64 where the ad has none"""
    starts: Ints
    """(A,) microseconds"""
    ends: Ints
    """(A,) microseconds"""
    category: Ints
    """(A,) code, -1 none"""
    categories: pa.Array
    """names of the codes"""
    advertiser: Ints
    """(A,) code, -1 none"""
    advertisers: pa.Array
    """names of the codes"""
    chinese: NDArray[np.bool_]
    """(A,) the ad is in Chinese"""
    words: Words

    @classmethod
    def of(cls, ads: pa.Table) -> "AdColumns":
        """From an ads table, prepared or raw."""
        written = written_titles(ads)
        available = Availability.of_ads(ads)
        category, categories = codes(ads, "category")
        advertiser, advertisers = codes(ads, "advertiser_id")
        languages = combined(ads["language"]) if "language" in ads.column_names else language(written)
        words = combined(ads["segmented"]) if "segmented" in ads.column_names else segment(written)
        return cls(
            table=ads,
            ids=combined(ads["ad_id"]).cast(pa.string()),
            titles=shown_titles(ads),
            bid=floats(ads, "bid"),
            budget=budget_in_micros(floats(ads, "budget")),
            starts=available.opens,
            ends=available.closes,
            category=category,
            categories=categories,
            advertiser=advertiser,
            advertisers=advertisers,
            chinese=np.asarray(pc.equal(languages, "zh").to_numpy(zero_copy_only=False), dtype=bool),
            words=Words(words),
        )

    def with_row(self, row: int, table: pa.Table, ad: pa.Table) -> "AdColumns":
        """The columns with one ad (a table of one row) at `row`, or behind the last, as it stands in `table`; codes stay."""
        own = AdColumns.of(ad)
        arrays = {
            name: with_row(getattr(self, name), row, getattr(own, name))
            for name in ("bid", "budget", "starts", "ends", "chinese")
        }
        category, categories = coded_with_row(self.category, self.categories, row, own.category, own.categories)
        advertiser, advertisers = coded_with_row(self.advertiser, self.advertisers, row, own.advertiser, own.advertisers)
        words = combined(ad["segmented"]) if "segmented" in ad.column_names else segment(written_titles(ad))
        return AdColumns(
            table=table, ids=cells_with_row(self.ids, row, own.ids), titles=cells_with_row(self.titles, row, own.titles),
            category=category, categories=categories, advertiser=advertiser, advertisers=advertisers,
            words=self.words.with_row(row, words), **arrays,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.ids)

    def campaign(self, column: str, known: pa.Array | None = None) -> tuple[Ints, pa.Array]:
        """(A,) codes of the campaign column and their names, first the `known` ones. Raises DataError where it is declared but
        not there.
        """
        if column not in self.table.column_names:
            if column != "advertiser_id":
                raise DataError(f"ads: limits.campaign_column '{column}' is not among the columns. Name one that is.")
            return np.full(len(self), -1, dtype=np.int64), pa.array([], pa.string())
        return codes(self.table, column, known)

    def rules(self, policy: Policy) -> tuple[Rules, list[pa.Array]]:
        """The policy's rules over this catalogue, and per targeting rule the user values that its rows stand for."""
        rules = policy.rules
        allowed = np.ones(len(self), dtype=bool)
        if rules.categories:
            allowed &= self._among("category", rules.categories)
        if rules.blocked_categories:
            allowed &= ~self._among("category", rules.blocked_categories)
        if rules.blocked_advertisers:
            allowed &= ~self._among("advertiser_id", rules.blocked_advertisers)
        if policy.value.reserve > 0:
            allowed &= np.nan_to_num(self.bid) >= policy.value.reserve
        admits, values = [], []
        for target in rules.targeting:
            if target.ad_column not in self.table.column_names:
                raise DataError(
                    f"ads: rules.targeting names '{target.ad_column}', which is not among the columns. Name one that is."
                )
            mask, names = _admits(combined(self.table[target.ad_column]))
            admits.append(mask)
            values.append(names)
        starts = self.starts if rules.active else np.full(len(self), ALWAYS)
        ends = self.ends if rules.active else np.full(len(self), NEVER)
        return Rules(allowed=allowed, starts=starts, ends=ends, admits=admits), values

    def _among(self, column: str, names: list[str]) -> NDArray[np.bool_]:
        if column not in self.table.column_names:
            raise DataError(
                f"ads: the policy's rules need the column '{column}', which the ads table lacks. Add it, or the rule goes."
            )
        found = pc.is_in(combined(self.table[column]).cast(pa.string()), value_set=pa.array(names, pa.string()))
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=bool)


def codes(table: pa.Table, column: str, known: pa.Array | None = None) -> tuple[Ints, pa.Array]:
    """(N,) codes of a string column, -1 where null or absent, and the names of the codes, first the `known` ones."""
    if column not in table.column_names:
        return np.full(len(table), -1, dtype=np.int64), pa.array([], pa.string())
    encoded = combined(table[column]).cast(pa.string()).dictionary_encode()
    if known is not None and len(known):
        names = pc.unique(pa.concat_arrays([known, encoded.dictionary]))
        place = np.append(places(encoded.dictionary, names), -1)
        return place[pc.fill_null(encoded.indices, len(place) - 1).to_numpy(zero_copy_only=False)], names
    return np.asarray(pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False), dtype=np.int64), encoded.dictionary


def coded_with_row(code: Ints, names: pa.Array, row: int, own: Ints, own_names: pa.Array) -> tuple[Ints, pa.Array]:
    """Codes (N,) and their names with the one row of others at `row`, or behind the last; a new name comes last."""
    place = places(own_names, names)
    names = pa.concat_arrays([names, own_names.filter(pa.array(place < 0))])
    return with_row(code, row, np.append(places(own_names, names), -1)[own]), names


def floats(table: pa.Table, column: str) -> NDArray[np.float64]:
    """(N,) float64, NaN where null or absent."""
    if column not in table.column_names:
        return np.full(len(table), np.nan)
    values = combined(table[column]).cast(pa.float64())
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def segment(texts: pa.Array) -> pa.Array:
    """Words as preprocess makes them, without stop words."""
    return segmented(texts, stop_words=load_stop_words(True, None))


def _admits(column: pa.Array) -> tuple[NDArray[np.bool_], pa.Array]:
    """(V + 1, A) which ads each value admits; an ad without values is for all. The last row: a value no ad names."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False), dtype=np.int64)
        flat = pc.list_flatten(column).cast(pa.string())
    else:
        flat = column.cast(pa.string()).drop_null()
        lengths = np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=np.int64)
    encoded = flat.dictionary_encode()
    mask = np.zeros((len(encoded.dictionary) + 1, len(column)), dtype=bool)
    mask[:, lengths == 0] = True
    owner = np.repeat(np.arange(len(column)), lengths)
    known = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
    mask[encoded.indices.drop_null().to_numpy(), owner[known]] = True
    return mask, encoded.dictionary
