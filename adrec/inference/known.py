"""Rows that nobody prepared → prepared rows: identifiers become row numbers, and what was known at the moment is attached.

The one way in for a user's own rows, requests to be ranked and calls of the server. What the log of a prepared folder knew
(`AsOf`) or a click log of the user's own answers for the past; without either there is no history, and counters are missing.
New rows may name users never seen, and need no labels. An ad that the ads table does not know is a fault of the input.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.asof.history import TIMELESS, EventLog, Histories, read_given
from adrec.asof.keys import NO_CODE, codes_of
from adrec.asof.reader import AsOf, LogFiles
from adrec.asof.versions import NOTHING_CHANGES, Attributes, Versions
from adrec.data.arrays import combined, integers, places
from adrec.data.disk.tables import check_schema
from adrec.data.prepared import Prepared
from adrec.data.ragged import ragged
from adrec.data.shape import LogShape
from adrec.errors import DataError
from adrec.schema import ADS, IMPRESSIONS, NOBODY, SPLITS, TIMESTAMP, USERS, Column, TableSpec, as_of_column

Ints = NDArray[np.int64]
_READ = ("user_id", "ad_id", "shown_at", "request_id", "query", "history")
SCORABLE = TableSpec("impressions", tuple(column for column in IMPRESSIONS.columns if column.name in _READ))
"""What scoring reads of impressions, beside declared features: no label."""
CLICKS = TableSpec(
    "history",
    (
        Column("user_id", pa.string(), True, "who clicked; empty: somebody unknown, which is nobody's past", filled=False),
        Column("ad_id", pa.string(), True, "what"),
        Column("shown_at", pa.timestamp("us", tz="UTC"), True, "when"),
    ),
)
"""A log of clicks, for rows that bring no history of their own."""
MADE_OF_ROWS = {"row_id", "ad_index", "user_index", "history_index", "history_hours", "history_length", "skipped_index"}
"""Columns of prepared impressions that say something of one prepared folder alone: its numbers, and what they refer to."""


@dataclass(frozen=True)
class Known:
    """What answers for the past of rows over one catalogue of ads."""

    asof: AsOf | None = None
    clicks: EventLog | None = None
    """the user's own log, which goes before the folder's"""
    timeless: bool = False
    """histories came with the log and carry no moments"""
    attributes: Attributes = NOTHING_CHANGES
    """what changes of ads and users"""

    @property
    def after(self) -> int:
        """The first moment after everything that is known, microseconds."""
        if self.clicks is not None:
            last = int(self.clicks.times.max()) if len(self.clicks.times) else None
        else:
            last = self.asof.last_click if self.asof is not None else None
        return last + 1 if last is not None else 0

    def attach(
        self,
        table: pa.Table,
        *,
        ads: pa.Table,
        users: pa.Table,
        user: Ints,
        ad: Ints,
        limit: int,
        counters: bool = True,
        null_is_known: bool = False,
        described: Sequence[str] = (),
    ) -> pa.Table:
        """N rows (`shown_at`, optional `request_id`, `history`, own columns) as prepared impressions.

        user, ad (N,) point into `users` and `ads`. Rows of a request share its first moment. Histories are as long as the
        log's settings say, or `limit` without a log. Counters that the rows bring stay. A null `history` is an empty one, a
        null counter missing, or, where `null_is_known`, what is known. `described`: columns that hold an ad's or a user's as of
        the row (`as_of_column`), beside those that counters need.
        """
        table = table.drop_columns([name for name in table.column_names if name in MADE_OF_ROWS])
        if self.asof is not None:  # counters of histories see what they saw in training
            limit = self.asof.max_clicks
        codes_of_users = codes_of(users["user_id"].take(pa.array(user)), "user_id")
        request, first, started = requests_of(table, user, codes_of_users == NO_CODE)
        codes = codes_of_users[first]
        history, moments, of_row = self._histories(table, ads, codes, request, started, limit, null_is_known)
        columns: dict[str, pa.Array] = {
            "request_id": pa.array(request).cast(pa.string()),
            "user_index": pa.array(user, pa.int32()),
            "ad_index": pa.array(ad, pa.int32()),
            "history_index": _lists(history.offsets, history.ads.astype(np.int32), of_row),
            "history_hours": _lists(history.offsets, history.hours(moments), of_row),
            "history_length": pa.array(history.lengths[of_row].astype(np.int32)),
        }
        if self.asof is not None and self.asof.max_skipped:
            skips = self.asof.skips(codes, started)
            columns["skipped_index"] = _lists(skips.offsets, skips.ads, request)
        wanted = dict.fromkeys((*described, *(self.asof.row_columns if self.asof is not None else ())))
        columns |= self.attributes.columns(
            [name for name in wanted if name not in table.column_names],
            ads=ads, users=users, ad=ad, user=user, moments=started[request],
        )  # fmt: skip
        brought = [name for name in table.column_names if not (null_is_known and table[name].null_count)]
        if counters and self.asof is not None and not set(self.asof.names) <= set(brought):
            keys = self.asof.keys(users)
            counted = self.asof.counters(
                keys, keys.codes(user, ad, _with(table, columns)), times=started[request], ad=ad,
                offsets=history.offsets, clicked=history.ads, history_of_row=of_row,
            )  # fmt: skip
            made = {name: pa.array(values) for name, values in counted.items() if name not in brought}
            columns |= {
                name: pc.coalesce(combined(table[name]).cast(values.type), values) if name in table.column_names else values
                for name, values in made.items()
            }
        kept = [name for name in table.column_names if name not in {*columns, "history"}]
        return pa.table({**{name: table[name] for name in kept}, **columns})

    def pair_columns(
        self, requests: pa.Table, *, ads: pa.Table, users: pa.Table, row: Ints, ad: Ints, described: Sequence[str] = ()
    ) -> dict[str, pa.Array]:
        """Counters, and the `described` columns, of N pairs: request `row` (N,) of `requests` (as `attach` gives them) with
        ad row `ad` (N,).
        """
        if "shown_at" not in requests.column_names:
            requests = at_no_moment(requests)
        user, moments = integers(requests["user_index"])[row], integers(pc.cast(requests["shown_at"], pa.int64()))[row]
        by = self.asof.row_columns if self.asof is not None else []
        columns = self.attributes.columns(
            dict.fromkeys((*described, *by)), ads=ads, users=users, ad=ad, user=user, moments=moments
        )
        if self.asof is None:
            return columns
        own = [name for name in by if name in requests.column_names and name not in columns]
        table = requests.select(own).take(pa.array(row)) if own else pa.table({})
        keys, lists = self.asof.keys(users), ragged(requests["history_index"])
        counted = self.asof.counters(
            keys, keys.codes(user, ad, _with(table, columns)), times=moments, ad=ad,
            offsets=lists.offsets, clicked=lists.values, history_of_row=row,
        )  # fmt: skip
        return columns | {name: pa.array(values) for name, values in counted.items()}

    def _histories(
        self, table: pa.Table, ads: pa.Table, codes: Ints, request: Ints, started: Ints, limit: int, null_is_known: bool
    ) -> tuple[Histories, Ints, Ints]:
        """Histories, the moment of each, and which of them each row has (N,)."""
        if "history" not in table.column_names:
            return self._before(codes, started, limit), started, request
        column = combined(table["history"]).cast(pa.list_(pa.string()))
        own = read_given(column, combined(ads["ad_id"]), limit)
        own_clicks = Histories(own.offsets, own.ads, np.full(len(own.ads), TIMELESS), own.lengths)
        missing = np.asarray(column.is_null().to_numpy(zero_copy_only=False)) & null_is_known
        if not missing.any():
            return own_clicks, started[request], np.arange(len(table))
        known = self._before(codes, started, limit)
        both = Histories(
            np.concatenate([own_clicks.offsets, own_clicks.offsets[-1] + known.offsets[1:]]),
            np.concatenate([own_clicks.ads, known.ads]),
            np.concatenate([own_clicks.times, known.times]),
            np.concatenate([own_clicks.lengths, known.lengths]),
        )
        return both, np.concatenate([started[request], started]), np.where(missing, len(table) + request, np.arange(len(table)))

    def _before(self, codes: Ints, times: Ints, limit: int) -> Histories:
        if self.clicks is not None:
            return self.clicks.histories(codes, times, limit)
        if self.asof is None:
            return EventLog.empty().histories(codes, times, limit)
        known = self.asof.clicks(codes, times, limit)
        return known._replace(times=np.full(len(known.times), TIMELESS)) if self.timeless else known


NOTHING = Known()


def known_of(
    prepared: Prepared | None, ads: pa.Table, clicks: pa.Table | None = None, *, asked_users: pa.Array | None = None,
    where: str = "history", own: Collection[str] = (),
) -> Known:  # fmt: skip
    """What a prepared folder and a click log (either may be None) know, for rows over `ads`.

    asked_users: the only users there will be questions about. own: `ads` and `users` where the tables are the user's own
    and not the folder's: they say what ads and users are like, at any moment. Raises DataError where the folder's state is
    broken.
    """
    log = click_log(clicks, ads, where=where) if clicks is not None else None
    if prepared is None:
        return Known(None, log)
    timeless = log is None and prepared.manifest.get("history", {}).get("source") == "given"
    return Known(AsOf(log_of(prepared), ads, asked_users=asked_users), log, timeless, attributes_of(prepared, own))


def attributes_of(prepared: Prepared, own: Collection[str] = ()) -> Attributes:
    """What changes of the ads and users of a prepared folder; nothing of the tables that are the user's `own`."""
    found = {
        spec.name: Versions.load(prepared.path, spec, prepared.table(spec)) for spec in (ADS, USERS) if spec.name not in own
    }
    return Attributes(**found)


