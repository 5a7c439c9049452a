"""One request answers for itself: whatever is wrong with it is told to its sender alone, and the others' bits stay."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("fastapi")
import raw_worlds
import worlds
from fastapi.testclient import TestClient
from pydantic_core import to_json

from adrec.config.inference.serve import ServeConfig
from adrec.serve.app import create_app
from adrec.serve.engine import Engine
from adrec.serve.intake.checking import RefusedError
from adrec.serve.intake.messages import RankRequest, ScoreRequest
from adrec.serve.rounds import in_rounds
from adrec.serve.store import StoreError

MOMENT = "2026-03-20T00:00:00+00:00"
COUNTERS = [
    {"by": ["ad"], "measures": ["impressions", "rate"]},
    {"by": ["ad", "shelf"], "measures": ["impressions", "rate"]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle that reads categories, numbers, counters and a list of the impressions, and columns of users."""
    made = tmp_path_factory.mktemp("one_request")
    tables = raw_worlds.tables(requests=400, users=20)
    rng = np.random.default_rng(0)
    rows = tables["impressions"]
    shelf = rng.integers(1, 4, len(rows))
    rows = rows.append_column("shelf", pa.array(shelf)).append_column("tags", pa.array([f"t{code}|x" for code in shelf]))
    ages = tables["users"].append_column("band", pa.array([["1", "2"][number % 2] for number in range(18)]))
    interests = pa.array([["tea", "shoes"][number % 2] for number in range(18)])
    raw_worlds.write(rows, made / "impressions.parquet")
    raw_worlds.write(ages.append_column("interests", interests), made / "users.parquet")
    raw_worlds.write(tables["ads"], made / "ads.parquet")
    raw_worlds.prepare(
        made,
        counters=COUNTERS,
        split={"method": "time", "valid_fraction": 0.2, "test_fraction": 0.1},
        text={"user_template": "{interests}"},
        features={
            "impressions": {
                "numeric": ["counter_*", "price_seen"],
                "categorical": ["shelf", "position"],
                "lists": [{"column": "tags", "separator": "|"}],
            },
            "users": {"numeric": ["age"], "categorical": ["band"]},
        },
    )
    worlds.make_bundle(made, "training.epochs=2", "text.reference=null")
    return made


def settings_of(folder, store, **changes):
    values = {"bundle": str(folder / "bundle"), "prepared": str(folder / "prepared"), "store": str(store), "device": "cpu"}
    return ServeConfig.model_validate({**values, "policies": {"default": {"top_n": 5, "value": {"kind": "score"}}}, **changes})


@pytest.fixture(scope="module")
def engine(folder):
    return Engine(settings_of(folder, folder / "engine.sqlite"))


@pytest.fixture(scope="module")
def client(folder):
    settings = settings_of(folder, folder / "client.sqlite", batching={"max_wait_ms": 20})
    with TestClient(create_app(settings), raise_server_exceptions=False) as opened:
        yield opened


def one(user="u1", ad="a1", users=(), **row):
    return {"rows": [{"user_id": user, "ad_id": ad, "shown_at": MOMENT, **row}], "users": list(users)}


