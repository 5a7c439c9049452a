"""Conversions are promised: in scores and lists, kept with the events, held against what came, and judged by evaluate."""

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("fastapi")
import worlds
from served import client_of, settings_of
from sklearn.metrics import roc_auc_score

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.serve import EventsConfig
from adrec.inference.predictor import Predictor
from adrec.serve.store import open_store
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import events
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
TASKS = {"both": "[{name: click}, {name: conversion, after: click}]", "conversions": "[{name: conversion}]"}


@pytest.fixture(scope="module", params=["both", "conversions"])
def learned(request, tmp_path_factory):
    """What a bundle has learned, and its folder."""
    made = tmp_path_factory.mktemp(request.param)
    worlds.make_world(made / "prepared", users=40, requests=400, conversions=True)
    worlds.make_bundle(made, f"tasks={TASKS[request.param]}", "training.epochs=2")
    return request.param, made


def test_promises_of_conversions_go_round(learned, tmp_path):
    what, folder = learned
    rng, lists = np.random.default_rng(0), []
    with client_of(
        settings_of(folder, tmp_path / "s.sqlite", policies={"default": {"top_n": 5, "value": {"kind": "score"}}})
    ) as client:
        row = {"user_id": "u1", "ad_id": "a3", "shown_at": "2025-01-01T00:00:00Z"}
        [scored] = client.post("/v1/score", json={"rows": [row]}).json()["rows"]
        table = pq.read_table(folder / "prepared" / "impressions" / "test").slice(0, 1)
        columns = Predictor.load(folder / "bundle", device="cpu").score(
            table, pq.read_table(folder / "prepared" / "ads.parquet"), pq.read_table(folder / "prepared" / "users.parquet")
        )
        assert ("score_conversion" in columns.column_names) == (what == "both")
        for _ in range(30):
            asked = {"requests": [{"user_id": f"u{user}"} for user in range(40)]}
            lists += client.post("/v1/rank", json=asked).json()["lists"]
        ads = [ad for listed in lists for ad in listed["ads"]]
        if what == "both":  # of both: never more than the click
            assert 0 < scored["score_conversion"] <= scored["score"]
            assert all(0 < ad["score_conversion"] <= ad["score"] + 1e-6 for ad in ads)
        else:
            assert scored["score_conversion"] == scored["score"]
            assert all(ad["score_conversion"] == ad["score"] for ad in ads)
        told = []
        for listed in lists:
            for ad in listed["ads"]:
                said = {
                    "user_id": listed["user_id"], "ad_id": ad["ad_id"], "request_id": listed["request_id"], "arm": "a",
                    "position": ad["rank"], "score": ad["score"], "score_conversion": ad["score_conversion"],
                }  # fmt: skip
                told.append({**said, "kind": "impression"})
                if rng.random() < ad["score_conversion"]:
                    told += [{**said, "kind": "click"}, {**said, "kind": "conversion", "value": 2.0}]
                elif what == "both" and rng.random() < (ad["score"] - ad["score_conversion"]) / (1 - ad["score_conversion"]):
                    told.append({**said, "kind": "click"})
        for start in range(0, len(told), 5_000):
            client.post("/v1/events", json={"events": told[start : start + 5_000]}).raise_for_status()
        assert client.post("/v1/events", json={"events": [{**told[0], "score_conversion": 1.1}]}).status_code == 422
        [health] = client.get("/v1/about").json()["health"]
        metrics = client.get("/metrics").text
    came = sum(event["kind"] == "conversion" for event in told)
    assert health["conversions"] == came > 20 and health["value"] == 2.0 * came
    promised = sum(event["score_conversion"] for event in told if event["kind"] == "impression")
    assert health["promised_conversions"] == pytest.approx(promised, rel=1e-6)
    assert health["conversion_low"] < 1 < health["conversion_high"]  # they came as promised
    assert (health["ratio"] is None) == (what == "conversions")  # its score is no promise of clicks
    assert f'adrec_health_conversion_ratio{{arm="a",day="{health["day"]}"}} {health["conversion_ratio"]}' in metrics

    kept = open_store(EventsConfig(store=tmp_path / "s.sqlite", output=tmp_path / "x")).after(0, 5).events
    assert kept["score_conversion"].null_count == 0 and (kept["score"].null_count == 0) == (what == "both")
    served = tmp_path / "served.parquet"
    result = events.run(EventsConfig(store=tmp_path / "s.sqlite", output=served), QUIET)
    assert result.impressions == len(ads) and pq.read_table(served)["conversion"].to_numpy().sum() == came
    settings = EvaluateConfig(scored=served, output=tmp_path / "judged", report=False, bootstrap={"replicates": 20})
    tasks = evaluate.run(settings, QUIET).as_dict()["tasks"]
    assert set(tasks) == ({"click", "conversion"} if what == "both" else {"conversion"})
    table = pq.read_table(served)
    oracle = roc_auc_score(table["conversion"], table["score_conversion"])
    assert tasks["conversion"]["runs"]["model"]["metrics"]["auc"]["value"] == pytest.approx(oracle, abs=1e-6)
