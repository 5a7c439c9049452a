"""Negatives for logs that hold nothing but clicks: ads drawn from the catalogue that was available when each click happened.

A draw is decided by a hash of seed, user, ad, moment and number, not by a stream of random numbers: a rerun, an append and
another order of the files give the same. Available is what had begun and not ended: by the ads table's `starts_at`, `ends_at`
and `known_from`; an ad of which the table says nothing always was. Where the log itself describes the ads, one exists
from the moment after its first click on, and the click that made it known is no lesson and no test: nothing could have
recommended it, and beside ads that were clicked before it would only teach that new ads are clicked.

Memory: 8 bytes a click for what else its request clicked; for draws by popularity 28 more. Cost: a few passes over the clicks.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.asof.keys import codes_of
from adrec.config.data.preprocess import Negatives
from adrec.data.arrays import integers
from adrec.data.availability import ALWAYS, NEVER, Availability
from adrec.data.disk.engine import columns_of, fetch, name, one_row, parquet, text
from adrec.data.hashing import mix
from adrec.errors import DataError
from adrec.prepare.log.events import good
from adrec.schema import DRAWN, KNOWN_FROM, NOBODY, OUTCOMES, PROPENSITY, PROPENSITY_GIVEN_ABOVE

Ints = NDArray[np.int64]
OF_THE_SLOT = ("position", PROPENSITY, PROPENSITY_GIVEN_ABOVE)
"""What a click has and a drawn ad has not: columns of them would give the click away."""
_REQUESTS_AT_ONCE = 262_144
_TRIES = 64
"""Draws for one negative before it is given up, where nearly all that is available was clicked."""
_STEP = np.uint64(0x9E3779B97F4A7C15)


def keep_clicks(connection: duckdb.DuckDBPyConnection, staged: str) -> str:
    """Leave only clicks in the staged impressions, and give them `click` 1. Returns a note where rows are left out.

    Raises DataError where no row is a click.
    """
    if "click" not in columns_of(connection, staged):
        connection.execute(f"ALTER TABLE {staged} ADD COLUMN click TINYINT DEFAULT 1")
        return ""
    other = f"{good(connection, staged)} AND click IS DISTINCT FROM 1"
    left_out = int(one_row(connection, f"SELECT count(*) AS n FROM {staged} WHERE {other}")["n"])
    connection.execute(f"DELETE FROM {staged} WHERE {other}")
    if not one_row(connection, f"SELECT count(*) AS n FROM {staged} WHERE {good(connection, staged)}")["n"]:
        raise DataError(
            "impressions: no row's click is 1, and `negatives` reads clicks alone. Look at `click`, or leave it out."
        )
    if not left_out:
        return ""
    return f"{left_out:,} rows whose click is not 1 are left out: with `negatives` only clicks are read"


def refuse_clicks_alone(connection: duckdb.DuckDBPyConnection, staged: str) -> None:
    """Raise DataError where every click is 1 and there is no other label: nothing can be learned from one class."""
    columns = columns_of(connection, staged)
    if "click" not in columns or {"conversion", "rating", "dwell_seconds"} & set(columns):
        return
    counts = one_row(
        connection,
        f"SELECT count(*) AS n, count(click) AS known, min(click) AS least FROM {staged} WHERE {good(connection, staged)}",
    )
    if counts["known"] and counts["least"] == 1:
        raise DataError(
            f"impressions: every click is 1 ({counts['known']:,} of {counts['n']:,} rows): a log of clicks alone says nothing "
            "of what was not clicked. Set `negatives` in the config, so that such ads are drawn from the catalogue (--set "
            "negatives.per_click=4)."
        )


def available_by_table(connection: duckdb.DuckDBPyConnection) -> Availability:
    """By tables `ads` and `staged_ads`: `starts_at`, `ends_at`, `known_from`."""
    columns = columns_of(connection, "staged_ads")
    since = "max(starts_at)" if "starts_at" in columns else "NULL"
    if KNOWN_FROM in columns:  # without a moment it was always known
        since = f"greatest({since}, CASE WHEN count({KNOWN_FROM}) = count(*) THEN min({KNOWN_FROM}) END)"
    until = "min(ends_at)" if "ends_at" in columns else "NULL"
    told = (
        f"SELECT ad_id, {since} AS opens, {until} AS closes FROM staged_ads WHERE {good(connection, 'staged_ads')} GROUP BY 1"
    )
    found = fetch(
        connection,
        "SELECT epoch_us(CAST(opens AS TIMESTAMP)) AS opens, epoch_us(CAST(closes AS TIMESTAMP)) AS closes "
        f"FROM ads LEFT JOIN ({told}) USING (ad_id) ORDER BY ad_index",
    )
    return Availability(integers(found["opens"], missing=ALWAYS), integers(found["closes"], missing=NEVER))


def available_by_log(connection: duckdb.DuckDBPyConnection) -> Availability:
    """From the moment after an ad's first click on, of table `events`. A log of one moment tells nothing: always."""
    found = fetch(
        connection,
        "SELECT epoch_us(min(started)) + 1 AS opens, (SELECT min(started) = max(started) FROM events) AS timeless "
        "FROM ads LEFT JOIN events USING (ad_index) GROUP BY ad_index ORDER BY ad_index",
    )
    opens = integers(found["opens"], missing=NEVER)
    if found["timeless"][0].as_py():
        opens = np.full(len(opens), ALWAYS)
    return Availability(opens, np.full(len(opens), NEVER))


