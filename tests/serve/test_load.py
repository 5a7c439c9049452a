"""Open-loop load of 64 clients, alone and with events, changed ads, explanations, reloads and malformed requests beside.

Nothing but 503 and 504 with Retry-After may fail, and the good requests wait little longer than without. The short form looks
at the answers alone: how long they take is for a machine that does nothing else (`make test-all`).
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ports import free_port
from served import call, make_bundle, settings_of, start

from adrec.config.base import save_config
from adrec.serve.store.sqlite_store import SqliteStore

pytest.importorskip("fastapi")
KEY = {"x-api-key": "load-test-key-of-some-length"}
CLIENTS = 64
BAD = [
    {"rows": [{"user_id": "u1", "ad_id": 10**400}]}, {"rows": [{"user_id": "u1", "ad_id": "a1", "shown_at": "z"}]},
    {"rows": []}, {"rows": [{"user_id": "u1", "ad_id": "nobody's"}]}, ["what"],
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("load")
    make_bundle(made)
    return made


def send(address, path, body, method="POST"):
    """Status, seconds, and whether a refusal says when to come again."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"content-type": "application/json", **KEY}, method=method)
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return answer.status, time.perf_counter() - started, True
    except urllib.error.HTTPError as error:
        error.read()
        return error.code, time.perf_counter() - started, "retry-after" in error.headers


def good(rng, users):
    user = f"u{rng.randrange(users)}"
    if rng.random() < 0.5:
        return "/v1/score", {"rows": [{"user_id": user, "ad_id": f"a{rng.randrange(60)}", "query": f"query {rng.random()}"}]}
    return "/v1/rank", {"requests": [{"user_id": user, "scenario": "search", "query": rng.choice(["guitar", "rose", "loan"])}]}


def run(address, rate, seconds, *, disturbed):
    """Requests at moments that do not wait for answers. Returns the statuses by kind, and the seconds of good ones."""
    rng, answers, lock, done = random.Random(0), [], threading.Lock(), threading.Event()

    def ask(kind, path, body, method="POST", due=None):
        late = 0.0 if due is None else time.perf_counter() - due
        status, took, says_when = send(address, path, body, method)
        with lock:
            answers.append((kind, status, took + late, says_when))

    def beside():
        number = 0
        while not done.is_set():
            number += 1
            events = [
                {
                    "user_id": f"u{rng.randrange(900)}",
                    "ad_id": f"a{rng.randrange(60)}",
                    "kind": kind,
                    "event_id": f"{number}-{at}",
                }
                for at, kind in enumerate(["impression"] * 40 + ["click"] * 9 + ["conversion"])
            ]
            ask("events", "/v1/events", {"events": events})
            if number % 5 == 0:
                ask("put", f"/v1/ads/n{number % 7}", {"title": f"guitar {number}", "bid": 1.0}, "PUT")
            if number % 10 == 0:
                ask("explain", "/v1/explain", {"user": {"user_id": "u1"}, "ad_id": "a1"})
            if number % 40 == 0:
                ask("reload", "/admin/reload", {})
            done.wait(0.05)

    with ThreadPoolExecutor(CLIENTS) as clients:
        other = threading.Thread(target=beside)
        if disturbed:
            other.start()
        begin = time.perf_counter()
        for number in range(int(rate * seconds)):
            due = begin + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            if disturbed and number % 20 == 0:
                clients.submit(ask, "bad", "/v1/score", rng.choice(BAD))
            clients.submit(ask, "good", *good(rng, 900), "POST", due)
        done.set()
        if disturbed:
            other.join()
    return answers


def check(answers):
    wrong = [
        (kind, status) for kind, status, _, says_when in answers if status >= 500 and not (status in {503, 504} and says_when)
    ]
    assert not wrong
    assert {status for kind, status, _, _ in answers if kind == "bad"} <= {400, 422, 503, 504}
    assert any(status == 200 for kind, status, _, _ in answers if kind == "events")
    well = np.array([took for kind, status, took, _ in answers if kind == "good" and status == 200])
    assert len(well) > 0.95 * sum(kind == "good" for kind, *_ in answers)
    return well


def resident_bytes(process):
    with open(f"/proc/{process.pid}/statm") as handle:
        return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_load_with_everything_beside_fails_no_request(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_API_KEY", KEY["x-api-key"])
    server, address = start(folder, tmp_path / "s.sqlite", KEY)
    try:
        check(run(address, 15, 5, disturbed=True))
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) in {0, -signal.SIGTERM}  # uvicorn ends by the signal it got