def log_of(prepared: Prepared) -> LogFiles:
    """The log behind a prepared folder; without moments nothing is before anything."""
    is_dated = prepared.has.time
    return LogFiles(
        state=prepared.state if is_dated else None,
        impressions=[file for split in SPLITS if is_dated for file in prepared.split_files(split)],
        ads=prepared.ads(),
        users=prepared.users(),
        counters=prepared.counters(),
        history=prepared.history(),
        as_of=[column for column in prepared.columns if as_of_column(column) is not None],
    )


def click_log(table: pa.Table, ads: pa.Table, *, where: str = "history") -> EventLog:
    """The user's own clicks; rows of unknown ads are left out. With a `click` column only its clicks count."""
    check_schema(table.schema, CLICKS, where=where)
    table = table.filter(pc.is_valid(table["user_id"]))
    if "click" in table.column_names:
        table = table.filter(pc.fill_null(pc.equal(table["click"], 1), False))
    ad = places(table["ad_id"], ads["ad_id"])
    table, ad = table.filter(pa.array(ad >= 0)), ad[ad >= 0]
    return EventLog.of(codes_of(table["user_id"], "user_id"), ad, integers(pc.cast(table["shown_at"], pa.int64())))


def users_named(rows: pa.Table) -> pa.Array:
    """(N,) whose rows these are, `NOBODY` where they do not say."""
    if "user_id" not in rows.column_names:
        return pa.repeat(pa.scalar(NOBODY), len(rows))
    return pc.fill_null(combined(rows["user_id"]).cast(pa.string()), NOBODY)