GOOD = [
    one("u1", "a1"),
    one("u2", "a2", context={"shelf": 2, "price_seen": 9.5, "position": 1}),
    one("u3", "a3", context={"tags": "t1|t2"}),
    one("stranger", "a4", [{"user_id": "stranger", "history": ["a1", "a2"], "interests": ["tea"], "features": {"band": 2}}]),
    one("u4", "a5", query="tea"),
]
BAD = [
    one("u5", "a1", context={"position": ["x"]}),
    one("u5", "a1", context={"position": 0}),
    one("u5", "a1", context={"price_seen": "dear"}),
    one("u5", "a1", context={"price_seen": "1e999"}),
    one("u5", "a1", context={"position": "NaN"}),
    one("u5", "a1", context={"shelf": ["1"]}),
    one("u5", "a1", context={"query": 5}),
    one("u5", "a1", context={"scenario": "search"}),
    one("u5", "a1", context={"user_index": 7}),
    one("u5", "a1", context={"ad@category": "news"}),
    one("u5", "nothing"),
    one("u6", "a1", [{"user_id": "u6", "features": {"age": "z"}}]),
    one("u6", "a1", [{"user_id": "u6", "features": {"age": ["3"]}}]),
    one("u6", "a1", [{"user_id": "u6"}, {"user_id": "u6"}]),
    {"rows": [{"ad_id": "a1"}]},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_neighbour_changes_no_bit(engine, bad):
    good = [ScoreRequest.model_validate(item) for item in GOOD]
    among = [*good[:2], ScoreRequest.model_validate(bad), *good[2:]]
    without, answers = engine.score(good), engine.score(among)
    assert isinstance(answers[2], RefusedError) and answers[2].faults
    assert [*answers[:2], *answers[3:]] == without


def test_what_one_says_reaches_no_other(engine):
    """A column that only some fill, a described user, counters that one brings: the others' are what they are alone."""
    says = [
        *GOOD,
        one("u5", "a6", [{"user_id": "u5", "interests": ["shoes"], "features": {"age": 30, "band": None}}]),
        one("u6", "a6", context=dict.fromkeys(_counters(engine), 0.5)),
        one(None, "a7", context={"price_seen": 3}),
    ]
    items = [ScoreRequest.model_validate(item) for item in says]
    alone = [engine.score([item])[0]["rows"][0]["logit"] for item in items]
    together = [answer["rows"][0]["logit"] for answer in engine.score(items)]
    assert np.allclose(alone, together, atol=2e-7, rtol=0)
    assert abs(alone[6] - engine.score([ScoreRequest.model_validate(one("u6", "a6"))])[0]["rows"][0]["logit"]) > 1e-4


def _counters(engine):
    return engine.live.ranker.known.asof.names


def test_whole_numbers_reach_whole_number_categories(engine):
    def logit(**said):
        return engine.score([ScoreRequest.model_validate(one(**said))])[0]["rows"][0]["logit"]

    for name, writings in {"shelf": [2, 2.0, "2"], "position": [3, 3.0, "3"], "price_seen": [9, "9", 9.0]}.items():
        assert len({logit(context={name: value}) for value in writings}) == 1
        assert logit(context={name: writings[0]}) != logit()
    of_user = [logit(user="u9", users=[{"user_id": "u9", "features": {"band": value}}]) for value in (1, 1.0, "1")]
    assert len(set(of_user)) == 1


def test_extremes_are_told_or_answered_finitely(client):
    for value in (1e308, -1e308, 9e15, 2**62):
        answer = client.post("/v1/score", json=one(context={"price_seen": value}))
        assert answer.status_code == 200 and np.isfinite(answer.json()["rows"][0]["logit"])


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ('{"rows": [{"user_id": "u1", "ad_id": "a1", "context": {"price_seen": %s}}]}' % ("9" * 400), "context.price_seen"),
        ('{"rows": [{"user_id": "u1", "ad_id": "a1", "context": {"price_seen": 1e999}}]}', "context.price_seen"),
        ('{"rows": [{"user_id": "u1", "ad_id": "a1", "context": {"price_seen": NaN}}]}', "context.price_seen"),
        ('{"rows": [{"user_id": "\\ud800", "ad_id": "a1"}]}', "rows.0.user_id"),
        ('{"rows": [{"user_id": "u1", "ad_id": "a1", "context": {"shelf": "\\udfff"}}]}', "context.shelf"),
        ('{"rows": [{"user_id": "u1", "ad_id": "a1", "context": {"\\ud800": 1}}]}', "context"),
        ('{"rows": [{"user_id": "u1", "ad_id": "a1", "\\ud800": 1}]}', "rows.0"),
        ('{"rows": [{"user_id": "u1", "ad_id": "a1", "shown_at": "0001-01-01T00:00:00+14:00"}]}', "rows.0.shown_at"),
        ('{"rows": [{"user_id": "u1", "ad_id": "a1", "shown_at": "9999-12-31T23:59:59-14:00"}]}', "rows.0.shown_at"),
        ('{"rows": [{"user_id": "u1", "ad_id": "a1", "shown_at": 1e300}]}', "rows.0.shown_at"),
        ('{"rows": [{"user_id": "u1", "ad_id": "a1", "context": {"tags": [["z"]]}}]}', "context.tags"),
        ('{"rows": [{"user_id": "u1", "ad_id": "a1"}], "users": [{"user_id": "u1", "interests": ["\\ud801"]}]}', "interests"),
    ],
)  # fmt: skip
def test_what_no_column_can_hold_is_refused_at_the_door(client, body, place):
    answer = client.post("/v1/score", content=body.encode(), headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert place in json.dumps(answer.json()["detail"])


def test_good_clients_beside_bad_ones(client):
    """Twenty good requests beside bad ones at once: every good one is answered with the score it has alone."""
    alone = [client.post("/v1/score", json=item).json()["rows"][0]["logit"] for item in GOOD]
    calls = [item for number in range(20) for item in (GOOD[number % len(GOOD)], BAD[number % len(BAD)])]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda item: client.post("/v1/score", json=item), calls))
    for number, answer in enumerate(answers):
        if number % 2:
            assert 400 <= answer.status_code < 500, answer.text
        else:
            assert answer.status_code == 200, answer.text
            assert abs(answer.json()["rows"][0]["logit"] - alone[number // 2 % len(GOOD)]) < 1e-6


def test_a_bad_candidate_is_told_and_the_list_is_that_of_the_others(engine):
    def lists(candidates):
        item = {"requests": [{"user_id": "new", "shown_at": MOMENT, "candidates": candidates}]}
        return engine.rank([RankRequest.model_validate(item)])[0]

    good = lists(["a1", "a2", "a3"])
    mixed = lists(["a1", 17, "a2", "nothing", None, "\ud800", "a3", ["a4"]])
    assert len(good["lists"][0]["ads"]) == 3
    assert [ad["ad_id"] for ad in mixed["lists"][0]["ads"]] == [ad["ad_id"] for ad in good["lists"][0]["ads"]]
    assert [ad["score"] for ad in mixed["lists"][0]["ads"]] == [ad["score"] for ad in good["lists"][0]["ads"]]
    assert [note["where"] for note in mixed["notes"]] == [f"requests.0.candidates.{place}" for place in (1, 3, 4, 5, 7)]
    assert lists(["nothing"])["lists"][0]["ads"] == []
    assert to_json(mixed)  # what is told can be told


def test_a_candidate_without_a_finite_score_is_left_out(engine, monkeypatch):
    asked = RankRequest.model_validate({"requests": [{"user_id": "new", "candidates": ["a1", "a2", "a3"]}]})
    predictor = engine.live.ranker.predictor
    whole = predictor.score_examples

    def broken(examples, *more, **how):
        scores = whole(examples, *more, **how)
        row = engine.live.row_of_ad["a2"]
        return replace(scores, score=np.where(examples.ad_index == row, np.float32(np.nan), scores.score))

    monkeypatch.setattr(predictor, "score_examples", broken)
    answer = engine.rank([asked])[0]
    assert "a2" not in [ad["ad_id"] for ad in answer["lists"][0]["ads"]] and len(answer["lists"][0]["ads"]) == 2
    assert answer["notes"][0]["where"] == "requests.0.candidates.1"
    scored = engine.score([ScoreRequest.model_validate(one("u1", ad)) for ad in ("a1", "a2", "a3")])
    assert [isinstance(found, RefusedError) for found in scored] == [False, True, False]


def test_rank_takes_context(engine):
    def scores(**said):
        item = RankRequest.model_validate({"requests": [{"user_id": "new", "shown_at": MOMENT, **said}]})
        return {ad["ad_id"]: ad["score"] for ad in engine.rank([item])[0]["lists"][0]["ads"]}

    plain, with_context = scores(candidates=["a1"]), scores(candidates=["a1"], context={"price_seen": 20, "shelf": 3})
    assert plain["a1"] != with_context["a1"]
    asked = ScoreRequest.model_validate(one("new", "a1", context={"price_seen": 20, "shelf": 3}))
    assert with_context["a1"] == pytest.approx(engine.score([asked])[0]["rows"][0]["score"], abs=1e-6)


def test_what_is_not_known_is_told(client):
    answer = client.post(
        "/v1/score", json=one("u1", context={"colour": "red"}, users=[{"user_id": "u1", "history": ["a1", "x"]}])
    )
    assert answer.status_code == 200
    assert {note["where"] for note in answer.json()["notes"]} == {"rows.0.context.colour", "users.0.history"}


def test_an_unforeseen_fault_is_its_cause_alone():
    calls = []

    def answer(items):
        calls.append(len(items))
        if 13 in items:
            raise ZeroDivisionError
        return [str(item) for item in items]

    found = in_rounds(range(64), lambda item: {}, answer)
    assert isinstance(found[13], ZeroDivisionError)
    assert [value for place, value in enumerate(found) if place != 13] == [str(item) for item in range(64) if item != 13]
    assert len(calls) == 13  # 1 + 2 for each halving of 64


def test_a_store_that_fails_is_asked_once():
    calls = []

    def answer(items):
        calls.append(1)
        raise StoreError("gone")

    assert all(isinstance(found, StoreError) for found in in_rounds(range(8), lambda item: {}, answer)) and len(calls) == 1


def test_a_fault_of_the_server_is_counted_logged_and_answered(folder, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "adrec.serve")
    engine = Engine(settings_of(folder, tmp_path / "store.sqlite"))
    with TestClient(create_app(engine.config, engine), raise_server_exceptions=False) as client:
        monkeypatch.setattr(engine.live.predictor, "score_examples", lambda *_, **__: 1 / 0)
        answers = [client.post("/v1/score", json=one("private-name")) for _ in range(3)]
        monkeypatch.undo()
        assert client.post("/v1/score", json=one()).status_code == 200
        metrics = client.get("/metrics").text
    assert all(answer.status_code == 500 for answer in answers)
    assert all(answer.headers["x-request-id"] in answer.json()["detail"] for answer in answers)
    assert 'adrec_requests_total{path="/v1/score",status="500"} 3.0' in metrics
    lines = [json.loads(record.message) for record in caplog.records if record.name == "adrec.serve"]
    failed = [line for line in lines if line["status"] == 500]
    assert {line["request"] for line in failed} == {answer.headers["x-request-id"] for answer in answers}
    assert all(line["error"].startswith("ZeroDivisionError") for line in failed)
    assert "private-name" not in caplog.text
