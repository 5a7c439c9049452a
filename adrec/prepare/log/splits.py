"""Which part a row belongs to: 0 train, 1 valid, 2 test. One function a method; each gives SQL.

The SQL is over the aliases of `events.build_events`: s (staged impression), r (its request, with its user).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import duckdb
import numpy as np
import pyarrow as pa

from adrec.config.data.preprocess import (
    ColdSplit,
    ColumnSplit,
    LeaveLastOutSplit,
    RandomSplit,
    RollingSplit,
    Split,
    TimeSplit,
    UserSplit,
)
from adrec.config.data.spans import span_of
from adrec.data.disk.engine import columns_of, moment_sql, name, one_row, text
from adrec.errors import DataError
from adrec.prepare.log.events import good
from adrec.schema import SPLITS, WEIGHT

TRAIN, VALID, TEST = 0, 1, 2
_NEVER = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Assignment:
    """SQL of a row's part, and the joins that the SQL needs."""

    part: str
    joins: str = ""


def assign(connection: duckdb.DuckDBPyConnection, staged: str, split: Split, *, seed: int) -> Assignment:
    """The split of `staged` (with `requests` and `users` built). Raises DataError where it cannot be made."""
    if isinstance(split, TimeSplit):
        return _by_time(connection, split)
    if isinstance(split, RandomSplit):
        return _at_random(connection, staged, split, seed)
    if isinstance(split, UserSplit):
        return Assignment(_by_hash("r.user_id", split.valid_fraction, split.test_fraction, seed))
    if isinstance(split, ColdSplit):
        key = "s.ad_id" if split.method == "cold_ad" else "r.user_id"
        return Assignment(_by_hash(key, split.valid_fraction, split.test_fraction, seed))
    if isinstance(split, ColumnSplit):
        return _by_column(connection, staged, split)
    return _leave_last_out(connection)


def _by_time(connection: duckdb.DuckDBPyConnection, split: TimeSplit) -> Assignment:
    """By the first moment of the request, so that a request never straddles. Fractions are of rows."""
    if split.test_from is not None:
        return Assignment(part_of(split, "r.started"))
    keep = 1.0 - split.valid_fraction - split.test_fraction
    if keep <= 0:
        raise DataError("split: valid_fraction and test_fraction leave nothing for training. Lower them.")
    # The first moment at which the earlier rows make up the share; rows of one moment stay together.
    bounds = []
    for share in (keep, 1.0 - split.test_fraction):
        query = (
            "SELECT min(started) AS bound FROM (SELECT started, sum(sum(rows)) OVER (ORDER BY started) - sum(rows) AS earlier, "
            f"sum(sum(rows)) OVER () AS n FROM requests GROUP BY started) WHERE earlier >= {share!r} * n"
        )
        bounds.append(one_row(connection, query)["bound"])
    middle, later = (f"TIMESTAMP {text(str(bound))}" if bound is not None else "TIMESTAMP '9999-01-01'" for bound in bounds)
    return Assignment(f"CASE WHEN r.started >= {later} THEN 2 WHEN r.started >= {middle} THEN 1 ELSE 0 END")


def _at_random(connection: duckdb.DuckDBPyConnection, staged: str, split: RandomSplit, seed: int) -> Assignment:
    """scikit-learn's train_test_split(test_size, random_state=seed): the rows (or requests) in source order."""
    if split.unit == "request":
        count = one_row(connection, "SELECT count(*) AS n FROM requests")["n"]
        parts = random_parts(count, split.valid_fraction, split.test_fraction, seed)
        _table_of(connection, "drawn", parts)
        return Assignment("d.part", "JOIN drawn d ON d.number = r.request")
    passed = good(connection, staged)
    once = "DISTINCT " if WEIGHT in columns_of(connection, staged) else ""  # outcomes of one row of counts go together
    connection.execute(
        f"CREATE OR REPLACE TABLE source_rows AS SELECT {once}source_order FROM {staged} WHERE {passed} ORDER BY source_order"
    )
    count = one_row(connection, "SELECT count(*) AS n FROM source_rows")["n"]
    _table_of(connection, "drawn_rows", random_parts(count, split.valid_fraction, split.test_fraction, seed))
    connection.execute(
        "CREATE OR REPLACE TABLE drawn AS SELECT o.source_order, d.part FROM source_rows o POSITIONAL JOIN drawn_rows d"
    )
    return Assignment("d.part", "JOIN drawn d ON d.source_order = s.source_order")


