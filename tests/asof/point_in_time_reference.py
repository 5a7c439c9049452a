"""Random worlds, and history and counters by the definition: a loop over all pairs of rows. An oracle for tests only."""

import math
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from adrec.asof.attach import Attach
from adrec.asof.spec import counter_name
from adrec.specs import CounterSpec, HistorySpec

HOUR = 3_600_000_000
ADS = pa.table(
    {
        "ad_id": [f"a{i}" for i in range(6)],
        "category": ["x", "y", "x", None, "y", "z"],
        "advertiser_id": ["p", "p", "q", "q", "r", "r"],
    }
)
USERS = pa.table({"user_id": [f"u{i}" for i in range(5)], "region": ["n", "s", "n", None, "s"]})

SPECS = [
    CounterSpec(by=("ad",), measures=("impressions", "clicks", "rate", "hours_since_first"), half_lives_hours=(None, 0.5, 6.0)),
    CounterSpec(by=("advertiser",), measures=("clicks", "rate"), half_lives_hours=(None, 2.0)),
    CounterSpec(by=("category",), measures=("rate", "history_share", "history_count", "hours_since_first"), prior_strength=3.0),
    CounterSpec(by=("user",), measures=("impressions", "clicks", "rate"), half_lives_hours=(None, 1.0)),
    CounterSpec(by=("user", "category"), measures=("impressions", "rate"), half_lives_hours=(1.0,), log1p=True),
    CounterSpec(by=("user", "ad"), measures=("impressions", "hours_since_first")),
    CounterSpec(by=("user", "advertiser"), measures=("clicks",)),
    CounterSpec(by=("position",), measures=("rate", "conversions", "conversion_rate")),
    CounterSpec(by=("region", "position", "category"), measures=("impressions",)),
    CounterSpec(by=(), measures=("impressions", "rate"), half_lives_hours=(None, 3.0)),
]


