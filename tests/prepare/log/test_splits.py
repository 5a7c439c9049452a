"""Splits: scikit-learn's draw row for row, time without straddling, hashes that move nobody, leave-last-out."""

import re
from collections import defaultdict

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_worlds import prepare, rows, tables, world, write
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from adrec.errors import ConfigError, DataError
from adrec.prepare.log.splits import random_parts
from adrec.stages.data import preprocess


@given(st.integers(2, 400), st.integers(0, 2**31), st.floats(0.05, 0.9))
def test_the_random_draw_is_that_of_scikit_learn(count, seed, share):
    train, test = (
        train_test_split(np.arange(count), test_size=share, random_state=seed) if np.ceil(share * count) < count else ([], [])
    )
    if len(train):
        parts = random_parts(count, 0.0, share, seed)
        assert sorted(train) == np.flatnonzero(parts == 0).tolist()
        assert sorted(test) == np.flatnonzero(parts == 2).tolist()


def test_the_classic_recipe_row_for_row_and_to_nine_digits(tmp_path):
    rng = np.random.default_rng(3)
    count = 1003
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(0, 200, count),
            "advertisement_id": rng.integers(0, 40, count),
            "label": rng.integers(0, 2, count),
            "feature1": rng.normal(50, 12, count),
            "feature2": rng.lognormal(3, 1, count),
        }
    )
    frame.to_csv(tmp_path / "clicks.csv", index=False)
    source = {
        "format": "tables",
        "impressions": {
            "files": str(tmp_path / "clicks.csv"),
            "columns": {"ad_id": "advertisement_id", "title": "advertisement_id", "click": "label"},
            "defaults": {"shown_at": "2020-01-01 00:00:00"},
        },
    }
    prepared, _ = prepare(
        tmp_path, source=source, counters=[], features={"impressions": {"numeric": ["feature1", "feature2"]}},
        split={"method": "random", "test_fraction": 0.2}, text={"ad_template": "{title}"},
    )  # fmt: skip
    names = ["feature1", "feature2"]
    train, test = train_test_split(frame, test_size=0.2, random_state=42)
    scaler = StandardScaler().fit(train[names])
    key = ["user_id", "advertisement_id", "label", *names]
    for split, expected in (("train", train), ("test", test)):
        found = rows(prepared, with_split=True).to_pandas()
        found = found[found["split"] == split].rename(columns={"ad_id": "advertisement_id", "click": "label"})
        found[["user_id", "advertisement_id"]] = found[["user_id", "advertisement_id"]].astype(int)
        assert sorted(map(tuple, found[key].to_numpy().tolist())) == sorted(map(tuple, expected[key].to_numpy().tolist()))
        batch = pa.concat_tables([pa.Table.from_batches([part]) for part in prepared.iter(split)])
        scaled = prepared.features()["impressions"].transform(batch).numeric
        mine = batch.select(names).to_pandas()
        assert np.abs(scaled - scaler.transform(mine)).max() < 1e-6, "float32 of the scaled values"
    fitted = {one["column"]: one for one in prepared_numeric(prepared)}
    for at, name in enumerate(names):
        assert abs(fitted[name]["mean"] - scaler.mean_[at]) < 1e-9
        assert abs(fitted[name]["scale"] - scaler.scale_[at]) < 1e-9


def prepared_numeric(prepared):
    import json

    stored = json.loads((prepared.path / "features.json").read_text())["impressions"]["numeric"]
    return [{"column": one.get("column", one.get("name")), **one} for one in stored]


def test_time_fractions_never_cut_a_request_or_a_moment(tmp_path):
    world(tmp_path, requests=200)
    prepared, _ = prepare(tmp_path, split={"method": "time", "valid_fraction": 0.2, "test_fraction": 0.3})
    table = rows(prepared)
    last = -1
    part = {"train": 0, "valid": 1, "test": 2}
    by_moment = defaultdict(set)
    for moment, split in zip(table["shown_at"].to_pylist(), table["split"].to_pylist(), strict=True):
        by_moment[moment].add(split)
        assert part[split] >= last
        last = part[split]
    assert all(len(splits) == 1 for splits in by_moment.values())
    assert abs(prepared.rows("test") / table.num_rows - 0.3) < 0.05
    assert abs(prepared.rows("valid") / table.num_rows - 0.2) < 0.05


def test_moments_of_a_time_split_must_be_in_order(tmp_path):
    with pytest.raises((ConfigError, ValueError), match="must lie before"):
        prepare(tmp_path, split={"method": "time", "valid_from": "2026-03-04", "test_from": "2026-03-03"})


