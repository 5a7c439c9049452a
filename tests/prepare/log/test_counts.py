"""Rows of counts mean what a row an impression means: the same labels, the same counters, the same sums."""

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_worlds import prepare, rows, tables, write

from adrec.data.counts import counts_among, outcome_rows
from adrec.errors import AdrecError


def counted(seed=0, ads=12, days=5):
    """An ad × day a row: impressions, clicks, conversions, spend; each row stands alone."""
    rng = np.random.default_rng(seed)
    day, ad = np.divmod(np.arange(ads * days), ads)
    shown = rng.integers(1, 40, len(ad))
    clicks = rng.binomial(shown, 0.3)
    return pa.table(
        {
            "user_id": [f"row{number}" for number in range(len(ad))],
            "ad_id": np.char.add("a", ad.astype(str)),
            "shown_at": pa.array(np.datetime64("2026-03-01", "us") + day * np.timedelta64(1, "D"), pa.timestamp("us", "UTC")),
            "impressions": shown,
            "clicks": clicks,
            "conversions": rng.binomial(clicks, 0.4),
            "spend": rng.random(len(ad)).round(2),
        }
    )


def repeated(table):
    """The same log, one row an impression, the rows of one row of counts in one request."""
    frame = table.to_pandas()
    frame["request_id"] = frame.user_id
    full = frame.loc[np.repeat(frame.index, frame.impressions)]
    place = full.groupby(level=0).cumcount()
    full["click"] = (place < full.clicks).astype("int8")
    full["conversion"] = (place < full.conversions).astype("int8")
    return pa.Table.from_pandas(full.drop(columns=["impressions", "clicks", "conversions", "spend"]), preserve_index=False)


def folder_of(path, impressions):
    made = tables()
    write(made["ads"], path / "ads.parquet")
    write(made["users"], path / "users.parquet")
    write(impressions, path / "impressions.parquet")
    return path


PLAIN = {
    "features": {"impressions": {"numeric": ["counter_*"]}},
    "split": {"method": "time", "valid_from": "2026-03-04", "test_from": "2026-03-05"},
}


def test_counters_and_labels_are_those_of_a_row_an_impression(tmp_path):
    table = counted()
    few, result = prepare(folder_of(tmp_path / "few", table), **PLAIN)
    many, _ = prepare(folder_of(tmp_path / "many", repeated(table)), **PLAIN)
    few, many = rows(few, with_split=False).to_pandas(), rows(many, with_split=False).to_pandas()
    counters = [column for column in many.columns if column.startswith("counter_")]
    keys = ["user_id", "click", "conversion"]
    sizes = many.groupby(keys).size()
    assert few.groupby(keys).weight.sum().equals(sizes.astype(float))
    assert len(few) == len(sizes) <= 3 * len(table)
    first = many.groupby(keys)[counters].first()
    np.testing.assert_allclose(few.set_index(keys).sort_index()[counters], first, rtol=1e-6)
    manifest = result.manifest
    assert manifest["impressions"] == len(many) and manifest["clicks"] == many.click.sum()
    assert few.spend.mul(few.weight).sum() == pytest.approx(table["spend"].to_numpy().sum())


def test_outcomes_of_one_row_stay_together_in_a_random_split(tmp_path):
    prepared, _ = prepare(
        folder_of(tmp_path, counted(ads=15)),
        split={"method": "random", "unit": "row", "valid_fraction": 0.2, "test_fraction": 0.2},
        features={},
        counters=[],
    )
    found = rows(prepared).to_pandas()
    assert found.groupby("user_id").split.nunique().max() == 1 and found.split.nunique() == 3


def test_logs_without_counts_have_no_weight(tmp_path):
    for name, table in tables().items():
        write(table, tmp_path / f"{name}.parquet")
    prepared, result = prepare(tmp_path)
    assert "weight" not in prepared.columns and "impressions" not in result.manifest


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("clicks", "900", "column 'clicks', row 3: '900' is more than the row's impressions"),
        ("clicks", "-1", "column 'clicks', row 3: '-1' is negative"),
        ("impressions", "12.5", "column 'impressions', row 3: '12.5' is not a whole number"),
        ("impressions", "", "column 'impressions', row 3: is missing"),
        ("conversions", "900", "column 'conversions', row 3: '900' is more than the row's impressions"),
    ],
)
def test_counts_that_cannot_be_are_refused_in_a_line(tmp_path, column, value, said):
    table = counted()
    cells = table[column].cast(pa.string()).to_pylist()
    cells[2] = value
    table = table.set_column(table.column_names.index(column), column, pa.array(cells))
    with pytest.raises(AdrecError) as refused:
        prepare(folder_of(tmp_path, table), **PLAIN)
    lines = str(refused.value).splitlines()
    assert said in lines[0] and len(lines) == 2  # the fault, and how many rows it is


def test_a_count_of_clicks_needs_the_impressions(tmp_path):
    with pytest.raises(AdrecError, match="column 'impressions' is missing: `clicks` counts of how many impressions"):
        prepare(folder_of(tmp_path, counted().drop_columns(["impressions"])), **PLAIN)


def test_rows_that_were_never_shown_are_told(tmp_path):
    table = counted()
    for column in ("impressions", "clicks", "conversions"):
        values = table[column].to_numpy().copy()
        values[:4] = 0
        table = table.set_column(table.column_names.index(column), column, pa.array(values))
    _, result = prepare(folder_of(tmp_path, table), **PLAIN)
    assert "impressions: 4 rows of 0 impressions are left out." in result.manifest["notes"]


def test_spend_and_weight_are_no_features(tmp_path):
    for column, said in (("spend", "spend"), ("weight", "weight")):
        with pytest.raises((AdrecError, ValueError), match=said):
            prepare(folder_of(tmp_path, counted()), features={"impressions": {"numeric": [column]}})


counts = st.one_of(st.none(), st.integers(0, 50))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), counts, counts), min_size=1, max_size=20))
def test_every_count_is_kept(drawn):
    """Whatever is counted, the sums of the weights are the counts."""
    cut = [(shown, *(None if part is None else min(part, shown) for part in rest)) for shown, *rest in drawn]
    shown, clicks, conversions = map(list, zip(*cut, strict=True))
    with duckdb.connect() as connection:
        rows = pa.table({"impressions": pa.array(shown, pa.int64()), "clicks": pa.array(clicks, pa.int64()),
                         "conversions": pa.array(conversions, pa.int64()), "row": list(range(len(cut)))})  # fmt: skip
        connection.register("counted", rows)
        found = connection.sql(outcome_rows("counted", rows.column_names)).df()
    assert (found.weight > 0).all() and set(found.columns) == {"row", "click", "conversion", "weight"}
    assert found.groupby("row").size().max() <= 3 if len(found) else sum(shown) == 0
    for row, (total, clicked, converted) in enumerate(cut):
        mine = found[found.row == row]
        assert mine.weight.sum() == total
        for label, count in (("click", clicked), ("conversion", converted)):
            if count is None:
                assert mine[label].isna().all()
            else:
                assert mine.weight[mine[label] == 1].sum() == count and mine[label].notna().all()


def test_a_table_of_single_clicks_is_not_counts():
    assert counts_among(["click", "impressions", "clicks"]) == ()
    assert counts_among(["impressions", "ad_id"]) == ()
    assert counts_among(["impressions", "clicks", "conversions"]) == ("impressions", "clicks", "conversions")
