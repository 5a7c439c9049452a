"""A/B: the share is met, a user stays in one arm, answers and log name it, and `adrec events` hands it to evaluate."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient
from served import make_bundle, settings_of

from adrec.config.base import load_config
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.serve import Challenger, EventsConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.errors import DataError
from adrec.serve.app import create_app
from adrec.serve.arms import arm_of
from adrec.serve.store import Event, open_store
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import events
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
USERS = [f"user-{number}" for number in range(20_000)]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_the_share_is_met_and_a_user_stays_in_one_arm(share):
    challenger = Challenger(bundle="b", share=share)
    arms = [arm_of(user, challenger) for user in USERS]
    assert arms == [arm_of(user, challenger) for user in USERS]
    found = np.mean([arm.name == "b" for arm in arms])
    assert abs(found - share) < 4 * np.sqrt(share * (1 - share) / len(USERS))
    assert {arm.share for arm in arms if arm.name == "b"} == {share}
    assert {arm.share for arm in arms if arm.name == "a"} == {1 - share}


def test_a_larger_share_moves_users_one_way_and_another_salt_draws_anew():
    small, large = (Challenger(bundle="b", share=share) for share in (0.2, 0.4))
    b_small, b_large = ({user for user in USERS if arm_of(user, test).name == "b"} for test in (small, large))
    assert b_small < b_large
    other = {user for user in USERS if arm_of(user, Challenger(bundle="b", share=0.2, salt="next")).name == "b"}
    assert abs(len(b_small & other) / len(b_small) - 0.2) < 0.04  # independent of the first draw
    assert arm_of("anyone", None) == ("a", 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("arms")
    make_bundle(made)
    settings = [
        f"prepared={made}/prepared", f"output={made}/other", "training.epochs=1", "seed=9", "model.width=8",
        "model.user.max_history=20", "baselines.names=[]",
    ]  # fmt: skip
    finetune.run(load_config(None, FinetuneConfig, settings), QUIET)
    return made


def test_arms_answer_by_their_own_bundle_and_evaluate_reads_what_was_served(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ADREC_API_KEY", "secret")
    caplog.set_level("INFO", "adrec.serve")
    test = {"bundle": str(folder / "other"), "share": 0.5}
    settings = settings_of(folder, tmp_path / "store.sqlite", challenger=test)
    users = [f"u{number}" for number in range(40)]
    with TestClient(create_app(settings)) as client:
        client.headers["X-API-Key"] = "secret"
        rows = [{"user_id": user, "ad_id": "a3", "shown_at": "2025-01-01T00:00:00Z"} for user in users]
        both = client.post("/v1/score", json={"rows": rows}).json()
        arms = {row["user_id"]: row["arm"] for row in both["rows"]}
        assert set(arms.values()) == {"a", "b"} and len(set(both["bundles"].values())) == 2
        cards = client.get("/v1/about").json()["cards"]
        assert set(cards) == {"a", "b"} and all("\n## Figures\n" in card for card in cards.values())
        for arm, bundle in (("a", "bundle"), ("b", "other")):  # each arm scores as its bundle does alone
            with TestClient(create_app(settings_of(folder, tmp_path / f"{arm}.sqlite", bundle=str(folder / bundle)))) as alone:
                alone.headers["X-API-Key"] = "secret"
                single = alone.post("/v1/score", json={"rows": rows}).json()["rows"]
            for mixed, one in zip(both["rows"], single, strict=True):
                assert mixed["arm"] != arm or abs(mixed["logit"] - one["logit"]) < 1e-6

        rng = np.random.default_rng(0)
        told = []
        for _ in range(6):
            answer = client.post("/v1/rank", json={"requests": [{"user_id": user} for user in users]}).json()
            for ranked in answer["lists"]:
                assert ranked["arm"] == arms[ranked["user_id"]] and ranked["arm_share"] == 0.5
                for ad in ranked["ads"]:
                    event = {
                        "user_id": ranked["user_id"], "ad_id": ad["ad_id"], "request_id": ranked["request_id"],
                        "arm": ranked["arm"], "position": ad["rank"], "score": ad["score"], "kind": "impression",
                        "propensity_given_above": ad["propensity_given_above"],
                    }  # fmt: skip
                    told.append(event)
                    if rng.random() < (0.3 if ranked["arm"] == "b" else 0.1):
                        told.append({**event, "kind": "click"})
        told += [
            told[0],
            {"user_id": "u1", "ad_id": "a1", "kind": "impression"},
            {"user_id": "u1", "ad_id": "a9", "kind": "click"},
        ]
        client.post("/v1/events", json={"events": told}).raise_for_status()

        assert client.post("/admin/reload", json={"arm": "b", "bundle": str(folder / "bundle")}).status_code == 200
        assert len(set(client.post("/v1/score", json={"rows": rows}).json()["bundles"].values())) == 1
    lines = [json.loads(record.message) for record in caplog.records if record.name == "adrec.serve"]
    assert any(set(line.get("arms", ())) == {"a", "b"} for line in lines)

    config = EventsConfig(store=tmp_path / "store.sqlite", output=tmp_path / "served.parquet")
    result = events.run(config, QUIET)
    shown = [event for event in told[:-3] if event["kind"] == "impression"]
    assert (result.impressions, result.left_out, result.lone_clicks) == (len(shown), 1, 1)
    assert result.clicks == sum(event["kind"] == "click" for event in told[:-3])
    table = pq.read_table(tmp_path / "served.parquet")
    assert dict(zip(table["user_id"].to_pylist(), table["arm"].to_pylist(), strict=True)) == arms
    judged = evaluate.run(
        EvaluateConfig(
            scored=tmp_path / "served.parquet", output=tmp_path / "judged", slices={"columns": ["arm"]}, report=False,
            bootstrap={"replicates": 20},
        ),
        QUIET,
    )  # fmt: skip
    sliced = {part["value"]: part["rows"] for part in judged.as_dict()["tasks"]["click"]["slices"] if part["column"] == "arm"}
    assert sliced == {arm: sum(event["arm"] == arm for event in shown) for arm in ("a", "b")}


def test_events_without_what_the_list_said_are_told(tmp_path):
    config = EventsConfig(store=tmp_path / "store.sqlite", output=tmp_path / "served.parquet")
    store = open_store(config)
    store.record([Event("u1", "a1", "impression", 10)])
    store.close()
    with pytest.raises(DataError, match="no impression carries the request_id"):
        events.run(config, QUIET)


def test_a_recorded_score_that_is_no_probability_is_told(tmp_path):
    config = EventsConfig(store=tmp_path / "store.sqlite", output=tmp_path / "served.parquet")
    store = open_store(config)
    store.record([Event("u1", "a1", "impression", 10, request_id="r1", position=1, score=1.5)])
    store.close()
    with pytest.raises(DataError, match=r"served.parquet: column 'score', row 1: 1.5 is not from 0 to 1. The server recorded"):
        events.run(config, QUIET)
    assert not config.output.exists()


def test_a_challenger_that_is_no_bundle_stops_the_start(folder, tmp_path):
    shutil.copytree(folder / "other", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"x")
    settings = settings_of(folder, tmp_path / "store.sqlite", challenger={"bundle": str(tmp_path / "broken")})
    with pytest.raises(Exception, match="altered"), TestClient(create_app(settings)):
        pass
