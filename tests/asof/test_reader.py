"""Counters of new rows from a saved state: as if each request were the next one that preprocess saw."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from point_in_time_reference import ADS, HOUR, SPECS, USERS, attach, to_table, worlds

from adrec.asof.reader import PastReader
from adrec.asof.spec import counter_names
from adrec.config.features import HistoryConfig

HISTORY = HistoryConfig(max_clicks=3, max_skipped=2)


def open_reader(folder, ads=ADS, users=USERS, known_ads=None, known_users=None):
    return PastReader(
        folder, counters=SPECS, history=HISTORY, ads=ads, users=users,
        known_ads=np.arange(len(ads)) if known_ads is None else known_ads,
        known_users=np.arange(len(users)) if known_users is None else known_users,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(worlds(spread=False), st.data())
def test_each_new_request_reads_what_preprocess_would_count(rows, data):
    cut = data.draw(st.sampled_from(sorted({row["request"] for row in rows})))
    first = next(n for n, row in enumerate(rows) if row["request"] == cut)
    table, names = to_table(rows), counter_names(SPECS)
    with TemporaryDirectory() as folder:
        state = Path(folder) / "past"
        attach(table.slice(0, first), save_to=state)
        alone = []
        for request in dict.fromkeys(row["request"] for row in rows[first:]):
            mask = pa.array([row["request"] == request and n >= first for n, row in enumerate(rows)])
            alone.append(attach(table.filter(mask), carried=state, step_rows=50)[0])
        expected = pa.concat_tables(alone)
        found = open_reader(state).attach(expected.drop_columns(names))
    for name in names:
        np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=1e-6, err_msg=name)


@pytest.fixture
def state(tmp_path):
    rows = [
        {"request": n, "user": n % 2, "at": n * HOUR, "ad": n % 3, "click": 1 - n % 2, "position": 1, "conversion": 0}
        for n in range(6)
    ]
    attach(to_table(rows), save_to=tmp_path / "past")
    return tmp_path / "past"


def new_rows(hour=9, **columns):
    table = {"user_index": [0, 1], "ad_index": [0, 1], "history_index": [[0, 0, 2], []], **columns}
    stamp = pa.array([int(hour * HOUR)] * 2, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return pa.table({**table, "shown_at": stamp})


def test_rows_do_not_see_each_other(state):
    reader = open_reader(state)
    both = reader.attach(new_rows())
    alone = reader.attach(new_rows().slice(1, 1))
    for name in counter_names(SPECS):
        assert both[name][1].as_py() == pytest.approx(alone[name][0].as_py(), nan_ok=True), name
    assert both["counter_ad_impressions"].to_pylist() == [2, 2]
    assert both["counter_category_history_count"].to_pylist() == [3, 0]


def test_tables_in_another_order_with_new_ads_and_users(state):
    ads = pa.table({"ad_id": ["new", "a1", "a0"], "category": ["x", "y", "x"], "advertiser_id": [None, "p", "p"]})
    users = pa.table({"user_id": ["u1", "new"], "region": ["s", None]})
    reader = open_reader(state, ads, users, known_ads=np.array([-1, 1, 0]), known_users=np.array([1, -1]))
    found = reader.attach(new_rows(ad_index=[0, 1], user_index=[0, 1], history_index=[[2, 2], [1]]))
    assert found["counter_ad_impressions"].to_pylist() == [0, 2]
    assert found["counter_user_impressions"].to_pylist() == [3, 0]
    assert np.isnan(found["counter_ad_hours_since_first"].to_numpy()).tolist() == [True, False]
    assert found["counter_category_history_share"].to_pylist() == [1.0, 1.0]
    same = open_reader(state).attach(new_rows())["counter_category_rate"].to_pylist()
    assert found["counter_category_rate"].to_pylist() == same


def test_rows_before_the_end_of_the_log_have_no_counters(state):
    found = open_reader(state).attach(new_rows(hour=4.5))
    assert all(np.isnan(found[name].to_numpy()).all() for name in counter_names(SPECS))


def test_counters_that_are_there_stay(state):
    found = open_reader(state).attach(new_rows(counter_ad_clicks=[7.0, 7.0]))
    assert found["counter_ad_clicks"].to_pylist() == [7.0, 7.0]
