"""Rows of a user's own frame get the values that preprocess gives the same cells, or are refused by column and row."""

import datetime

import pyarrow as pa
import pytest

from adrec.errors import DataError
from adrec.prepare.staging.canonical import canonical_rows
from adrec.schema import ADS, IMPRESSIONS, TableSpec

NAMES = ("user_id", "ad_id", "shown_at", "request_id", "position", "history")
SPEC = TableSpec("impressions", tuple(IMPRESSIONS[name] for name in NAMES))
MOMENT = datetime.datetime(2026, 3, 1, 10, tzinfo=datetime.UTC)
AWARE = pa.timestamp("us", tz="UTC")


def frame(**columns):
    rows = {"user_id": ["u1", "u2", "u3"], "ad_id": ["a", "b", "c"], "shown_at": pa.array([MOMENT] * 3, AWARE)}
    return pa.table(rows | columns)


def canonical(table, **settings):
    return canonical_rows(table, SPEC, where="rows.parquet", **settings)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("user_id", pa.array([7, 17, 1234567890123456789]), ["7", "17", "1234567890123456789"]),
        ("user_id", pa.array([7.0, 17.0, 3.0]), ["7", "17", "3"]),
        ("user_id", pa.array(["007", "17.0", " x "]), ["007", "17", "x"]),
        ("user_id", pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        ("user_id", pa.array(["a", "b", "a"], pa.large_string()), ["a", "b", "a"]),
        ("user_id", pa.array([b"a", b"b", "红".encode()], pa.binary()), ["a", "b", "红"]),
        ("user_id", pa.array(["2024-01-02T10:00:00", "320_50", "1e5"]), ["2024-01-02T10:00:00", "320_50", "1e5"]),
        ("request_id", pa.array([None, "r", "NULL"]), [None, "r", None]),
        ("request_id", pa.nulls(3), [None, None, None]),
        ("user_id", pa.array(["u", "nan", None]), ["u", None, None]),
        ("request_id", pa.array([1.0, float("nan"), None]), ["1", None, None]),
        ("position", pa.array(["1", "2", None]), [1, 2, None]),
        ("position", pa.array([1.0, 2.0, None]), [1, 2, None]),
        ("position", pa.array([1, 2, 3], pa.int8()), [1, 2, 3]),
        ("history", pa.array([["a"], [], None]), [["a"], [], None]),
        ("history", pa.array([[1.0, 2.0], None, []]), [["1", "2"], None, []]),
    ],
)
def test_cells_of_frames(column, values, expected):
    found = canonical(frame(**{column: values}))
    assert found[column].to_pylist() == expected
    assert found[column].type == SPEC[column].type
    assert found.num_rows == 3


@pytest.mark.parametrize(
    "values",
    [
        pa.array([MOMENT] * 3, pa.timestamp("ns", tz="UTC")),
        pa.array([MOMENT] * 3, pa.timestamp("s", tz="Asia/Shanghai")),
        pa.array([MOMENT.replace(tzinfo=None)] * 3, pa.timestamp("ms")),
        pa.array([int(MOMENT.timestamp())] * 3),
        pa.array(["2026-03-01 18:00:00 Asia/Shanghai"] * 3),
        pa.array(["2026-03-01T10:00:00Z"] * 3),
    ],
)
def test_moments_of_frames(values):
    assert canonical(frame(shown_at=values))["shown_at"].to_pylist() == [MOMENT] * 3


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"ad_id": pa.array(["u", None, "v"])}, "column 'ad_id', row 102: is missing"),
        ({"ad_id": pa.array(["u", "nan", "v"])}, "column 'ad_id', row 102: 'nan' is missing"),
        ({"user_id": pa.array([1.0, 2.0**60, 3.0])}, "column 'user_id', row 102: .* is a float too large to tell ids apart"),
        ({"user_id": pa.array([1.0, 2.0**25, 3.0], pa.float32())}, "row 102: .* is a float too large to tell ids apart"),
        ({"ad_id": pa.array([b"a", b"\xff", b"c"], pa.binary())}, "column 'ad_id', row 102: .* is not UTF-8 text"),
        ({"shown_at": pa.array(["2026-03-01", "soon", "2026-03-01"])}, "column 'shown_at', row 102: 'soon' is not a timestamp"),
        ({"position": pa.array(["1", "two", "0"])}, "column 'position', row 102: 'two' is not a number of its range"),
        ({"position": pa.array([1.0, 1.5, 2.0])}, "column 'position', row 102: '1.5' is not a number of its range"),
        ({"price": pa.array(["1", "1,000", "2"])}, "column 'price', row 102: '1,000' is not a number"),
    ],
)
def test_cells_that_cannot_be_read_are_told_by_column_and_row(columns, words):
    with pytest.raises(DataError, match=f"^rows.parquet: {words}" if words.startswith("column") else words):
        canonical(frame(**columns), first_row=100, numeric=["price"])


def test_features_are_read_by_their_role_and_the_rest_is_left_alone():
    table = frame(price=["1.5", None, "NULL"], device=[17.0, 3.0, None], note=["NULL", " x ", ""], odd=pa.array([b"\xff"] * 3))
    found = canonical(table, numeric=["price"], categories=["device"])
    assert found.column_names == table.column_names
    assert found["price"].to_pylist() == [1.5, None, None] and found["price"].type == pa.float64()
    assert found["device"].to_pylist() == ["17", "3", None]
    assert found["note"].equals(table["note"]) and found["odd"].equals(table["odd"])


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match="ads.parquet: column 'ad_id' is missing"):
        canonical_rows(pa.table({"title": ["t"]}), ADS, where="ads.parquet")


def test_rows_need_not_name_users_ads_or_moments():
    plain = pa.table({"position": ["1", "2"]})
    assert canonical(plain)["position"].to_pylist() == [1, 2]


def test_no_rows_are_no_rows():
    assert canonical(frame().slice(0, 0)).num_rows == 0