def repeated_share(connection: duckdb.DuckDBPyConnection) -> float | None:
    """Share of the clicks of table `events` on an ad that their user clicked in an earlier request; None without users."""
    given = ""
    if "history" in columns_of(connection, "events"):
        given = "OR coalesce(list_contains(history, (SELECT ad_id FROM ads a WHERE a.ad_index = e.ad_index)), false)"
    found = one_row(
        connection,
        f"SELECT avg(CAST(request > first {given} AS INTEGER)) AS share FROM (SELECT *, min(request) OVER "
        "(PARTITION BY user_index, ad_index) AS first FROM events JOIN users USING (user_index) "
        f"WHERE user_id <> {text(NOBODY)}) e",
    )
    return float(found["share"]) if found["share"] is not None else None


def draw_negatives(
    connection: duckdb.DuckDBPyConnection,
    settings: Negatives,
    available: Availability,
    *,
    seed: int,
    earlier: Sequence[Path] = (),
) -> int:
    """Put the negatives of each click behind it into table `events`, with column `drawn`. They carry the click's request.

    `events` holds clicks alone; `earlier`: impressions of an output that is appended to, whose clicks count for popularity.
    Returns how many clicks are on ads that were not available yet, and stand alone.
    """
    ends = one_row(connection, "SELECT max(request) AS last, min(started) AS first, max(started) AS latest FROM events")
    popularity = None
    if settings.draw == "popularity":
        popularity = _Popularity.of(connection, earlier, settings.alpha, timeless=ends["first"] == ends["latest"])
    catalogue = _Catalogue(available, popularity)
    early = 0
    connection.execute("CREATE OR REPLACE TABLE negatives (click_row BIGINT, ad_index INTEGER, slot INTEGER)")
    for first in range(0, int(ends["last"]) + 1, _REQUESTS_AT_ONCE):
        clicks = fetch(
            connection,
            "SELECT e.rowid AS row, request, ad_index, epoch_us(started) AS started, a.ad_id, u.user_id FROM events e "
            "JOIN ads a USING (ad_index) JOIN users u USING (user_index) "
            f"WHERE request >= {first} AND request < {first + _REQUESTS_AT_ONCE} ORDER BY e.rowid",
        )
        early += int((available.opens[integers(clicks["ad_index"])] > integers(clicks["started"])).sum())
        drawn = catalogue.draw(clicks, settings.per_click, seed)
        connection.register("arrow_negatives", pa.table(dict(zip(("click_row", "ad_index", "slot"), drawn, strict=True))))
        connection.execute("INSERT INTO negatives SELECT * FROM arrow_negatives")
        connection.unregister("arrow_negatives")
    _insert(connection)
    return early