@st.composite
def worlds(draw, *, spread=True, late=False, max_requests=14):
    """Impressions in the documented order: many ties in time, interleaved users, requests of several rows and moments."""
    rows = []
    for number in range(draw(st.integers(1, max_requests))):
        user = draw(st.integers(0, 4))
        begin = draw(st.integers(0, 8)) * HOUR // 2
        for _ in range(draw(st.integers(1, 4))):
            at = begin + (draw(st.integers(0, 3)) * HOUR // 2 if spread else 0)
            row = {
                "request": number, "begin": begin, "user": user, "at": at, "ad": draw(st.integers(0, 5)),
                "click": draw(st.sampled_from([0, 0, 1, 1, None])), "position": draw(st.sampled_from([1, 2, None])),
            }  # fmt: skip
            row["conversion"] = draw(st.sampled_from([0, 1])) if row["click"] else 0
            row["clicked_at"] = at + draw(st.integers(-1, 4)) * HOUR // 4 if late and row["click"] else None
            row["converted_at"] = at + draw(st.integers(0, 6)) * HOUR // 2 if late and row["conversion"] else None
            rows.append(row)
    for row in rows:  # a request begins with its first row
        row["begin"] = min(other["at"] for other in rows if other["request"] == row["request"])
    return sorted(rows, key=lambda row: (row["begin"], row["request"], row["at"]))


def to_table(rows, *, late=False):
    """A world as the table that preprocess hands over."""
    stamp = pa.timestamp("us", tz="UTC")
    columns = {
        "user_index": pa.array([row["user"] for row in rows], pa.int32()),
        "ad_index": pa.array([row["ad"] for row in rows], pa.int32()),
        "shown_at": pa.array([row["at"] for row in rows], pa.int64()).cast(stamp),
        "request_id": pa.array([f"r{row['request']}" for row in rows]),
        "click": pa.array([row["click"] for row in rows], pa.int8()),
        "position": pa.array([row["position"] for row in rows], pa.int32()),
        "conversion": pa.array([row["conversion"] for row in rows], pa.int8()),
        "mark": pa.array([f"m{i}" for i in range(len(rows))]),
    }
    if late:
        for name in ("clicked_at", "converted_at"):
            columns[name] = pa.array([row[name] for row in rows], pa.int64()).cast(stamp)
    return pa.table(columns)


def open_attach(table, connection, folder, *, specs=SPECS, history=None, batch_rows=7, partition_rows=5, earlier=None):
    """The as-of pass over a table of impressions in the documented order, its state in `folder`."""
    named = table["request_id"].to_pylist() if "request_id" in table.column_names else [None] * len(table)
    moments, users = table["shown_at"].cast(pa.int64()).to_pylist(), table["user_index"].to_pylist()
    keys = [(user, name if name is not None else at) for user, name, at in zip(users, named, moments, strict=True)]
    number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    begin = {}
    for key, at in zip(keys, moments, strict=True):
        begin[key] = min(at, begin.get(key, at))
    rows = table.append_column("request", pa.array([number[key] for key in keys], pa.int32()))
    rows = rows.append_column("started", pa.array([begin[key] for key in keys], pa.int64()).cast(table["shown_at"].type))
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("rows", rows)
    connection.execute("CREATE OR REPLACE TABLE events AS SELECT * FROM rows")
    return Attach(
        connection, ads=ADS, users=USERS, history=history or HistorySpec(max_clicks=3, max_skipped=2), counters=specs,
        state=folder, earlier=earlier, batch_rows=batch_rows, partition_rows=partition_rows,
    )  # fmt: skip


def attach(table, *, save_to=None, **settings):
    """Run the as-of pass over a table; returns the rows with their columns and the pass."""
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect(config={"threads": 1}) as connection:
        past = open_attach(table, connection, save_to or Path(scratch), **settings)
        batches = list(past.run())
        return pa.Table.from_batches(batches).drop_columns(["request"]).combine_chunks() if batches else None, past


def assert_same(one, other):
    """Two tables agree bit for bit; NaN equals NaN."""
    assert one.schema == other.schema
    for name in one.column_names:
        left, right = one[name].combine_chunks(), other[name].combine_chunks()
        if pa.types.is_floating(left.type):
            assert left.to_numpy().tobytes() == right.to_numpy().tobytes(), name
        else:
            assert left.equals(right), name


def code_of(row, name):
    table = {"advertiser": "advertiser_id"}.get(name, name)
    if name in {"user", "ad", "position"}:
        return row[name]
    if name == "region":
        return USERS["region"][row["user"]].as_py()
    return ADS[table][row["ad"]].as_py()


def moment_of(row, kind):
    """When an event counts; None where it did not happen."""
    if kind == "clicked" and row["click"] != 1:
        return None
    if kind == "converted" and row["conversion"] != 1:
        return None
    if kind == "labelled" and row["click"] is None:
        return None
    late = {"clicked": row["clicked_at"], "converted": row["converted_at"]}.get(kind)
    return row["at"] if late is None else max(late, row["at"])


def reference_history(rows, limit, skipped_limit):
    """Per row: clicked ads, their ages in hours, the uncut count, skipped ads."""
    results = []
    for row in rows:
        others = [other for other in rows if other["user"] == row["user"] and other["request"] != row["request"]]
        clicked = [
            (moment_of(other, "clicked"), other["at"], n, other["ad"]) for n, other in enumerate(others) if other["click"] == 1
        ]
        clicked = [item for item in clicked if item[0] < row["begin"]]
        clicked.sort(key=lambda item: (item[0], item[1]))
        skipped = [
            (other["at"], n, other["ad"])
            for n, other in enumerate(others)
            if other["click"] == 0 and other["at"] < row["begin"]
        ]
        skipped.sort(key=lambda item: item[0])
        kept = clicked[-limit:]
        results.append(
            (
                [item[3] for item in kept],
                [(row["begin"] - item[0]) / HOUR for item in kept],
                len(clicked),
                [item[2] for item in skipped[-skipped_limit:]],
            )
        )
    return results


def reference_counters(rows, specs, histories):
    """Every counter of every row by the definition, float64."""
    needs = {"impressions": "shown", "clicks": "clicked", "conversions": "converted"}
    ratios = {"rate": ("labelled", "clicked"), "conversion_rate": ("clicked", "converted")}

    def total(row, by, kind, half_life):
        keys = [code_of(row, name) for name in by]
        if None in keys:
            return 0.0
        found = 0.0
        for other in rows:
            at = moment_of(other, kind)
            if other["request"] == row["request"] or at is None or at >= row["begin"]:
                continue
            if [code_of(other, name) for name in by] == keys:
                found += 1.0 if half_life is None else 2.0 ** (-(row["begin"] - at) / HOUR / half_life)
        return found

    table = {}
    for spec in specs:
        for measure in spec.measures:
            for half_life in spec.half_lives_hours if measure in needs or measure in ratios else [None]:
                values = []
                for row, history in zip(rows, histories, strict=True):
                    if measure in needs:
                        value = total(row, spec.by, needs[measure], half_life)
                    elif measure in ratios:
                        tried, done = ratios[measure]
                        overall = (total(row, [], done, None) + 1.0) / (total(row, [], tried, None) + 20.0)
                        value = (total(row, spec.by, done, half_life) + spec.prior_strength * overall) / (
                            total(row, spec.by, tried, half_life) + spec.prior_strength
                        )
                    elif measure == "hours_since_first":
                        keys = [code_of(row, name) for name in spec.by]
                        earlier = [
                            other["at"]
                            for other in rows
                            if other["request"] != row["request"] and other["at"] < row["begin"] and None not in keys
                            and [code_of(other, name) for name in spec.by] == keys
                        ]  # fmt: skip
                        value = (row["begin"] - min(earlier)) / HOUR if earlier else 0.0
                    else:
                        own = code_of(row, spec.by[0])
                        count = sum(1 for ad in history[0] if own is not None and code_of({"ad": ad}, spec.by[0]) == own)
                        value = count if measure == "history_count" else count / max(len(history[0]), 1)
                    values.append(math.log1p(value) if spec.log1p and not measure.endswith(("rate", "share")) else value)
                table[counter_name(spec, measure, half_life)] = np.array(values, dtype=np.float64)
    return table
