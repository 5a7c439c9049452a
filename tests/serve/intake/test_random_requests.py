"""Thousands of requests that nobody would send: none is answered 5xx, none changes what a good request gets."""

import copy
import json
import random

import pytest

pytest.importorskip("fastapi")
from served import client_of, make_bundle, settings_of

MOMENT = "2025-01-01T00:00:00+00:00"
ROW = {"user_id": "u1", "ad_id": "a1", "shown_at": MOMENT, "scenario": "search", "query": "x", "context": {"position": 1}}
USER = {"user_id": "u1", "history": ["a1", "a2"], "interests": ["music"], "features": {"interests": ["x"]}}
LIST = {"user_id": "u1", "shown_at": MOMENT, "candidates": ["a1", "a2"], "top_n": 3, "context": {"position": 1}}
EVENT = {"user_id": "u9", "ad_id": "a1", "kind": "click", "at": MOMENT, "price": 1.0, "event_id": "e", "context": {"x": 1}}
AD = {"title": "guitar", "category": "c", "bid": 1.0, "budget": 2.0, "starts_at": MOMENT, "ends_at": "2026-01-01T00:00:00Z"}
GOOD = {
    "/v1/score": {"rows": [ROW], "users": [USER]},
    "/v1/rank": {"requests": [LIST]},
    "/v1/explain": {"user": {"user_id": "u1", "history": ["a3"]}, "ad_id": "a1", "shown_at": MOMENT},
    "/v1/try": {"request": {"user_id": "u1"}, "trials": [{"a1": {"title": "t", "bid": 1.0}}]},
    "/v1/events": {"events": [EVENT]},
    "/v1/ads/x": AD,
}
NASTY = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, 1e308, -1e308, float("nan"), float("inf")),
    *("", " ", "a1", "u1", "z", "\ud800", "\udfff\ud800", "\x00", "\x1b[31m", "😀" * 50, "x" * 3_000, "９９", "1e999", "NaN"),
    *("2026-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00", "../../etc/passwd"),
    *([], {}, [[]], [None], ["z"], [1], {"a": 1}, {"\ud800": "\ud800"}, ["a1"] * 300, [{}]),
]
NAMES = [
    *("query", "history", "user_index", "position", "scenario", "ad@category", "counter_appeal", "interests", "\ud800", ""),
    *("text", "user_id"),
]
ANSWERS = [*range(200, 500), 503, 504]


def places(value, at=()):
    """Paths to everything in a body."""
    yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*at, key))
    elif isinstance(value, list):
        for key, item in enumerate(value):
            yield from places(item, (*at, key))


def mutated(body, rng):
    body = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.choice([place for place in places(body) if place])
        holder = body
        for key in at[:-1]:
            holder = holder[key]
        value = copy.deepcopy(rng.choice(NASTY))
        deed = rng.random()
        if deed < 0.6:
            holder[at[-1]] = value
        elif deed < 0.75 and isinstance(holder, dict):
            holder[rng.choice(NAMES)] = value
        elif deed < 0.85:
            del holder[at[-1]]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[at[-1]]))
        if not any(place for place in places(body)):
            break
    return body


def sent(client, rng):
    path = rng.choice(list(GOOD))
    method = "PUT" if path == "/v1/ads/x" else "POST"
    content = json.dumps(mutated(GOOD[path], rng)).encode()
    deed = rng.random()
    if deed < 0.05:
        content = content[: rng.randrange(len(content))]
    elif deed < 0.08:
        content = bytes(rng.randrange(256) for _ in range(rng.randrange(200)))
    elif deed < 0.1:
        content = b"[" * rng.randrange(100_000)
    elif deed < 0.12:
        method = rng.choice(["GET", "HEAD", "DELETE", "PATCH", "OPTIONS", "PUT", "POST"])
    if path == "/v1/ads/x" and rng.random() < 0.7:
        path = "/v1/ads/" + rng.choice(["a/b", "%00", "%ff%fe", "%1B", "x" * 300, "..", "%2e%2e/%2e%2e", "💡", ""])
    headers = {"content-type": rng.choice(["application/json"] * 8 + ["text/plain", "", "multipart/form-data"])}
    return path, client.request(method, path, content=content, headers=headers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("random")
    make_bundle(made)
    return made


def strict(text):
    """Python reads NaN as JSON; nobody else does."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} was answered"))


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_requests_get_no_500_and_harm_nobody(folder, tmp_path, count):
    good = {
        "rows": [{"user_id": f"u{number}", "ad_id": f"a{number}", "shown_at": "2024-01-01T00:00:00Z"} for number in range(2, 9)]
    }
    rng = random.Random(count)
    with client_of(settings_of(folder, tmp_path / "store.sqlite"), raise_server_exceptions=False) as client:
        before = client.post("/v1/score", json=good).json()["rows"]
        statuses: dict[int, int] = {}
        for number in range(count):
            path, answer = sent(client, rng)
            assert answer.status_code in ANSWERS, (number, path, answer.request.content[:2_000], answer.text)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            if answer.headers.get("content-type") == "application/json" and answer.content:
                strict(answer.text)
        assert client.post("/v1/score", json=good).json()["rows"] == before
        assert statuses[200] > count / 20 and statuses[422] > count / 20
        metrics = client.get("/metrics").text
        counted = sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("adrec_requests_total{"))
        assert counted == count + 2 and 'status="500"' not in metrics
    with client_of(settings_of(folder, tmp_path / "store.sqlite")) as client:  # what was recorded does not stop the next start
        assert client.get("/health/ready").status_code == 200
