"""Raw tables → the same arrays that training reads: identifiers become row numbers, histories are found, texts are made.

New rows may name users never seen, and need no labels. An ad that the ads table does not know is a fault of the input.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.asof.reader import PastReader
from adrec.config.preprocess import TextSettings
from adrec.data.arrays import combined, ends, lengths_of, places, ranges
from adrec.data.examples import Examples, examples_from_table
from adrec.data.features import FeatureSet
from adrec.data.tables import check_schema
from adrec.errors import DataError
from adrec.prepare.output.entities import TextMaker, spoken
from adrec.prepare.staging.canonical import canonical_rows
from adrec.schema import ADS, IMPRESSIONS, USER_LANGUAGE, USERS, Column, TableSpec

_READ = ("user_id", "ad_id", "shown_at", "request_id", "query", "history")
SCORABLE = TableSpec("impressions", tuple(column for column in IMPRESSIONS.columns if column.name in _READ))
"""What scoring reads of impressions, beside declared features: no label."""
HISTORY = TableSpec(
    "history",
    (
        Column("user_id", pa.string(), True, "who clicked"),
        Column("ad_id", pa.string(), True, "what"),
        Column("shown_at", pa.timestamp("us", tz="UTC"), True, "when"),
    ),
)
"""A log of clicks, for rows that bring no history of their own."""


def with_texts(table: pa.Table, template: str, settings: TextSettings, *, words: bool = False) -> pa.Table:
    """Ads or users with `text`, `segmented` and `language` (`user_language`), made by the template where there is no text.

    A table that has its text is left as it is, but for the `segmented` words where they are asked for.
    """
    has_text = "text" in table.column_names
    if has_text and ("segmented" in table.column_names or not words):
        return table
    of_users = "ad_id" not in table.column_names
    batch = pa.RecordBatch.from_arrays([combined(column) for column in table.columns], names=table.column_names)
    whole, segmented, language = TextMaker(settings).render("{text}" if has_text else template, batch)
    tongue = {USER_LANGUAGE: spoken(whole, language)} if of_users else {"language": language}
    made = {"segmented": segmented} if has_text else {**tongue, "segmented": segmented, "text": whole}
    for name, values in made.items():
        if name not in table.column_names:
            table = table.append_column(name, values)
    return table


def own_rows(rows: pa.Table, features: FeatureSet, *, where: str, first_row: int = 0) -> pa.Table:
    """Rows of the user's own frame or file with canonical types. Raises DataError naming column and row (`canonical_rows`)."""
    spec = TableSpec("impressions", (*SCORABLE.columns, IMPRESSIONS["position"]))
    numeric = [item.name for item in features.numerics]
    categories = [coder.name for coder in features.categories if coder.name not in numeric]
    return canonical_rows(rows, spec, where=where, first_row=first_row, numeric=numeric, categories=categories)


def checked_ads(ads: pa.Table, *, where: str = "ads") -> pa.Table:
    """The ads, strings as plain strings. Raises DataError on a missing or mistyped column, a null or a repeated ad_id."""
    return _checked(ads, ADS, where)


def checked_users(users: pa.Table, *, where: str = "users") -> pa.Table:
    """The users, likewise."""
    return _checked(users, USERS, where)


def with_new_users(users: pa.Table | None, wanted: pa.Array) -> pa.Table:
    """The users table with a blank row for every user in `wanted` that it lacks."""
    if users is None:
        return pa.table({"user_id": pc.unique(wanted)})
    lacking = pc.filter(wanted, pc.invert(pc.is_in(wanted, value_set=combined(users["user_id"]))))
    new = pc.unique(lacking)
    if len(new) == 0:
        return users
    return pa.concat_tables([users, pa.table({"user_id": new})], promote_options="default")


@dataclass(frozen=True)
class History:
    """Clicks of all users, sorted by user and time."""

    user: np.ndarray
    ad: np.ndarray
    time: np.ndarray

    @classmethod
    def from_table(cls, table: pa.Table, ads: pa.Array, users: pa.Array, *, where: str = "history") -> "History":
        """A click log; rows of unknown ads or users are left out. With a `click` column only its clicks count."""
        check_schema(table.schema, HISTORY, where=where)
        if "click" in table.column_names:
            table = table.filter(pc.fill_null(pc.equal(table["click"], 1), False))
        ad, user = places(table["ad_id"], ads), places(table["user_id"], users)
        time = pc.cast(table["shown_at"], pa.int64()).to_numpy()
        known = (ad >= 0) & (user >= 0)
        ad, user, time = ad[known], user[known], time[known]
        order = np.lexsort((time, user))
        return cls(user[order], ad[order], time[order])

    def before(self, user: np.ndarray, time: np.ndarray, limit: int) -> tuple[pa.Array, pa.Array, np.ndarray]:
        """Of N rows: the newest `limit` ads clicked strictly earlier, their ages in hours, and how many there are at all."""
        first = np.searchsorted(self.user, user)
        # Ranks of (user, time) pairs among the clicks, without packing both into one number.
        both_user = np.concatenate([self.user, user])
        both_time = np.concatenate([self.time, time])
        is_row = np.arange(len(both_user)) >= len(self.user)
        order = np.lexsort((~is_row, both_time, both_user))  # a row stands before clicks of its own moment
        earlier = np.cumsum(~is_row[order])
        end = np.empty(len(user), np.int64)
        end[order[is_row[order]] - len(self.user)] = earlier[is_row[order]]
        count = end - first
        start = np.maximum(first, end - limit)
        lengths = end - start
        offsets, place = ends(lengths), ranges(start, lengths)
        hours = (np.repeat(time, lengths) - self.time[place]) / 3.6e9
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(self.ad[place], pa.int32()))
        ages = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(hours.astype(np.float32)))
        return lists, ages, count