def random_parts(
    count: int, valid_fraction: float, test_fraction: float, seed: int
) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    """Parts of `count` rows, (count,) uint8: the test is ShuffleSplit's, the validation a second draw from the rest."""
    parts = np.zeros(count, np.uint8)
    tests = int(np.ceil(test_fraction * count))
    order = np.random.RandomState(seed).permutation(count)
    parts[order[:tests]] = TEST
    rest = np.sort(order[tests:]) if valid_fraction else order[tests:]
    valid = min(int(np.ceil(valid_fraction * count)), len(rest))
    if valid:
        parts[rest[np.random.RandomState(seed).permutation(len(rest))[:valid]]] = VALID
    return parts


def _table_of(connection: duckdb.DuckDBPyConnection, target: str, parts: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> None:
    arrow = pa.table({"number": np.arange(len(parts)), "part": parts})
    connection.register("drawn_arrow", arrow)
    connection.execute(f"CREATE OR REPLACE TABLE {target} AS SELECT * FROM drawn_arrow")
    connection.unregister("drawn_arrow")


def _by_hash(key: str, valid_fraction: float, test_fraction: float, seed: int) -> str:
    """A stable hash of an id decides: adding rows moves nobody. MD5, since it is the same everywhere and always."""
    share = f"(md5_number_lower({text(f'{seed}:')} || {key}) % 1000000007) / 1000000007.0"
    return f"CASE WHEN {share} < {test_fraction!r} THEN 2 WHEN {share} < {test_fraction + valid_fraction!r} THEN 1 ELSE 0 END"


def _by_column(connection: duckdb.DuckDBPyConnection, staged: str, split: ColumnSplit) -> Assignment:
    cell = f"s.{name(split.column)}"
    named = [*split.train, *split.valid, *split.test]
    found = connection.execute(
        f"SELECT CAST({name(split.column)} AS VARCHAR) AS value, min(source_row), count(*) FROM {staged} GROUP BY 1 ORDER BY 2"
    ).fetchall()
    odd = [row for row in found if row[0] not in named]
    if odd:
        value, row, count = odd[0]
        raise DataError(
            f"impressions: column '{split.column}', row {row:,}: {value!r} names no part ({count:,} rows). "
            "List it under split.train, split.valid or split.test."
        )
    lists = [", ".join(text(value) for value in values) or "NULL" for values in (split.test, split.valid)]
    value = f"CAST({cell} AS VARCHAR)"
    return Assignment(f"CASE WHEN {value} IN ({lists[0]}) THEN 2 WHEN {value} IN ({lists[1]}) THEN 1 ELSE 0 END")


def _leave_last_out(connection: duckdb.DuckDBPyConnection) -> Assignment:
    part = "CASE WHEN total < 3 THEN 0 WHEN back = 1 THEN 2 WHEN back = 2 THEN 1 ELSE 0 END"
    windows = (
        "count(*) OVER (PARTITION BY user_id) AS total, row_number() OVER (PARTITION BY user_id ORDER BY rowid DESC) AS back"
    )
    ranked = f"SELECT rowid AS number, {windows} FROM requests"
    connection.execute(f"CREATE OR REPLACE TABLE drawn AS SELECT number, {part} AS part FROM ({ranked})")
    return Assignment("d.part", "JOIN drawn d ON d.number = r.request")


def held_bounds(split: TimeSplit, cuts: Mapping[str, str]) -> TimeSplit:
    """The split of rows that are appended where parts begin at `cuts` (ISO 8601, as the manifest has them)."""
    if split.test_from is not None:
        return split
    valid, test = (datetime.fromisoformat(cuts[part]) if part in cuts else None for part in ("valid", "test"))
    return TimeSplit(valid_from=valid, test_from=test or _NEVER)


def rolling_bounds(connection: duckdb.DuckDBPyConnection, split: RollingSplit) -> TimeSplit:
    """Where the parts begin for the log that ends with the last of table `requests`."""
    span, unit = span_of(split.test_last)
    last = one_row(connection, "SELECT max(started) AS last FROM requests")["last"].replace(tzinfo=UTC)
    unit = min(unit, timedelta(days=1))
    end = last - (last - datetime(1970, 1, 1, tzinfo=UTC)) % unit + unit
    before = span_of(split.valid_last)[0] if split.valid_last is not None else None
    return TimeSplit(test_from=end - span, valid_from=end - span - before if before is not None else None)


def part_of(split: TimeSplit, started: str) -> str:
    """SQL of the part of a request by its first moment, where the split has moments."""
    later = moment_sql(split.test_from or _NEVER)
    middle = moment_sql(split.valid_from) if split.valid_from is not None else later
    return f"CASE WHEN {started} >= {later} THEN 2 WHEN {started} >= {middle} THEN 1 ELSE 0 END"


def wants_test(split: Split) -> bool:
    """Whether the config asks for a test part."""
    if isinstance(split, RollingSplit):
        return True
    if isinstance(split, TimeSplit):
        return split.test_from is not None or split.test_fraction > 0
    if isinstance(split, ColumnSplit):
        return bool(split.test)
    return isinstance(split, LeaveLastOutSplit) or split.test_fraction > 0


def refuse_empty(
    connection: duckdb.DuckDBPyConnection, split: Split, before: Mapping[str, int], relation: str = "events"
) -> None:
    """Raise DataError where training, or a test that is wanted, gets no row of `relation`.

    `before`: rows that the splits of an output that is appended to hold already.
    """
    found = dict(connection.execute(f"SELECT part, count(*) FROM {relation} GROUP BY part").fetchall())
    rows = {split_name: found.get(number, 0) + before.get(split_name, 0) for number, split_name in enumerate(SPLITS)}
    for split_name in ("train", *(["test"] if wants_test(split) else [])):
        if not rows[split_name]:
            counts = ", ".join(f"{label} {count:,}" for label, count in rows.items())
            raise DataError(
                f"split: the {split_name} part has no rows ({counts}). Change {_key(split, split_name)} in the config."
            )


def _key(split: Split, split_name: str) -> str:
    """The setting that makes a part larger."""
    if isinstance(split, ColumnSplit):
        return f"split.column ('{split.column}') or split.{split_name} ({', '.join(getattr(split, split_name)) or 'empty'})"
    if isinstance(split, RollingSplit):
        return "split.test_last and split.valid_last: the log is too short"
    if isinstance(split, LeaveLastOutSplit):
        return "split.method: no user has the three requests that leave_last_out needs"
    if isinstance(split, TimeSplit) and split.test_from is not None:
        moment = (split.valid_from or split.test_from) if split_name == "train" else split.test_from
        return (
            f"split.{'valid_from' if split_name == 'train' and split.valid_from else 'test_from'} ({moment:%Y-%m-%d %H:%M} UTC)"
        )
    if split_name == "train":
        return "split.valid_fraction and split.test_fraction"
    return "split.test_fraction"


def refuse_time_travel(connection: duckdb.DuckDBPyConnection, split: Split) -> None:
    """Raise DataError where a split that claims time order has a training row after a test row."""
    claims = isinstance(split, TimeSplit) or (isinstance(split, ColumnSplit) and split.in_time_order)
    if not claims:
        return
    ends = one_row(
        connection,
        "SELECT max(shown_at) FILTER (part = 0) AS trained, min(shown_at) FILTER (part = 2) AS tested, "
        "count(*) FILTER (part = 0 AND shown_at > (SELECT min(shown_at) FROM events WHERE part = 2)) AS later FROM events",
    )
    if isinstance(split, ColumnSplit) and ends["later"]:
        raise DataError(
            f"split: {ends['later']:,} training rows lie after the first test row ({ends['tested']}), up to {ends['trained']}: "
            "the model would see the future. Split by time, or set split.in_time_order to false if that is meant."
        )
