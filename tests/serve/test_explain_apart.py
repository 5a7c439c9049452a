"""Explaining beside scores and lists: their bits, the cached vectors and their waiting times are those of a quiet server."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("fastapi")
import worlds
from served import POLICIES, client_of, settings_of

from adrec.inference.explain.explainer import Explainer

TOPICS = list(worlds.TOPICS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle whose encoder reads ads, interests and queries, as vectors that a server caches."""
    made = tmp_path_factory.mktemp("apart")
    worlds.make_world(made / "prepared", users=40, requests=400)
    worlds.word_encoder(made / "words")
    settings = (f"text.reference={made / 'words'}", f"text.cache={made / 'cache'}", "model.query=true")
    worlds.make_bundle(made, "training.epochs=2", "baselines.names=[lightgbm]", "hybrid.kind=average", *settings)
    shutil.rmtree(made / "cache")
    return made


def _settings(folder, name, **changes):
    batching = {"max_items": 1, "timeout_seconds": 120}
    policies = {**POLICIES, "default": {"top_n": 5}}
    explaining = {"max_queue": 1000, "timeout_seconds": 120, **changes}
    return settings_of(
        folder, folder / f"{name}.sqlite", cache=str(folder / name), keep_typed=True, policies=policies, batching=batching,
        explaining=explaining, clock_from="2023-11-20T00:00:00",
    )  # fmt: skip


def _asked():
    """Scores and lists of users with an interest and a query of their own."""
    rng = np.random.default_rng(0)
    moment = "2023-11-20T00:00:00+00:00"
    for number in range(24):
        words = worlds.WORDS[TOPICS[number % 6]].split()
        user = {"user_id": f"new{number}", "interests": [f"{words[number % 5]} {number}"], "history": [f"a{rng.integers(60)}"]}
        row = {
            "user_id": user["user_id"],
            "ad_id": f"a{rng.integers(60)}",
            "query": f"{words[1]} q{number}",
            "shown_at": moment,
        }
        if number % 2:
            yield "/v1/score", {"rows": [row], "users": [user]}
        else:
            yield "/v1/rank", {"requests": [{**user, "query": row["query"], "shown_at": moment}]}


def _explained(number):
    words = worlds.WORDS[TOPICS[number % 6]].split()
    user = {"user_id": f"why{number}", "interests": [f"{words[2]} w{number}", words[0]], "history": [f"a{number % 60}", "a1"]}
    return {"user": user, "ad_id": f"a{(7 * number) % 60}", "query": f"{words[3]} e{number}"}


def _plain(answer):
    """An answer without what is drawn for the call."""
    found = answer.json()
    for one in found.get("lists", []):
        one.pop("request_id")
    return found


def _vectors(folder):
    """Key of a text → its bytes, of all segments."""
    found = {}
    for file in sorted(folder.rglob("*.npy")):
        segment = np.load(file)
        found |= {bytes(row["key"]): row["vector"].tobytes() for row in segment}
    return found


def test_answers_and_cached_vectors_are_bitwise_those_of_a_quiet_server(folder):
    with client_of(_settings(folder, "quiet")) as client:
        quiet = [_plain(client.post(path, json=body)) for path, body in _asked()]
        alone = [client.post("/v1/explain", json=_explained(number)).json() for number in range(5)]
        # What an explanation adds or keeps of its own is nothing.
        before = _vectors(folder / "quiet")
        client.post("/v1/explain", json=_explained(99))
        assert before == _vectors(folder / "quiet")
    with client_of(_settings(folder, "busy")) as client, ThreadPoolExecutor(12) as pool:
        explaining = [pool.submit(client.post, "/v1/explain", json=_explained(number)) for number in range(5)]
        answers = [pool.submit(client.post, path, json=body) for path, body in _asked()]
        busy = [_plain(answer.result()) for answer in answers]
        told = [answer.result().json() for answer in explaining]
    assert "detail" not in quiet[0] and "detail" not in quiet[1], quiet[:2]
    assert busy == quiet
    assert _vectors(folder / "busy") == _vectors(folder / "quiet")
    for one, other in zip(alone, told, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
        assert [part["label"] for part in one["parts"]][:3] == [part["label"] for part in other["parts"]][:3]


def test_neither_events_nor_scores_wait_for_thirty_explanations(folder, monkeypatch):
    slow = Explainer.explain

    def slower(self, *args, **how):
        time.sleep(0.1)
        return slow(self, *args, **how)

    monkeypatch.setattr(Explainer, "explain", slower)
    with client_of(_settings(folder, "waiting")) as client, ThreadPoolExecutor(30) as pool:
        explaining = [pool.submit(client.post, "/v1/explain", json=_explained(number)) for number in range(30)]
        time.sleep(0.3)
        waits = []
        for number in range(5):
            for path, body in (
                ("/v1/events", {"events": [{"user_id": f"u{number}", "ad_id": "a1", "kind": "click"}]}),
                ("/v1/score", {"rows": [{"user_id": "u1", "ad_id": "a2"}]}),
                ("/v1/rank", {"requests": [{"user_id": "u1"}]}),
            ):
                started = time.perf_counter()
                assert client.post(path, json=body).status_code == 200
                waits.append(time.perf_counter() - started)
        assert not all(answer.done() for answer in explaining)  # while explanations still waited
        assert max(waits) < 5, waits
        assert {answer.result().status_code for answer in explaining} == {200}


def test_explanations_beyond_the_queue_are_refused_and_late_ones_told(folder, monkeypatch):
    gate = threading.Event()
    plain = Explainer.explain

    def held(self, *args, **how):
        gate.wait(20)
        return plain(self, *args, **how)

    monkeypatch.setattr(Explainer, "explain", held)
    with client_of(_settings(folder, "bound", max_queue=2, timeout_seconds=1.5)) as client, ThreadPoolExecutor(8) as pool:
        explaining = [pool.submit(client.post, "/v1/explain", json=_explained(number)) for number in range(8)]
        answers = [answer.result() for answer in explaining]
        gate.set()
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {503, 504} and codes.count(504) >= 3, codes  # the one at work and the two that waited
        assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 503)
        end = time.monotonic() + 30  # those whose callers gave up are dropped as soon as the one at work is done
        while (answer := client.post("/v1/explain", json=_explained(1))).status_code != 200 and time.monotonic() < end:
            time.sleep(0.1)
        assert answer.status_code == 200