def examples_from_rows(
    impressions: pa.Table,
    ads: pa.Array,
    users: pa.Array,
    features: FeatureSet,
    *,
    max_history: int,
    history: History | None = None,
    past: PastReader | None = None,
    where: str = "impressions",
    first_row: int = 0,
) -> Examples:
    """Raw impressions as Examples over the given identifiers. `first_row` is the row's number in the user's file.

    `past` gives the counters that the rows do not bring; without it they are missing.

    Raises DataError naming the row of an unknown ad.
    """
    check_schema(impressions.schema, SCORABLE, where=where)
    ad, user = places(impressions["ad_id"], ads), places(impressions["user_id"], users)
    unknown = np.flatnonzero(ad < 0)
    if len(unknown):
        row = int(unknown[0])
        found = impressions["ad_id"][row].as_py()
        raise DataError(
            f"{where}: row {first_row + row + 1}: ad_id '{found}' is not in the ads table. Add the ad, or drop the row."
        )
    if impressions["shown_at"].null_count:
        row = int(np.flatnonzero(pc.is_null(impressions["shown_at"]).to_numpy())[0])
        raise DataError(f"{where}: row {first_row + row + 1}: 'shown_at' is empty. Give the moment for which to score.")
    table = impressions.drop_columns([name for name in ("history", "row_id") if name in impressions.column_names])
    table = table.append_column("ad_index", pa.array(ad, pa.int32())).append_column("user_index", pa.array(user, pa.int32()))
    if "request_id" not in table.column_names:
        table = table.append_column("request_id", impressions["user_id"])
    elif table["request_id"].null_count:  # such a row is a request of the user at that moment, as preprocess has it
        moment = pc.cast(pc.cast(table["shown_at"], pa.int64()), pa.string())
        own = pc.binary_join_element_wise(pc.cast(impressions["user_id"], pa.string()), moment, "@")
        place = table.schema.get_field_index("request_id")
        table = table.set_column(place, "request_id", pc.coalesce(pc.cast(table["request_id"], pa.string()), own))
    if "history" in impressions.column_names:
        lists = _known_lists(impressions["history"], ads)
        length = pc.fill_null(pc.list_value_length(lists), 0)
    elif history is not None:
        moments = pc.cast(table["shown_at"], pa.int64()).to_numpy()
        lists, hours, count = history.before(user, moments, max_history)
        length = pa.array(count, pa.int32())
        table = table.append_column("history_hours", hours)
    else:
        lists = pa.nulls(len(table), pa.list_(pa.int32()))
        length = pa.array(np.zeros(len(table), np.int32))
    table = table.append_column("history_index", lists).append_column("history_length", length)
    if past is not None:
        table = past.attach(table)
    return examples_from_table(table, features, max_history=max_history)


def _checked(table: pa.Table, spec: TableSpec, where: str) -> pa.Table:
    check_schema(table.schema, spec, where=where)
    assert spec.key is not None
    ids = combined(table[spec.key]).cast(pa.string())
    if ids.null_count:
        row = int(np.flatnonzero(pc.is_null(ids).to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{where}: row {row + 1}: '{spec.key}' is empty. Every row needs one.")
    counts = pc.value_counts(ids)
    repeated = pc.filter(counts.field(0), pc.greater(counts.field(1), 1))
    if len(repeated):
        raise DataError(f"{where}: {spec.key} '{repeated[0].as_py()}' occurs more than once. Keep one row of each.")
    return table


def _known_lists(column: pa.ChunkedArray, ads: pa.Array) -> pa.Array:
    """Lists of ad ids as lists of row numbers, unknown ads left out."""
    place, lengths = places(pc.list_flatten(column), ads), lengths_of(column)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    kept = np.bincount(owner[place >= 0], minlength=len(lengths))
    return pa.ListArray.from_arrays(pa.array(ends(kept), pa.int32()), pa.array(place[place >= 0], pa.int32()))
