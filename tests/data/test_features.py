"""Fitted features: against scikit-learn and the definition, for any batch sizes, through JSON."""

import json
import subprocess
import sys
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from adrec.config.base import load_config
from adrec.config.training.features import TableFeatures
from adrec.data.features import FeatureSet
from adrec.data.hashing import hash_strings
from adrec.errors import ConfigError, DataError


def fit(table, batch_rows=7, **spec):
    return FeatureSet.fit(TableFeatures.model_validate(spec).spec, table.to_batches(max_chunksize=batch_rows))


@settings(max_examples=100, deadline=None)
@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6)), st.integers(1, 60))
def test_standard_scaling_is_scikit_learns(values, batch_rows):
    table = pa.table({"x": values})
    features = fit(table, batch_rows, numeric=["x"])
    scaler = StandardScaler().fit(values[:, None])
    assert features.numerics[0].mean == pytest.approx(scaler.mean_[0], rel=1e-9, abs=1e-9)
    if values.std() > 1e-6 * max(1.0, abs(values.mean())):
        assert features.numerics[0].scale == pytest.approx(scaler.scale_[0], rel=1e-9)
        exact = features.numerics[0].apply(values)
        np.testing.assert_allclose(exact, scaler.transform(values[:, None])[:, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_streamed_variance_survives_a_large_mean(offset):
    values = np.random.default_rng(0).normal(offset, 1.0, 100_000)
    features = fit(pa.table({"x": values}), 977, numeric=["x"])
    assert features.numerics[0].scale == pytest.approx(values.std(), rel=1e-9)


def test_constant_columns_are_only_shifted():
    features = fit(pa.table({"x": [0.1] * 11}), 3, numeric=["x"])
    assert features.numerics[0].scale == StandardScaler().fit(np.full((11, 1), 0.1)).scale_[0] == 1.0


def test_log1p_is_signed_and_then_standardised():
    values = np.array([0.0, 1.0, -3.0, 100.0])
    found = fit(pa.table({"x": values}), 2, numeric=[{"column": "x", "transform": "log1p"}]).transform(pa.table({"x": values}))
    logged = np.sign(values) * np.log1p(np.abs(values))
    np.testing.assert_allclose(found.numeric[:, 0], StandardScaler().fit_transform(logged[:, None])[:, 0], rtol=1e-6)


@pytest.mark.parametrize(("transform", "distribution"), [("quantile", "uniform"), ("normal", "normal")])
def test_quantiles_are_scikit_learns(transform, distribution, monkeypatch):
    monkeypatch.setattr("adrec.data.features.numeric.LANDMARKS", 100)
    values = np.random.default_rng(1).lognormal(size=2000).round(2)
    features = fit(pa.table({"x": values}), 300, numeric=[{"column": "x", "transform": transform}])
    oracle = QuantileTransformer(n_quantiles=100, output_distribution=distribution, subsample=None).fit(values[:, None])
    inside = np.sort(values)[20:-20]
    found = features.transform(pa.table({"x": inside})).numeric[:, 0]
    np.testing.assert_allclose(found, oracle.transform(inside[:, None])[:, 0], rtol=1e-5, atol=1e-6)


def test_quantile_sample_is_bounded_uniform_and_blind_to_batch_sizes(monkeypatch):
    monkeypatch.setattr("adrec.data.features.numeric.SAMPLE_ROWS", 2000)
    monkeypatch.setattr("adrec.data.features.numeric.LANDMARKS", 11)
    values = np.arange(50_000) / 50_000
    spec = {"numeric": [{"column": "x", "transform": "quantile"}]}
    one, other = (fit(pa.table({"x": values}), rows, **spec).numerics[0].landmarks for rows in (333, 50_000))
    assert one == other
    np.testing.assert_allclose(one, np.linspace(0, 1, 11), atol=4 * 0.5 / np.sqrt(2000))


def test_missing_numbers_become_the_mean_and_are_told():
    table = pa.table({"x": pa.array([1.0, None, float("nan"), 3.0, float("inf")])})
    found = fit(table, 2, numeric=[{"column": "x", "missing_indicator": True}]).transform(table)
    assert found.numeric.tolist() == [[-1, 0], [0, 1], [0, 1], [1, 0], [0, 1]]
    rank = fit(table, 2, numeric=[{"column": "x", "transform": "quantile"}]).transform(table)
    assert rank.numeric[:, 0].tolist() == [0.0, 0.5, 0.5, 1.0, 0.5]


VALUES = st.lists(st.sampled_from(["a", "b", "c", "é", "", None]), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.integers(1, 40), st.integers(1, 4))
def test_vocabulary_keeps_common_values_and_sends_the_rest_to_zero(values, batch_rows, min_count):
    table = pa.table({"c": pa.array(values, pa.string())})
    features = fit(table, batch_rows, categorical=[{"column": "c", "min_count": min_count}])
    kept = {value for value in values if value is not None and values.count(value) >= min_count}
    ranked = sorted(kept, key=lambda value: (-values.count(value), value.encode()))
    code = {value: at + 1 for at, value in enumerate(ranked)}
    assert features.cardinalities == [len(kept) + 1]
    new = pa.table({"c": pa.array([*values, "never seen"], pa.string())})
    assert features.transform(new).categorical[:, 0].tolist() == [code.get(value, 0) for value in new["c"].to_pylist()]


def test_vocabulary_takes_integers_booleans_and_dictionaries():
    table = pa.table({"n": [5, 5, 5, 7, 7, 9], "b": [True, True, True, True, False, False], "d": pa.array(list("xxyyyz"))})
    table = table.set_column(2, "d", table["d"].combine_chunks().dictionary_encode())
    features = fit(table, 4, categorical=[{"column": "n", "min_count": 3}, "b", "d"])
    assert features.cardinalities == [2, 3, 3]
    assert features.transform(table).categorical.tolist() == [[1, 1, 2], [1, 1, 2], [1, 1, 1], [0, 1, 1], [0, 2, 1], [0, 2, 0]]


def test_hash_is_the_same_in_another_process_and_has_no_order():
    values = ["", "a", "foobar", "广告", "x" * 300]
    program = (
        f"import pyarrow as pa; from adrec.data.hashing import hash_strings; print(hash_strings(pa.array({values!r})).tolist())"
    )
    there = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout)
    assert hash_strings(pa.array(values)).tolist() == there
    assert hash_strings(pa.array(["skip", *values]).slice(1)).tolist() == there
    assert hash_strings(pa.array([*values[::-1], None])).tolist() == [*there[::-1], there[0]]


def test_hashed_buckets_are_even():
    table = pa.table({"c": [f"value {i}" for i in range(64_000)]})
    codes = fit(table, 9999, hashed=[{"column": "c", "buckets": 64}]).transform(table).categorical[:, 0]
    counts = np.bincount(codes, minlength=65)
    assert counts[0] == 0 and abs(counts[1:] - 1000).max() < 6 * np.sqrt(1000)


def test_lists_are_cut_coded_and_may_be_null():
    table = pa.table({"tags": pa.array([["a", "b", "a"], None, [], ["zz", "a", None], ["b"]])})
    features = fit(table, 2, lists=[{"column": "tags", "max_items": 2}])
    offsets, codes = features.transform(table).lists["tags"]
    assert offsets.tolist() == [0, 2, 2, 2, 4, 5]
    assert codes.tolist() == [1, 2, 0, 1, 2]
    assert features.list_cardinalities == {"tags": 3}
    hashed = fit(table, 2, lists=[{"column": "tags", "buckets": 8, "max_items": 3}]).transform(table).lists["tags"]
    assert hashed[1][0] == hashed[1][2] > 0 and hashed[1][5] == 0


def test_strings_may_be_split_into_lists_and_words_are():
    table = pa.table({"tags": ["a| b|a", None, "", "|zz|a|"], "segmented": ["fast cars", "cars", "", "新款 cars"]})
    lists = [{"column": "tags", "separator": "|"}, {"column": "segmented", "min_count": 1}]
    features = fit(table, 2, lists=lists)
    found = features.transform(table).lists
    assert found["tags"][0].tolist() == [0, 3, 3, 3, 5]
    assert found["tags"][1].tolist() == [1, 0, 1, 0, 1], "only 'a' occurs twice"
    assert found["segmented"][0].tolist() == [0, 2, 3, 3, 5]
    assert found["segmented"][1].tolist() == [2, 1, 1, 3, 1]
    again = FeatureSet.from_json(json.loads(json.dumps(features.to_json())))
    assert again.transform(table).lists["tags"][1].tolist() == [1, 0, 1, 0, 1]


def test_a_title_is_cut_into_phrases_at_any_of_several_marks():
    table = pa.table({"title": ["Mugs, half price", "杯子，半价", "Tea, half price", None, "碗，半价 , half price"]})
    features = fit(table, 2, lists=[{"column": "title", "separator": [",", "，"]}])
    coder = features.lists[0]
    assert [coder.value(code) for code in (1, 2)] == ["half price", "半价"]
    found = FeatureSet.from_json(json.loads(json.dumps(features.to_json()))).transform(table).lists["title"]
    assert found[0].tolist() == [0, 2, 4, 6, 6, 9]
    assert found[1].tolist() == [0, 1, 0, 2, 0, 1, 0, 2, 1]


@pytest.mark.parametrize("separator", ["", [], ["|", ""]])
def test_a_separator_that_separates_nothing_is_refused(separator):
    with pytest.raises(ValueError, match="is empty; name what stands between"):
        TableFeatures.model_validate({"lists": [{"column": "tags", "separator": separator}]})


@settings(max_examples=60, deadline=None)
@given(st.datetimes(datetime(1990, 1, 1), datetime(2037, 1, 1)), st.sampled_from(["UTC", "Asia/Shanghai", "America/New_York"]))
def test_calendar_follows_the_zone(moment, zone):
    moment = moment.replace(tzinfo=ZoneInfo("UTC"))
    table = pa.table({"shown_at": pa.array([moment, None], pa.timestamp("us", tz="UTC"))})
    found = fit(table, calendar={"time_zone": zone}).transform(table)
    local = moment.astimezone(ZoneInfo(zone))
    weekend = int(local.weekday() >= 5)
    assert found.categorical.tolist() == [[local.hour + 1, local.weekday() + 1, weekend + 1], [0, 0, 0]]
    angle = 2 * np.pi * (local.hour + local.minute / 60) / 24
    np.testing.assert_allclose(found.numeric[0, :2], [np.sin(angle), np.cos(angle)], atol=1e-6)
    assert not found.numeric[1].any()


def test_names_patterns_and_json():
    table = pa.table(
        {"counter_b": [1.0, 2.0], "counter_a": [3.0, 5.0], "price": [1, 2], "true_probability": [0.1, 0.2], "c": ["x", "x"]}
    )
    spec = {"numeric": [{"column": "counter_*", "transform": "log1p"}, "price", {"column": "counter_a", "transform": "none"}]}
    features = fit(table, categorical=["c"], calendar=None, **spec)
    assert features.numeric_names == ["counter_b", "price", "counter_a"]
    assert features.columns == ["counter_b", "price", "counter_a", "c"]
    again = FeatureSet.from_json(json.loads(json.dumps(features.to_json())))
    assert again.to_json() == features.to_json()
    for one, other in zip(features.transform(table)[:2], again.transform(table)[:2], strict=True):
        assert one.tobytes() == other.tobytes()
    assert "true_probability" not in fit(table, numeric=["*_*"]).numeric_names
    with pytest.raises(DataError, match=r"features\.json: not written by this version"):
        FeatureSet.from_json({"spec": {}})


def test_a_column_missing_later_counts_as_missing_in_every_row():
    table = pa.table({"x": [1.0, 3.0], "c": ["a", "a"], "t": [["a"], ["a"]]})
    features = fit(table, numeric=["x"], categorical=["c"], lists=["t"])
    found = features.transform(pa.table({"other": [1, 2, 3]}))
    assert not found.numeric.any() and not found.categorical.any()
    assert found.lists["t"][0].tolist() == [0, 0, 0, 0]


def test_faults_name_the_column():
    table = pa.table({"x": ["a"], "n": [1.5]})
    with pytest.raises(DataError, match="column 'x' is string, expected numbers"):
        fit(table, numeric=["x"])
    table = table.append_column("when", pa.array([0], pa.timestamp("us")))
    with pytest.raises(DataError, match="column 'when' is timestamp.us., expected strings"):
        fit(table, categorical=["when"])
    with pytest.raises(DataError, match="column 'y' is declared but not in the table"):
        fit(table, numeric=["y"])
    with pytest.raises(DataError, match="expected a list"):
        fit(table, lists=[{"column": "x", "min_count": 1}])
    with pytest.raises(DataError, match="expected a timestamp"):
        fit(table, calendar={"column": "n"}).transform(table)


def test_the_oracle_and_unknown_zones_are_refused_by_the_config(tmp_path):
    path = tmp_path / "features.yaml"
    path.write_text("numeric: [true_probability]\n")
    with pytest.raises(ConfigError, match="oracle"):
        load_config(path, TableFeatures)
    path.write_text("calendar: {time_zone: Mars/Base}\n")
    with pytest.raises(ConfigError, match="IANA"):
        load_config(path, TableFeatures)


def test_nothing_to_fit_is_an_empty_set():
    features = FeatureSet.fit(TableFeatures().spec, [])
    assert features.transform(pa.table({"x": [1, 2]})).numeric.shape == (2, 0)


def test_a_number_that_is_a_category_too_goes_by_its_plain_text():
    table = pa.table({"n": [17.0, 17.0, 0.5, 0.5, 1e15, 1e15, None, float("nan")]})
    features = fit(table, numeric=["n"], categorical=["n"])
    assert sorted(features.categories[0].values.tolist()) == ["0.5", "1000000000000000", "17"]
    as_whole = features.transform(pa.table({"n": pa.array([17], pa.int64())})).categorical[0, 0]
    assert as_whole == features.transform(table).categorical[0, 0] != 0


def test_features_of_an_older_folder_are_read_or_refused():
    """Keys that are gone since are passed over where they no longer matter."""
    table = pa.table({"n": [1.0, 2.0, 5.0], "when": pa.array([0, 10, 20], pa.timestamp("us"))})
    fitted = fit(table, numeric=[{"column": "n", "transform": "quantile"}], calendar={"column": "when"})
    stored = json.loads(json.dumps(fitted.to_json()))
    stored["spec"]["numeric"][0]["quantiles"] = 1000
    stored["spec"]["calendar"]["parts"] = ["hour", "weekday", "weekend", "cycle"]
    again = FeatureSet.from_json(stored)
    assert again == fitted
    np.testing.assert_array_equal(again.transform(table).numeric, fitted.transform(table).numeric)
    stored["spec"]["calendar"]["parts"] = ["hour"]
    with pytest.raises(DataError, match=r"calendar.parts is \['hour'\].*Run 'adrec preprocess' again"):
        FeatureSet.from_json(stored)


def test_reading_as_an_earlier_set_keeps_its_scales_and_codes_and_puts_new_values_behind():
    before = pa.table({"x": [0.0, 10.0], "kind": ["b", "a"], "only": ["q", "q"], "tags": [["s"], ["s"]]})
    now = pa.table({"x": [100.0, 300.0], "kind": ["c", "a"], "tags": [["t"], ["s"]], "y": [1.0, 3.0]})
    vocabularies = [{"column": name, "min_count": 1} for name in ("kind", "only")]
    tags = [{"column": "tags", "min_count": 1}]
    earlier = fit(before, numeric=["x"], categorical=vocabularies, lists=tags)
    own = fit(now, numeric=["x", "y"], categorical=vocabularies[:1], lists=tags)
    read = own.read_as(earlier)
    made, alone, theirs = (one.transform(now) for one in (read, own, earlier))
    assert read.columns == own.columns
    assert made.numeric[:, 0].tolist() == theirs.numeric[:, 0].tolist()
    assert made.numeric[:, 1].tolist() == alone.numeric[:, 1].tolist()  # of which the earlier one knows nothing
    known = earlier.cardinalities[0]
    assert made.categorical[:, 0].tolist() == [known, theirs.categorical[1, 0]] and read.cardinalities == [known + 1]
    assert made.lists["tags"][1].tolist() == [earlier.list_cardinalities["tags"], theirs.lists["tags"][1][1]]
    assert fit(now, numeric=[{"column": "x", "transform": "log1p"}]).read_as(earlier).numerics[0].mean > 4  # another scale
