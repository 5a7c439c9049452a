"""The HTTP interface: the same scores as Predictor, events and ads that count at once, and a helpful status for every fault."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient
from redis_server import needs_redis, redis_server
from served import client_of, make_bundle, settings_of

from adrec.data.prepared import open_prepared
from adrec.inference.predictor import Predictor
from adrec.serve.app import create_app

MOMENT = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("serve")
    make_bundle(made)
    return made


@pytest.fixture(scope="module")
def client(folder):
    with client_of(settings_of(folder, folder / "store.sqlite"), raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as (_, url):
        yield url


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def stored(request, folder, tmp_path):
    """Settings with a fresh store, in SQLite and in Redis."""
    redis = {}
    if request.param == "redis":  # asked for here alone: without a redis-server the other store is still tested
        redis = {"redis": request.getfixturevalue("redis_url"), "redis_prefix": tmp_path.name}
    return settings_of(folder, tmp_path / "store.sqlite", **redis)


@pytest.fixture
def fresh(stored):
    with TestClient(create_app(stored), raise_server_exceptions=False) as opened:
        yield opened


def ask(client, **request):
    answer = client.post("/v1/rank", json={"requests": [{"shown_at": MOMENT.isoformat(), **request}]})
    assert answer.status_code == 200, answer.text
    return answer.json()["lists"][0]["ads"]


def test_scores_are_the_predictors(folder, client):
    prepared = open_prepared(folder / "prepared")
    rng = np.random.default_rng(0)
    rows = [
        {
            "user_id": f"u{rng.integers(45)}",
            "ad_id": f"a{rng.integers(60)}",
            "shown_at": MOMENT.isoformat(),
            "scenario": "search",
        }
        for _ in range(60)
    ]
    histories = {f"u{user}": [f"a{ad}" for ad in rng.integers(0, 60, rng.integers(0, 30))] for user in range(45)}
    users = [{"user_id": user, "history": histories[user]} for user in {row["user_id"] for row in rows}]
    answer = client.post("/v1/score", json={"rows": rows, "users": users})
    assert answer.status_code == 200, answer.text
    table = pa.table(
        {
            "user_id": [row["user_id"] for row in rows], "ad_id": [row["ad_id"] for row in rows],
            "shown_at": pa.array([MOMENT] * len(rows), pa.timestamp("us", "UTC")),
            "scenario": [row["scenario"] for row in rows],
            "history": pa.array([histories[row["user_id"]] for row in rows], pa.list_(pa.string())),
        }
    )  # fmt: skip
    scored = Predictor.load(folder / "bundle", device="cpu").score(table, prepared.ads(), prepared.users())
    found = answer.json()["rows"]
    assert np.allclose([row["score"] for row in found], scored["score"].to_numpy(), atol=1e-6)
    assert np.allclose([row["logit"] for row in found], scored["logit"].to_numpy(), atol=1e-6)
    assert [row["cold_user"] for row in found] == scored["cold_user"].to_pylist()


def test_a_score_does_not_depend_on_who_asks_at_the_same_time(client):
    def one(number):
        row = {"user_id": f"u{number % 7}", "ad_id": f"a{number}", "shown_at": MOMENT.isoformat()}
        return client.post("/v1/score", json={"rows": [row]}).json()["rows"][0]["score"]

    alone = [one(number) for number in range(24)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(one, range(24)))
    assert np.allclose(alone, together, atol=1e-6)


def test_lists_follow_the_policy(client):
    ads = ask(client, user_id="u3")
    assert [ad["rank"] for ad in ads] == [1, 2, 3, 4, 5]
    values = [ad["value"] for ad in ads]
    assert values == sorted(values, reverse=True)
    assert all(ad["reason"] and ad["title"] and ad["price"] is not None for ad in ads)
    assert len(ask(client, user_id="u3", top_n=2)) == 2
    found = ask(client, user_id="stranger", scenario="search", query="guitar")
    assert found and all("guitar" in ad["title"] for ad in found)
    assert "guitar" in found[0]["reason"]


def test_given_candidates_are_all_there_is(client):
    ads = ask(client, user_id="u3", candidates=["a1", "a2", "a3", "a2"])
    assert sorted(ad["ad_id"] for ad in ads) == ["a1", "a2", "a3"]


def test_a_click_reaches_the_history_and_impressions_the_cap(fresh):
    before = ask(fresh, user_id="new")
    event = {"user_id": "new", "ad_id": before[0]["ad_id"], "kind": "click", "at": (MOMENT - timedelta(days=1)).isoformat()}
    answer = fresh.post("/v1/events", json={"events": [{**event, "event_id": "1"}, {**event, "event_id": "1"}]}).json()
    assert answer == {"recorded": 1, "repeated": 1, "late": 0, "unmatched": 2}
    after = ask(fresh, user_id="new")
    assert [ad["score"] for ad in after] != [ad["score"] for ad in before]
    shown = {**event, "kind": "impression"}
    fresh.post("/v1/events", json={"events": [shown, shown]})
    assert before[0]["ad_id"] not in [ad["ad_id"] for ad in ask(fresh, user_id="new", candidates=[before[0]["ad_id"], "a1"])]


def test_a_spent_budget_ends_an_ad(fresh):
    click = {"user_id": "x", "ad_id": "a5", "kind": "click", "price": 50.0}
    assert ask(fresh, user_id="new", candidates=["a5"])
    fresh.post("/v1/events", json={"events": [click]})
    assert ask(fresh, user_id="new", candidates=["a5"]) == []


def within_a_second(holds):
    until = time.monotonic() + 1.0
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_what_another_server_recorded_counts_here(stored):
    with client_of(stored) as one, client_of(stored) as other:
        assert ask(one, user_id="new", candidates=["a5"])
        shown = {"user_id": "new", "ad_id": "a5", "kind": "impression"}
        other.post("/v1/events", json={"events": [shown, shown]})
        within_a_second(lambda: ask(one, user_id="new", candidates=["a5"]) == [])
        other.delete("/v1/ads/a6")
        within_a_second(lambda: one.get("/v1/ads/a6").status_code != 200)
        other.put("/v1/ads/n7", json={"title": "guitar", "bid": 3.0})
        within_a_second(lambda: one.get("/v1/ads/n7").status_code == 200)
        assert one.put("/v1/ads/n8", json={"title": "guitar"}).status_code == 200
        within_a_second(lambda: other.get("/v1/ads/n8").status_code == 200)


def test_a_new_ad_is_served_at_once_and_after_a_restart(stored):
    settings = stored
    with client_of(settings) as client:
        assert (
            client.put("/v1/ads/n1", json={"title": "guitar concert 吉他", "category": "c1", "bid": 100.0}).status_code == 200
        )
        assert ask(client, user_id="u3")[0]["ad_id"] == "n1"
        changed = client.get("/v1/ads/a7").json()
        answer = client.put("/v1/ads/a7", json={**changed, "bid": 1000.0, "budget": None})
        assert answer.status_code == 200, answer.text
        assert ask(client, user_id="u3")[0]["ad_id"] == "a7"
        assert client.delete("/v1/ads/a9").status_code == 200
        assert client.post("/v1/score", json={"rows": [{"user_id": "u", "ad_id": "a9"}]}).status_code == 400
        lists = ask(client, user_id="u3")
    with client_of(settings) as client:
        assert ask(client, user_id="u3") == lists
        assert "a9" not in [ad["ad_id"] for ad in ask(client, user_id="u3", candidates=["a7", "n1"])]


def test_explaining_adds_up(client):
    answer = client.post("/v1/explain", json={"user": {"user_id": "u3"}, "ad_id": "a4"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    total = found["baseline"] + sum(part["contribution"] for part in found["parts"])
    assert abs(total - found["logit"]) < 1e-6 and found["sentence"]
    scored = client.post("/v1/score", json={"rows": [{"user_id": "u3", "ad_id": "a4"}]}).json()["rows"][0]
    assert abs(scored["score"] - found["score"]) < 1e-6  # of the score, and of the list
    chinese = client.post("/v1/explain", json={"user": {"user_id": "u3"}, "ad_id": "a4", "language": "zh"}).json()
    assert found["language"] == "en" and chinese["sentence"].startswith("点击概率")
    without = [change["label"] for change in found["counterfactuals"] if change["kind"] == "click"]
    assert without and all(label.startswith("without your click on “") for label in without)


@pytest.mark.parametrize(
    ("call", "status", "says"),
    [
        (("post", "/v1/score", {"rows": [{"user_id": "u", "ad_id": "nothing"}]}), 400, "not in the catalogue"),
        (("post", "/v1/score", {"rows": []}), 422, "at least 1"),
        (("post", "/v1/score", {"rows": [{"user_id": "", "ad_id": "a1"}]}), 422, "at least 1 character"),
        (("post", "/v1/score", {"rows": [{"user_id": "u", "ad_id": "a1", "extra": 1}]}), 422, "Extra"),
        (("post", "/v1/score", {"rows": [{"user_id": "u", "ad_id": "a1"}] * 1001}), 413, "Send several calls"),
        (("post", "/v1/rank", {"requests": [{"user_id": "u"}, {"user_id": "u"}]}), 400, "once in a call"),
        (("post", "/v1/rank", {"requests": [{"user_id": "u", "shown_at": "0001-01-01T00:00:00"}]}), 422, "1970"),
        (("post", "/v1/events", {"events": [{"user_id": "u", "ad_id": "a", "kind": "love"}]}), 422, "impression"),
        (("put", "/v1/ads/x", {"title": "t", "bid": -1}), 422, "greater than or equal"),
        (("delete", "/v1/ads/nothing", None), 404, "not in the catalogue"),
    ],
)
def test_faults_are_told(client, call, status, says):
    method, path, body = call
    answer = client.request(method.upper(), path, json=body)
    assert answer.status_code == status and says in answer.text


def test_strange_bodies(client):
    assert client.post("/v1/score", content=b"{not json").status_code == 422
    assert (
        client.post("/v1/score", content=b'{"rows": [{"user_id": "u", "ad_id": "a1", "context": {"x": NaN}}]}').status_code
        == 422
    )
    assert client.post("/v1/score", content=b"x" * 1_000_001).status_code == 413
    assert client.post("/v1/score", content=iter([b"x" * 600_000] * 2)).status_code == 413
    emoji = {"user_id": "😀", "ad_id": "a1"}
    assert client.post("/v1/score", json={"rows": [emoji]}).status_code == 200
    long = [f"a{number % 60}" for number in range(10_000)]
    users = [{"user_id": "u", "history": long, "interests": ["露营", "🏕"], "features": {"age_band": 7, "nobody": ["x"]}}]
    assert client.post("/v1/score", json={"rows": [{"user_id": "u", "ad_id": "a1"}], "users": users}).status_code == 200


def test_key_health_metrics_and_log(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ADREC_API_KEY", "secret")
    caplog.set_level("INFO", "adrec.serve")
    with TestClient(create_app(settings_of(folder, tmp_path / "store.sqlite"))) as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 200
        assert client.post("/v1/score", json={"rows": [{"user_id": "u", "ad_id": "a1"}]}).status_code == 401
        client.headers["X-API-Key"] = "secret"
        assert client.post("/v1/score", json={"rows": [{"user_id": "private-name", "ad_id": "a1"}]}).status_code == 200
        metrics = client.get("/metrics").text
        assert 'adrec_requests_total{path="/v1/score",status="200"} 1.0' in metrics
        assert "adrec_batch_size_count" in metrics and "adrec_score_bucket" in metrics
    lines = [json.loads(record.message) for record in caplog.records if record.name == "adrec.serve"]
    assert any(line["path"] == "/v1/score" and line["status"] == 200 and "ms" in line for line in lines)
    assert "private-name" not in caplog.text


def test_reload_swaps_a_good_bundle_and_refuses_a_bad_one(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_API_KEY", "secret")
    with TestClient(create_app(settings_of(folder, tmp_path / "store.sqlite"))) as client:
        client.headers["X-API-Key"] = "secret"
        before = client.get("/health/ready").json()["detail"]
        shutil.copytree(folder / "bundle", tmp_path / "good")
        assert client.post("/admin/reload", json={"bundle": str(tmp_path / "good")}).json()["detail"] == before
        shutil.copytree(folder / "bundle", tmp_path / "bad")
        (tmp_path / "bad" / "model.safetensors").write_bytes(b"broken")
        for bundle in ("bad", "nowhere"):
            answer = client.post("/admin/reload", json={"bundle": str(tmp_path / bundle)})
            assert answer.status_code == 409 and "earlier bundle goes on" in answer.text
        assert ask(client, user_id="u3")
        assert 'adrec_reloads_total{outcome="refused"} 2.0' in client.get("/metrics").text


def test_the_page_and_its_parts_are_there(client):
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/page.js").status_code == client.get("/page.css").status_code == 200
    assert client.get("/openapi.json").json()["info"]["title"] == "adrec"


def test_a_trial_is_what_the_change_would_do_and_changes_nothing(stored):
    """A tried headline and bid rank as the published ones do afterwards; until then everyone's list stays."""
    with client_of(stored) as client:
        before = ask(client, user_id="u3")
        other = next(f"a{number}" for number in range(60) if f"a{number}" not in {ad["ad_id"] for ad in before})
        tried = {other: {"title": "guitar concert guitar", "bid": 40.0}}
        request = {"user_id": "u3", "shown_at": MOMENT.isoformat()}
        answer = client.post("/v1/try", json={"request": request, "trials": [tried, {before[0]["ad_id"]: {"bid": 0}}]})
        assert answer.status_code == 200, answer.text
        present, first, second = answer.json()["lists"]
        assert present["ads"] == before == ask(client, user_id="u3")
        assert first["ads"][0]["ad_id"] == other and first["ads"][0]["title"] == "guitar concert guitar"
        assert second["ads"][0]["ad_id"] != before[0]["ad_id"]
        ad = client.get(f"/v1/ads/{other}").json()
        client.put(f"/v1/ads/{other}", json={**ad, **tried[other]})
        assert ask(client, user_id="u3") == first["ads"]
        unknown = client.post("/v1/try", json={"request": request, "trials": [{"nothing": {"bid": 1}}]})
        assert unknown.status_code == 400 and "trials.0.nothing" in unknown.text