def at_no_moment(rows: pa.Table) -> pa.Table:
    """The rows as those of a log without moments stand: all at one."""
    others = rows.drop_columns(["shown_at"]) if "shown_at" in rows.column_names else rows
    return others.append_column("shown_at", pa.array(np.zeros(len(rows), np.int64)).cast(TIMESTAMP))


def placed(
    rows: pa.Table, ads: pa.Array, users: pa.Array, has: LogShape, *, where: str = "impressions", first_row: int = 0
) -> tuple[Ints, Ints]:
    """(N,) rows of `users` and of `ads` for the user's own rows; a model that knows no ads has one row for all.

    Rows need not name what the model does not know (`has`), and some may be nobody's. Raises DataError naming an unknown ad
    or a missing moment. first_row: the row's number in the user's file.
    """
    needed = {name for name, known in (("user_id", has.user), ("ad_id", has.ad), ("shown_at", has.time)) if known}
    spec = TableSpec(SCORABLE.name, tuple(replace(one, required=one.name in needed) for one in SCORABLE.columns))
    check_schema(rows.schema, spec, where=where)
    user = places(users_named(rows), users)
    if not has.ad:
        return user, np.zeros(len(rows), np.int64)
    ad = places(rows["ad_id"], ads)
    unknown = np.flatnonzero(ad < 0)
    if len(unknown):
        row = int(unknown[0])
        found = rows["ad_id"][row].as_py()
        raise DataError(
            f"{where}: row {first_row + row + 1}: ad_id '{found}' is not in the ads table. Add the ad, or drop the row."
        )
    if has.time and rows["shown_at"].null_count:
        row = int(np.flatnonzero(pc.is_null(rows["shown_at"]).to_numpy())[0])
        raise DataError(f"{where}: row {first_row + row + 1}: 'shown_at' is empty. Give the moment for which to score.")
    return user, ad


def requests_of(table: pa.Table, user: Ints, is_nobody: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Requests of N rows: each row's number (N,), and the first row and the first moment (microseconds) of each, (R,).

    A request is a user's rows of one request_id, or of one moment where there is none; without an id a row of an unknown user
    (`is_nobody`, (N,)) is one by itself.
    """
    is_given = np.zeros(len(table), np.bool_)
    time = integers(pc.cast(combined(table["shown_at"]).cast(pa.timestamp("us", tz="UTC")), pa.int64()))
    if "request_id" in table.column_names and table["request_id"].null_count < len(table):
        requests = combined(table["request_id"]).cast(pa.string())
        is_given = np.asarray(requests.is_valid().to_numpy(zero_copy_only=False))
        moments = pa.array(time).cast(pa.string())
        by_id, by_moment = (pc.binary_join_element_wise(kind, text, "") for kind, text in (("r", requests), ("t", moments)))
        name = (
            combined(pc.if_else(requests.is_valid(), by_id, by_moment)).dictionary_encode().indices.to_numpy().astype(np.int64)
        )
    else:
        _, name = np.unique(time, return_inverse=True)
    alone = np.flatnonzero(is_nobody & ~is_given)
    name[alone] = int(name.max(initial=0)) + 1 + np.arange(len(alone))
    pairs = user * (int(name.max(initial=0)) + 1) + name
    _, first, request = np.unique(pairs, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    request = number[request]
    started = np.full(len(first), np.iinfo(np.int64).max)
    np.minimum.at(started, request, time)
    return request, first[order], started


def _with(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """The table and those of the columns that hold an ad's or a user's as of the row."""
    described = {name: values for name, values in columns.items() if as_of_column(name) is not None}
    return pa.table({**{name: table[name] for name in table.column_names}, **described})


def _lists(offsets: Ints, values: NDArray[np.generic], of_row: Ints) -> pa.ListArray:
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
    return lists.take(pa.array(of_row))
