import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.errors import DataError
from adrec.stages.evaluation.evaluate import run
from adrec.terminal import Terminal

ADS, SLOTS = 6, 2
CHANCE = np.array([[0.05, 0.10, 0.15, 0.25, 0.35, 0.50], [0.02, 0.05, 0.08, 0.12, 0.18, 0.25]])
"""Click probability by slot and ad."""


def write_logs(path, rng, requests=6000, **extra):
    """A uniform logging policy over 6 ads fills 2 slots, independently."""
    request = np.repeat(np.arange(requests), SLOTS)
    slot = np.tile(np.arange(SLOTS), requests)
    ad = rng.integers(0, ADS, len(request))
    click = rng.random(len(request)) < CHANCE[slot, ad]
    table = {
        "user_id": [f"u{r // 3}" for r in request], "request_id": [f"r{r}" for r in request], "ad_id": [f"a{a}" for a in ad],
        "position": (slot + 1).astype(np.int32), "propensity": np.full(len(request), 1 / ADS), "click": click.astype(np.int8),
        "score": CHANCE[slot, ad].astype(np.float32), **{name: make(ad, slot) for name, make in extra.items()},
    }  # fmt: skip
    pq.write_table(pa.table(table), path)
    return path


def write_lists(path, requests, ads, propensity=None):
    """The same list for every request."""
    depth = len(ads)
    request = np.repeat(np.arange(requests), depth)
    slot, ad = np.minimum(np.arange(depth), SLOTS - 1), np.minimum(ads, ADS - 1)
    table = {
        "user_id": [f"u{r // 3}" for r in request], "request_id": [f"r{r}" for r in request],
        "ad_id": [f"a{a}" for a in ads] * requests, "rank": np.tile(np.arange(1, depth + 1), requests).astype(np.int32),
        "score": np.tile(CHANCE[slot, ad], requests).astype(np.float32),
        "value": np.ones(depth * requests), "reason": ["best"] * (depth * requests),
    }  # fmt: skip
    if propensity is not None:
        table["propensity"] = np.tile(propensity, requests)
    pq.write_table(pa.table(table), path)
    return path


def judged(tmp_path, scored, **off_policy):
    config = EvaluateConfig(
        scored=scored, output=tmp_path / "out", report=False, off_policy=off_policy,
        bootstrap={"replicates": 200},
    )  # fmt: skip
    run(config, Terminal(quiet=True))
    return json.loads((tmp_path / "out" / "metrics.json").read_text())["off_policy"]


def holds(found, truth):
    return found["low"] <= truth <= found["high"]


def test_lists_by_slot_have_the_rate_of_their_slots(tmp_path):
    logs = write_logs(tmp_path / "logs.parquet", np.random.default_rng(0))
    lists = write_lists(tmp_path / "lists.parquet", 6000, [5, 4])
    found = judged(tmp_path, logs, policy=lists)
    truth = (CHANCE[0, 5] + CHANCE[1, 4]) / 2
    assert found["refused"] == ""
    assert found["supported"]["value"] == pytest.approx(1, abs=0.05)
    for name, estimate in found["estimates"].items():
        assert name == "direct_method" or holds(estimate, truth), name
    assert found["estimates"]["direct_method"]["value"] == pytest.approx(truth, abs=1e-6)
    assert holds(found["logged"], CHANCE.mean())


def test_lists_without_slots_have_the_mean_rate_over_slots(tmp_path):
    logs = write_logs(tmp_path / "logs.parquet", np.random.default_rng(1))
    lists = write_lists(tmp_path / "lists.parquet", 6000, [5, 4])
    found = judged(tmp_path, logs, policy=lists, match_position=False)
    truth = CHANCE[:, [4, 5]].mean()
    assert found["supported"]["value"] == pytest.approx(1, abs=0.05)
    for name in ("ips", "snips"):
        assert holds(found["estimates"][name], truth), name


def test_ranks_below_the_logged_slots_are_not_judged(tmp_path):
    logs = write_logs(tmp_path / "logs.parquet", np.random.default_rng(2))
    short = judged(tmp_path, logs, policy=write_lists(tmp_path / "a.parquet", 6000, [5, 4]))
    longer = judged(tmp_path, logs, policy=write_lists(tmp_path / "b.parquet", 6000, [5, 4, 3, 2]))
    assert longer["estimates"]["ips"] == short["estimates"]["ips"]


def test_a_distribution_over_all_ads(tmp_path):
    """The table holds each ad with its probability for a slot that any position may fill."""
    logs = write_logs(tmp_path / "logs.parquet", np.random.default_rng(3))
    probability = np.array([0.0, 0.0, 0.1, 0.2, 0.3, 0.4])
    lists = write_lists(tmp_path / "lists.parquet", 6000, list(range(ADS)), probability)
    table = pq.read_table(lists).drop_columns(["rank", "reason"])
    pq.write_table(table, lists)
    found = judged(tmp_path, logs, policy=lists, policy_is="distribution")
    assert holds(found["estimates"]["snips"], (CHANCE.mean(axis=0) * probability).sum())


def test_a_column_of_probabilities(tmp_path):
    probability = np.array([0.0, 0.05, 0.05, 0.1, 0.3, 0.5])
    logs = write_logs(
        tmp_path / "logs.parquet", np.random.default_rng(4), new=lambda ad, slot: probability[ad],
        expected=lambda ad, slot: (CHANCE * probability).sum(axis=1)[slot],
    )  # fmt: skip
    truth = (CHANCE * probability).sum(axis=1).mean()
    found = judged(tmp_path, logs, policy_column="new", expected_column="expected")
    assert len(found["estimates"]) == 7
    for name, estimate in found["estimates"].items():
        assert holds(estimate, truth) or estimate["value"] == pytest.approx(truth, abs=1e-6), name


def test_logs_that_never_show_the_ads_are_refused(tmp_path):
    logs = write_logs(tmp_path / "logs.parquet", np.random.default_rng(5), requests=600)
    half = judged(tmp_path, logs, policy=write_lists(tmp_path / "a.parquet", 600, [5, 77]))
    assert "reach only" in half["refused"]
    assert half["estimates"] == {}
    none = judged(tmp_path, logs, policy=write_lists(tmp_path / "b.parquet", 600, [88, 77]))
    assert "no logged row" in none["refused"]
    few = judged(tmp_path, logs, policy=write_lists(tmp_path / "c.parquet", 10, [5, 4]))
    assert few["refused"]


def test_faults(tmp_path):
    logs = write_logs(tmp_path / "logs.parquet", np.random.default_rng(6), requests=50)
    lists = write_lists(tmp_path / "lists.parquet", 50, [5, 4])
    with pytest.raises(DataError, match="column 'chance' is missing"):
        judged(tmp_path, logs, policy=lists, propensity_column="chance")
    with pytest.raises(DataError, match="policy_is: distribution needs it"):
        judged(tmp_path, logs, policy=lists, policy_is="distribution")
    table = pq.read_table(logs)
    broken = table.set_column(table.schema.get_field_index("propensity"), "propensity", pa.array([0.5] * 3 + [0.0] * 97))
    pq.write_table(broken, tmp_path / "broken.parquet")
    with pytest.raises(DataError, match=r"column 'propensity', row 3: 0 is not a propensity in \(0, 1\] \(97 such rows\)"):
        judged(tmp_path, tmp_path / "broken.parquet", policy=lists)
    with pytest.raises(ValueError, match="either `policy`"):
        judged(tmp_path, logs)