SLOW = """
import sys, time
from adrec.serve.engine import Engine
score = Engine.score
def slow(self, items):
    time.sleep(60)
    return score(self, items)
Engine.score = slow
from adrec.cli.app import app
app(["serve", "-c", sys.argv[1], "-q"])
"""


def test_sigterm_ends_the_server_within_drain_seconds_whatever_is_in_flight(folder, tmp_path):
    port = free_port()
    save_config(settings_of(folder, tmp_path / "s.sqlite", port=port, drain_seconds=1.0), tmp_path / "serve.yaml")
    command = [sys.executable, "-c", SLOW, str(tmp_path / "serve.yaml")]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                assert call(address, "/health/ready")["done"]
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        event = {"user_id": "u1", "ad_id": "a1", "kind": "click", "event_id": "before"}
        assert call(address, "/v1/events", {"events": [event]})["recorded"] == 1
        body = {"rows": [{"user_id": "u1", "ad_id": "a1"}]}
        stuck = threading.Thread(target=lambda: pytest.raises(OSError, call, address, "/v1/score", body))
        stuck.start()
        time.sleep(0.5)
        server.send_signal(signal.SIGTERM)
        began = time.monotonic()
        server.wait(20)
        assert time.monotonic() - began < 6
        stuck.join()
        assert SqliteStore(tmp_path / "s.sqlite").after(0, 10).events["event_id"].to_pylist() == ["before"]
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_latency_and_memory_after_a_week_of_traffic_are_those_of_the_first_minutes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_API_KEY", KEY["x-api-key"])
    server, address = start(folder, tmp_path / "s.sqlite", KEY)
    try:
        check_rate = 1 / (2 * np.median([send(address, *good(random.Random(n), 900))[1] for n in range(40)]))
        clean = run(address, check_rate, 30, disturbed=False)
        first = np.quantile([took for *_, took, _ in clean], 0.99)
        beside = np.quantile(check(run(address, check_rate, 30, disturbed=True)), 0.99)
        print(
            f"{check_rate:.0f} requests a second: p99 {first * 1e3:.1f} ms alone, {beside * 1e3:.1f} ms with everything beside"
        )
        before = resident_bytes(server)
        for number in range(200):
            events = [
                {"user_id": f"u{at % 900}", "ad_id": f"a{at % 60}", "kind": "click" if at % 5 == 0 else "impression"}
                for at in range(number, number + 5_000)
            ]
            assert send(address, "/v1/events", {"events": events})[0] == 200
        for number in range(500):
            rows = [{"user_id": "u1", "ad_id": "a1", "query": f"distinct {number} {at}"} for at in range(200)]
            assert send(address, "/v1/score", {"rows": rows})[0] == 200
        after = np.quantile([took for *_, took, _ in run(address, check_rate, 30, disturbed=False)], 0.99)
        grown = resident_bytes(server) - before
        print(f"after 1,000,000 events and 100,000 queries: p99 {after * 1e3:.1f} ms, {grown / 1e6:.0f} MB more")
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) in {0, -signal.SIGTERM}  # uvicorn ends by the signal it got
        began = time.perf_counter()
        server, address = start(folder, tmp_path / "s.sqlite", KEY)
        restart = time.perf_counter() - began
        began = time.perf_counter()
        start(folder, tmp_path / "empty.sqlite", KEY)[0].kill()
        empty = time.perf_counter() - began
        print(f"restarted in {restart:.1f} s, with an empty store in {empty:.1f} s")
        assert restart < max(10, 1.3 * empty)  # 10 s where nothing else runs: most of it is importing
        assert beside < 1.5 * first + 0.02 and after < 1.5 * first + 0.02 and grown < 400e6
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_ten_minutes_with_everything_beside_leave_latency_and_memory_where_they_were(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_API_KEY", KEY["x-api-key"])
    seconds = float(os.environ.get("ADREC_SOAK_SECONDS", "600"))
    server, address = start(folder, tmp_path / "s.sqlite", KEY)
    try:
        rate = 1 / (4 * np.median([send(address, *good(random.Random(n), 900))[1] for n in range(40)]))
        minutes, memory = [], []
        for _ in range(10):
            minutes.append(np.quantile(check(run(address, rate, seconds / 10, disturbed=True)), 0.99) * 1e3)
            memory.append(resident_bytes(server) / 1e6)
        print(f"{rate:.0f} requests a second: p99 {np.round(minutes, 1)} ms, memory {np.round(memory)} MB")
        assert np.median(minutes[5:]) < 1.5 * np.median(minutes[:5]) + 20 and memory[-1] < memory[1] + 200
    finally:
        server.kill()
        server.wait()
