"""Counters: by the definition on random worlds, for any cutting into batches and parts, and carried from day to day."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from point_in_time_reference import (
    ADS,
    HOUR,
    SPECS,
    assert_same,
    attach,
    reference_counters,
    reference_history,
    to_table,
    worlds,
)  # fmt: skip
from pydantic import ValidationError

from adrec.asof.spec import counter_names
from adrec.asof.sums import NO_KEY, KeyedSums
from adrec.config.base import Config
from adrec.config.training.features import Counters, CounterSettings, resolve_counters
from adrec.errors import DataError
from adrec.specs import CounterSpec, HistorySpec, usual_counters


class CountersOnly(Config):
    """The counters section of a config."""

    counters: Counters


def assert_counters(out, rows, specs):
    expected = reference_counters(rows, specs, reference_history(rows, 3, 2))
    assert list(expected) == [name for name in out.column_names if name.startswith("counter_")] == counter_names(specs)
    for name, values in expected.items():
        np.testing.assert_allclose(out[name].to_numpy(), values.astype(np.float32), rtol=1e-6, atol=1e-12, err_msg=name)


@settings(max_examples=30, deadline=None)
@given(worlds(), st.integers(1, 9), st.sampled_from([1, 3, 50]))
def test_counters_are_the_definition(rows, batch_rows, partition_rows):
    out, _ = attach(to_table(rows), batch_rows=batch_rows, partition_rows=partition_rows)
    assert_counters(out, rows, SPECS)


@settings(max_examples=25, deadline=None)
@given(worlds(late=True), st.integers(1, 9))
def test_late_clicks_and_conversions_count_when_they_happen(rows, batch_rows):
    history = HistorySpec(max_clicks=3, max_skipped=2, clicked_at="clicked_at", converted_at="converted_at")
    out, _ = attach(to_table(rows, late=True), history=history, batch_rows=batch_rows)
    assert_counters(out, rows, SPECS)


@settings(max_examples=20, deadline=None)
@given(worlds(late=True, spread=False), st.integers(1, 5), st.data())
def test_days_carried_on_equal_one_pass_byte_for_byte(rows, batch_rows, data):
    history = HistorySpec(max_clicks=3, max_skipped=2, clicked_at="clicked_at", converted_at="converted_at")
    table = to_table(rows, late=True)
    whole, _ = attach(table, history=history, batch_rows=50)
    ends = [n for n in range(1, len(rows)) if rows[n]["request"] != rows[n - 1]["request"]]
    cuts = sorted(set(data.draw(st.lists(st.sampled_from(ends), max_size=3)))) if ends else []
    with tempfile.TemporaryDirectory() as folder:
        days, earlier = [], None
        for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
            state = Path(folder) / str(number)
            day, _ = attach(
                table.slice(start, stop - start), history=history, batch_rows=batch_rows, earlier=earlier, save_to=state
            )
            days.append(day)
            earlier = state
    assert_same(pa.concat_tables(days), whole)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40), st.data())
def test_sums_do_not_depend_on_the_steps(rows, data):
    rows = sorted(rows, key=lambda row: row[1])
    key = np.array([row[0] for row in rows])
    time = np.array([row[1] for row in rows]) * HOUR // 3
    weight = np.array([[row[2], 1] for row in rows])
    whole = KeyedSums(2, (0.7, 24.0)).step(key, time, weight)
    pieces = KeyedSums(2, (0.7, 24.0))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=6)))
    parts = [pieces.step(key[a:b], time[a:b], weight[a:b]) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    assert np.concatenate([part[0] for part in parts]).tobytes() == whole[0].tobytes()
    assert np.concatenate([part[1] for part in parts]).tobytes() == whole[1].tobytes()
    assert not whole[0][key == NO_KEY].any()


def test_fading_sums_stay_exact_over_a_thousand_half_lives():
    time = np.arange(1000) * HOUR
    ones = np.ones((1000, 1), dtype=np.int64)
    sums = KeyedSums(1, (1.0,)).step(np.zeros(1000, dtype=np.int64), time, ones)
    assert sums.faded[-1, 0, 0] == pytest.approx(sum(2.0**-n for n in range(1, 1000)), rel=1e-12)


def test_another_configuration_is_refused(tmp_path):
    table = to_table([{"request": 0, "user": 0, "at": HOUR, "ad": 1, "click": 1, "position": 1, "conversion": 0}])
    attach(table, save_to=tmp_path / "state")
    with pytest.raises(DataError, match="other counters or history settings"):
        attach(table, earlier=tmp_path / "state", specs=SPECS[:2])
    with pytest.raises(DataError, match="no usable state"):
        attach(table, earlier=tmp_path / "nothing")


def test_rows_before_the_carried_ones_are_refused(tmp_path):
    rows = [{"request": 0, "user": 0, "at": HOUR, "ad": 1, "click": 1, "position": 1, "conversion": 0}]
    attach(to_table(rows), save_to=tmp_path / "state")
    with pytest.raises(DataError, match="Append newer files only"):
        attach(to_table([{**rows[0], "at": 0}]), earlier=tmp_path / "state")


def test_a_column_that_no_table_has_is_named():
    table = to_table([{"request": 0, "user": 0, "at": HOUR, "ad": 1, "click": 1, "position": 1, "conversion": 0}])
    with pytest.raises(DataError, match="'weather' is a column of neither"):
        attach(table, specs=[CounterSpec(by=("weather",))])
    with pytest.raises(DataError, match="no column of the ads"):
        attach(table, specs=[CounterSpec(by=("position",), measures=("history_share",))])


def test_usual_counters_take_what_is_there():
    assert all(set(spec.by) <= {"user", "ad", "category"} for spec in usual_counters(["category", "title"]))
    names = counter_names(usual_counters([*ADS.column_names, "position", "scenario"]))
    assert {"counter_ad_rate_24h", "counter_user_x_ad_impressions", "counter_advertiser_rate"} <= set(names)
    assert not any("position" in name for name in names), "what slots do is learned apart"
    assert len(names) == len(set(names))


def test_own_counters_stand_beside_the_usual_ones():
    own = CounterSettings(by=["age_band", "category"], measures=["rate"])
    assert resolve_counters([own, "usual"], {"category"}) == [own.spec, *usual_counters({"category"})]
    assert CountersOnly.model_validate({"counters": "usual"}).counters == ["usual"]
    with pytest.raises(ValidationError, match="Input should be 'usual'"):
        CountersOnly.model_validate({"counters": "usaul"})


def test_unknown_clicks_count_as_shown_but_not_in_rates():
    base = {"request": 0, "user": 0, "at": 0, "ad": 1, "click": None, "position": 1, "conversion": 0}
    rows = [{**base, "request": n, "at": n * HOUR, "user": n % 2} for n in range(3)]
    out, _ = attach(to_table(rows), specs=[CounterSpec(by=("ad",))])
    assert out["counter_ad_impressions"].to_pylist() == [0.0, 1.0, 2.0]
    assert out["counter_ad_rate"].to_pylist() == pytest.approx([0.05] * 3)