def test_by_user_nobody_is_in_two_parts_and_new_rows_move_nobody(tmp_path):
    made = world(tmp_path, users=80, requests=300)
    split = {"method": "user", "test_fraction": 0.3, "valid_fraction": 0.2}
    prepared, _ = prepare(tmp_path, split=split)
    before = dict(zip(rows(prepared)["user_id"].to_pylist(), rows(prepared)["split"].to_pylist(), strict=True))
    parts = defaultdict(set)
    for user, name in zip(rows(prepared)["user_id"].to_pylist(), rows(prepared)["split"].to_pylist(), strict=True):
        parts[user].add(name)
    assert all(len(names) == 1 for names in parts.values())
    assert {"train", "valid", "test"} == set(before.values())
    assert prepared.manifest["splits"]["test"]["shared_users"] == 0
    write(made["impressions"].slice(100), tmp_path / "impressions.parquet")
    fewer, _ = prepare(tmp_path, split=split)
    for user, name in zip(rows(fewer)["user_id"].to_pylist(), rows(fewer)["split"].to_pylist(), strict=True):
        assert before[user] == name


@pytest.mark.parametrize(("method", "key", "kind"), [("cold_ad", "ad_id", "ads"), ("cold_user", "user_id", "users")])
def test_cold_parts_share_nothing_with_training(tmp_path, method, key, kind):
    world(tmp_path, users=60, ads=60, requests=300)
    prepared, _ = prepare(tmp_path, split={"method": method, "test_fraction": 0.3, "valid_fraction": 0.2})
    table = rows(prepared)
    of = {
        name: set(table.filter(pa.array([one == name for one in table["split"].to_pylist()]))[key].to_pylist())
        for name in ("train", "valid", "test")
    }
    assert not of["train"] & of["test"]
    assert not of["train"] & of["valid"]
    assert prepared.manifest["splits"]["test"][f"shared_{kind}"] == 0
    assert prepared.manifest["splits"]["test"][f"cold_{kind}"] == 1


def test_leave_last_out(tmp_path):
    world(tmp_path, users=30, requests=100)
    prepared, _ = prepare(tmp_path, split={"method": "leave_last_out"})
    requests = defaultdict(dict)
    for row in rows(prepared).select(["user_id", "request_id", "split"]).to_pylist():
        requests[row["user_id"]].setdefault(row["request_id"], row["split"])
    for own in requests.values():
        splits = list(own.values())
        if len(splits) < 3:
            assert set(splits) == {"train"}
        else:
            assert splits == ["train"] * (len(splits) - 2) + ["valid", "test"]


def test_shared_and_cold_figures_are_those_of_sets(tmp_path):
    world(tmp_path, users=40, ads=40, requests=80)
    prepared, _ = prepare(tmp_path, split={"method": "random", "test_fraction": 0.3, "valid_fraction": 0.1, "unit": "request"})
    table = rows(prepared).to_pandas()
    train, test = table[table["split"] == "train"], table[table["split"] == "test"]
    found = prepared.manifest["splits"]["test"]
    assert found["shared_users"] == len(set(train["user_id"]) & set(test["user_id"]))
    assert found["cold_ads"] == pytest.approx(len(set(test["ad_id"]) - set(train["ad_id"])) / test["ad_id"].nunique())
    assert found["cold_ad_rows"] == pytest.approx((~test["ad_id"].isin(set(train["ad_id"]))).mean())
    assert not set(train["request_id"]) & set(test["request_id"])


def test_a_split_without_training_rows_is_refused(tmp_path):
    made = tables(0)
    world(tmp_path)
    with pytest.raises(DataError, match="train part has no rows"):
        prepare(tmp_path, split={"method": "time", "test_from": "2020-01-01"})
    assert made


@pytest.mark.parametrize(
    ("split", "counts", "key"),
    [
        ({"method": "time", "test_from": "2020-01-01"}, "train 0, valid 0, test", "split.test_from (2020-01-01 00:00 UTC)"),
        ({"method": "time", "test_from": "2031-01-01"}, "valid 0, test 0", "split.test_from (2031-01-01 00:00 UTC)"),
        ({"method": "user", "test_fraction": 1e-6}, "test 0", "split.test_fraction"),
        ({"method": "column", "column": "side", "train": ["a", "b"]}, "test 0", "split.column ('side') or split.test (test)"),
    ],
)
def test_an_empty_part_is_refused_before_any_work(tmp_path, monkeypatch, split, counts, key):
    made = world(tmp_path)
    side = pa.array(["ab"[at % 2] for at in range(made["impressions"].num_rows)])
    write(made["impressions"].append_column("side", side), tmp_path / "impressions.parquet")
    monkeypatch.setattr(preprocess, "prepare_texts", lambda connection: pytest.fail("texts were begun"))
    with pytest.raises(DataError, match=re.escape(counts)) as caught:
        prepare(tmp_path, split=split)
    assert key in str(caught.value)
    assert not (tmp_path / "prepared").exists()


def test_a_config_may_want_no_test(tmp_path):
    world(tmp_path)
    for split in ({"method": "time", "test_fraction": 0}, {"method": "user", "test_fraction": 0}):
        assert "test" not in prepare(tmp_path, split=split)[0].manifest["splits"]