def _insert(connection: duckdb.DuckDBPyConnection) -> None:
    columns = columns_of(connection, "events")
    # What happened to the clicked ad did not happen to this one; what is the request's stays.
    nothing = {column: f"CAST(NULL AS {kind})" for column, kind in columns.items() if column in OUTCOMES}
    own = {**nothing, "click": f"CAST(0 AS {columns['click']})", "ad_index": "n.ad_index"} | {
        column: f"CAST(NULL AS {columns[column]})" for column in columns if column.startswith("ad@")
    }
    own.pop("request_id", None)
    selected = ", ".join(f"{own[column]} AS {name(column)}" if column in own else f"e.{name(column)}" for column in columns)
    connection.execute(
        f"CREATE OR REPLACE TABLE events AS SELECT * EXCLUDE (click_row, slot) FROM ("
        f"SELECT *, false AS {DRAWN}, rowid AS click_row, -1 AS slot FROM events UNION ALL BY NAME "
        f"SELECT {selected}, true AS {DRAWN}, n.click_row, n.slot FROM negatives n JOIN events e ON e.rowid = n.click_row"
        ") ORDER BY click_row, slot"
    )
    connection.execute("DROP TABLE negatives")


class _Catalogue:
    """Ads in the order in which they become available: at any moment a first part of them."""

    def __init__(self, available: Availability, popularity: "_Popularity | None") -> None:
        self._available, self._popularity = available, popularity
        self._order = np.argsort(available.opens, kind="stable")
        self._opens = available.opens[self._order]

    def draw(self, clicks: pa.Table, per_click: int, seed: int) -> tuple[Ints, NDArray[np.int32], NDArray[np.int32]]:
        """Rows of the clicks, ads drawn beside them, and their numbers; `clicks` are whole requests."""
        ads = len(self._order)
        request, ad, started = (integers(clicks[column]) for column in ("request", "ad_index", "started"))
        clicked, first = np.unique(request * ads + ad, return_index=True)  # of an ad clicked twice in a request the first
        first = first[self._available.opens[ad[first]] <= started[first]]  # no lesson: see the top of this file
        salt = mix(np.array([seed % 2**63], np.uint64))
        key = mix(codes_of(clicks["user_id"], "user_id").astype(np.uint64) + salt)
        key = mix(key ^ codes_of(clicks["ad_id"], "ad_id").astype(np.uint64))
        key = mix(key + started.astype(np.uint64))[first]
        key = mix(key + _occurrence(key).astype(np.uint64) * _STEP)
        request, started, row = request[first], started[first], integers(clicks["row"])[first]
        count = np.searchsorted(self._opens, started, side="right")
        # Never more than there is: what is available but for the request's own clicks.
        of_request = np.searchsorted(clicked, (request + 1) * ads) - np.searchsorted(clicked, request * ads)
        room = np.clip(count - of_request, 0, per_click)
        click = np.repeat(np.arange(len(first)), room)
        slot = np.arange(len(click)) - np.repeat(np.cumsum(room) - room, room)
        chosen = np.full(len(click), -1, np.int64)
        taken = clicked
        open_places = np.arange(len(click))
        for number in range(_TRIES):
            if not len(open_places):
                break
            of = click[open_places]
            bits = mix(key[of] + (slot[open_places] * _TRIES + number + 1).astype(np.uint64) * _STEP)
            drawn, accepted = self._draw(bits, started[of], count[of])
            pair = request[of] * ads + drawn
            place = np.minimum(np.searchsorted(taken, pair), len(taken) - 1)
            accepted &= (self._available.closes[drawn] > started[of]) & (taken[place] != pair)
            fitting = np.flatnonzero(accepted)
            new, earliest = np.unique(pair[fitting], return_index=True)
            chosen[open_places[fitting[earliest]]] = drawn[fitting[earliest]]
            taken = np.union1d(taken, new)
            open_places = open_places[chosen[open_places] < 0]
        places = np.flatnonzero(chosen >= 0)
        return row[click[places]], chosen[places].astype(np.int32), slot[places].astype(np.int32)

    def _draw(self, bits: NDArray[np.uint64], started: Ints, count: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """An ad for each of N random numbers, and whether it stands."""
        if self._popularity is None:
            place = (_share(bits) * count).astype(np.int64)
            return self._order[np.minimum(place, count - 1)], np.ones(len(bits), np.bool_)
        return self._popularity.draw(bits, started, count, self._order, self._available.opens)


class _Popularity:
    """Clicks so far, for draws in proportion to (clicks before the moment + 1)^alpha.

    Proposed in proportion to clicks + 1 (one of the clicks before the moment, or one of the available ads), accepted with
    probability (clicks + 1)^(alpha - 1).
    """

    def __init__(self, ad: Ints, time: Ints, alpha: float, *, timeless: bool) -> None:
        order = np.argsort(time, kind="stable")
        self._ad, self._time, self._alpha, self._timeless = ad[order], time[order], alpha, timeless
        place = np.searchsorted(self._time, self._time)
        # (ad, place of the moment among all) as one number, ascending: what came before is left of it.
        self._width = len(ad) + 1
        self._keys = np.sort(self._ad * self._width + place)

    @classmethod
    def of(
        cls, connection: duckdb.DuckDBPyConnection, earlier: Sequence[Path], alpha: float, *, timeless: bool
    ) -> "_Popularity":
        """Of table `events` and the shards of an earlier output. A log without moments counts its training part."""
        where = "WHERE part = 0" if timeless else ""
        queries = [f"SELECT ad_index, epoch_us(shown_at) AS time FROM events {where}"]
        if earlier:
            queries.append(
                f"SELECT ad_index, epoch_us(shown_at) AS time FROM {parquet(*earlier, options='union_by_name = true')} "
                f"WHERE NOT {DRAWN}"
            )
        found = fetch(connection, " UNION ALL ".join(queries))
        return cls(integers(found["ad_index"]), integers(found["time"]), alpha, timeless=timeless)

    def draw(
        self, bits: NDArray[np.uint64], started: Ints, count: Ints, order: Ints, opens: Ints
    ) -> tuple[Ints, NDArray[np.bool_]]:
        """See _Catalogue._draw."""
        before = self.before(started)
        place = (_share(bits) * (count + before)).astype(np.int64)
        place = np.minimum(place, count + before - 1)
        among = place < count
        drawn = np.where(among, order[np.minimum(place, count - 1)], self._ad[np.maximum(place - count, 0)])
        weight = (self.clicks(drawn, before) + 1.0) ** (self._alpha - 1)
        return drawn, (_share(mix(bits + _STEP)) < weight) & (opens[drawn] <= started)

    def before(self, started: Ints) -> Ints:
        """Clicks of all ads before each moment."""
        if self._timeless:
            return np.full(len(started), len(self._time))
        return np.searchsorted(self._time, started).astype(np.int64)

    def clicks(self, ad: Ints, before: Ints) -> Ints:
        """Clicks of each ad among the first `before` of all."""
        found = np.searchsorted(self._keys, ad * self._width + before) - np.searchsorted(self._keys, ad * self._width)
        return np.asarray(found, np.int64)


def _occurrence(key: NDArray[np.uint64]) -> Ints:
    """(N,) how many equal keys stand before each: clicks of nobody, or of no moment, differ in nothing else."""
    order = np.argsort(key, kind="stable")
    place = np.arange(len(key))
    opens = np.diff(key[order], prepend=~key[order[:1]]) != 0
    found = np.empty(len(key), np.int64)
    found[order] = place - np.maximum.accumulate(np.where(opens, place, 0))
    return found


def _share(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """[0, 1) from the leading 53 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
