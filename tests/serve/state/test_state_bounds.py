"""One accepted call, one damaged row, a store that hangs or is full: the server goes on, starts again, and says so."""

import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient
from redis_server import needs_redis, redis_server
from served import client_of, make_bundle, settings_of

from adrec.ranking.ledger import MOST_SPENT, Ledger
from adrec.serve.app import create_app
from adrec.serve.engine import Engine
from adrec.serve.intake.messages import AdIn, EventIn, RankRequest
from adrec.serve.state.tally import user_numbers
from adrec.serve.store import Event, StoreError, open_store
from adrec.serve.store.sqlite_store import SqliteStore

LATER = 1_800_000_000_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bounds")
    make_bundle(made)
    return made


def shown(engine, ad_id, user="u3"):
    return engine.rank([RankRequest(requests=[{"user_id": user, "candidates": [ad_id]}])])[0]["lists"][0]["ads"]


def test_ten_thousand_clicks_of_the_largest_price_end_the_ad_and_nothing_else(folder, tmp_path):
    settings = settings_of(folder, tmp_path / "s.sqlite")
    engine = Engine(settings)
    for _ in range(2):
        engine.record([EventIn(user_id="u1", ad_id="a5", kind="click", price=1e9)] * 10_000)
    for server in (engine, Engine(settings)):
        assert server.tally.ledger.spent[server.live.row_of_ad["a5"]] == MOST_SPENT
        assert shown(server, "a5") == [] and shown(server, "a6")


def test_charges_saturate_and_are_exact_below():
    ledger = Ledger(np.zeros(2, np.int64), 0)
    ledger.charge(np.array([0, 1, 0]), np.array([3, 2**60, 4]), np.zeros(3, np.int64))
    assert ledger.spent.tolist() == [7, 2**60]
    for _ in range(9):
        ledger.charge(np.array([1, 1]), np.array([2**60, 2**60]), np.zeros(2, np.int64))
    assert ledger.spent.tolist() == [7, MOST_SPENT]


def test_damaged_rows_are_set_aside_and_their_neighbours_counted(folder, tmp_path):
    path = tmp_path / "s.sqlite"
    engine = Engine(settings_of(folder, path))
    for ad_id in ("n1", "n2", "n3"):
        engine.put_ad(ad_id, AdIn(title="guitar", bid=1.0))
    engine.store.close()
    store = SqliteStore(path)
    store.record([Event("u1", "a3", "impression", LATER + number, event_id=str(number)) for number in range(20)])
    store.close()
    spoils = [
        "at = 'yesterday'", "at = 1e300", "user = 999", "kind = 'sale'", "price = 9e99", "price = -1", "at = x'00ff'",
        "user_id", "position = 'first'", "ad_id = x'ff'", "at = 9223372036854775807",
    ]  # fmt: skip
    with sqlite3.connect(path) as damaged:
        for number, spoil in enumerate(spoils):
            if spoil == "user_id":
                damaged.execute("INSERT INTO users VALUES (77, CAST(x'ff41' AS TEXT))")
                spoil = "user = 77"  # an id that is no UTF-8 is one that nobody has
            damaged.execute(f"UPDATE events SET {spoil} WHERE event_id = '{number}'")
        damaged.execute("UPDATE ads SET ad = '{\"title\": 5' WHERE ad_id = 'n1'")
        damaged.execute('UPDATE ads SET ad = \'{"title": "x", "bid": "dear"}\' WHERE ad_id = \'n2\'')
    engine = Engine(settings_of(folder, path))
    assert engine.tally.set_aside == len(spoils) - 1
    row = engine.live.row_of_ad["a3"]
    assert engine.tally.ledger.seen(user_numbers(pa.array(["u1"])), np.array([row])).tolist() == [20 - len(spoils)]
    assert "n3" in engine.live and "n1" not in engine.live and "n2" not in engine.live
    engine.record([EventIn(user_id="u1", ad_id="a3", kind="impression")])
    assert engine.tally.ledger.seen(user_numbers(pa.array(["u1"])), np.array([row])).tolist() == [21 - len(spoils)]


def test_conversions_late_and_unmatched_events_are_told_and_pay(folder, tmp_path):
    engine = Engine(settings_of(folder, tmp_path / "s.sqlite"))
    last = engine.tally.asof.last_moment
    at = np.datetime64(last, "us").item()
    assert engine.record([EventIn(user_id="u1", ad_id="a3", kind="click", at=at)]).model_dump() == {
        "recorded": 1, "repeated": 0, "late": 1, "unmatched": 1,
    }  # fmt: skip
    later = {"user_id": "new", "ad_id": "a5", "at": np.datetime64(LATER, "us").item()}
    answer = engine.record([EventIn(kind="impression", **later), EventIn(kind="click", **later)])
    assert (answer.late, answer.unmatched) == (0, 0)
    answer = engine.record([EventIn(kind="conversion", value=9.5, price=50.0, event_id="c", **later)])
    assert (answer.recorded, answer.unmatched) == (1, 0)
    answer = engine.record(
        [EventIn(kind="conversion", **{**later, "ad_id": "a6"}), EventIn(kind="click", **{**later, "ad_id": "a7"})]
    )
    assert answer.unmatched == 2
    assert engine.record([EventIn(kind="conversion", event_id="c", **later)]).repeated == 1
    assert shown(engine, "a5") == []  # the conversion was paid for
    events = engine.store.after(0, 100).events
    assert [value for value in events["value"].to_pylist() if value is not None] == [9.5]


@needs_redis
class TestRedis:
    def test_a_batch_is_there_as_a_whole_or_not_at_all_and_a_retry_succeeds(self, tmp_path):
        with redis_server(tmp_path) as (_, url):
            config = settings_of(tmp_path, tmp_path / "s", bundle="b", prepared="p", redis=url)
            store = open_store(config)
            batch = [Event("u", "a", "click", number, 1e9, f"e{number}") for number in range(100)]
            store._redis.set("{adrec}:log", "somebody else's")
            with pytest.raises(StoreError, match="cannot be used"):
                store.record(batch)
            store._redis.delete("{adrec}:log")
            assert store.record(batch).new == 100 and store.record(batch).new == 0
            store._redis.config_set("maxmemory", 1)
            with pytest.raises(StoreError, match="maxmemory"):
                store.record([Event("u", "a", "click", 1, 1.0, f"later{number}") for number in range(10)])
            with pytest.raises(StoreError, match="maxmemory"):
                store.probe()
            store._redis.config_set("maxmemory", 0)
            assert store.record([Event("u", "a", "click", 1, 1.0, f"later{number}") for number in range(10)]).new == 10
            assert len(store.after(0, 1000).events) == 110

    def test_a_hanging_redis_costs_a_request_its_time_out_and_nobody_else(self, folder, tmp_path):
        with redis_server(tmp_path) as (server, url):
            settings = settings_of(folder, tmp_path / "s", redis=url, store_timeout_seconds=0.5)
            with TestClient(create_app(settings)) as client:
                assert client.get("/health/ready").status_code == 200
                server.send_signal(signal.SIGSTOP)
                try:
                    event = {"events": [{"user_id": "u1", "ad_id": "a1", "kind": "click"}]}
                    started = time.monotonic()
                    answer = client.post("/v1/events", json=event)
                    assert answer.status_code == 503 and answer.headers["retry-after"] and time.monotonic() - started < 2
                    started = time.monotonic()
                    for _ in range(5):
                        assert client.post("/v1/rank", json={"requests": [{"user_id": "u1"}]}).status_code == 200
                    assert time.monotonic() - started < 2
                    until = time.monotonic() + 5
                    while client.get("/health/ready").status_code != 503:
                        assert time.monotonic() < until
                        time.sleep(0.05)
                finally:
                    server.send_signal(signal.SIGCONT)
                until = time.monotonic() + 10
                while client.get("/health/ready").status_code != 200:
                    assert time.monotonic() < until
                    time.sleep(0.05)
                assert client.post("/v1/events", json=event).status_code == 200


FULL = """
import resource, signal, sys, json
from pathlib import Path
from adrec.serve.store import Event, StoreError
from adrec.serve.store.sqlite_store import SqliteStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = SqliteStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
kept, faults = 0, 0
for number in range(60):
    batch = [Event(f"u{n}", "a" * 50, "click", n, 1.0, f"e{number}-{n}") for n in range(50)]
    try:
        kept += store.record(batch).new
    except StoreError:
        faults += 1
        break
probed = True
for _ in range(200):
    try:
        store.probe()
    except StoreError:
        probed = False
before = len(store.after(0, 10**6).events)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
kept += store.record(batch).new
store.probe()
print(json.dumps([kept, faults, probed, before, len(store.after(0, 10**6).events)]))
"""


def test_a_full_disk_refuses_a_batch_as_a_whole_and_the_probe_says_so(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "s.sqlite")], capture_output=True, text=True, check=True)
    kept, faults, probed, before, there = json.loads(done.stdout)
    assert faults == 1 and not probed and before == kept - 50 and there == kept


def test_a_store_fault_is_what_readiness_says(folder, tmp_path, monkeypatch):
    from adrec.serve.state import following

    monkeypatch.setattr(following, "_PROBE_SECONDS", 0.05)
    monkeypatch.setattr(following, "_PROBE_AGAIN_SECONDS", 0.05)
    full = threading.Event()
    probe = SqliteStore.probe

    def fails(self):
        if full.is_set():
            raise StoreError("the disk is full")
        probe(self)

    monkeypatch.setattr(SqliteStore, "probe", fails)
    with TestClient(create_app(settings_of(folder, tmp_path / "s.sqlite"))) as client:
        for state, status in ((False, 200), (True, 503), (False, 200)):
            full.set() if state else full.clear()
            until = time.monotonic() + 5
            while client.get("/health/ready").status_code != status:
                assert time.monotonic() < until
                time.sleep(0.02)
        assert client.post("/v1/score", json={"rows": [{"user_id": "u1", "ad_id": "a1"}]}).status_code == 200


def test_a_disk_that_hangs_costs_whoever_needs_it_their_time_and_nobody_else(folder, tmp_path, monkeypatch):
    goes_on = threading.Event()
    goes_on.set()
    for name in ("record", "after", "probe", "put_ad", "epoch"):
        real = getattr(SqliteStore, name)
        monkeypatch.setattr(SqliteStore, name, lambda self, *args, real=real: (goes_on.wait(), real(self, *args))[1])
    settings = settings_of(folder, tmp_path / "s.sqlite", store_timeout_seconds=0.2)
    monkeypatch.setattr("adrec.serve.engine._COUNTING_SECONDS", 1.0)
    event = {"events": [{"user_id": "u1", "ad_id": "a1", "kind": "click", "event_id": "e"}]}
    with client_of(settings) as client, ThreadPoolExecutor(20) as clients:
        assert client.get("/health/ready").status_code == 200
        goes_on.clear()
        waiting = [clients.submit(client.post, "/v1/events", json=event) for _ in range(12)]
        started = time.monotonic()
        for _ in range(10):
            assert client.post("/v1/rank", json={"requests": [{"user_id": "u1"}]}).status_code == 200
            assert (
                client.post("/v1/try", json={"request": {"user_id": "u1"}, "trials": [{"a1": {"bid": 2.0}}]}).status_code == 200
            )
        for answer in (one.result(20) for one in waiting):
            assert answer.status_code == 503 and answer.headers["retry-after"]
        assert time.monotonic() - started < 15
        until = time.monotonic() + 10
        while (answer := client.get("/health/ready")).status_code != 503:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert "has not answered" in answer.json()["detail"]
        goes_on.set()
        while client.get("/health/ready").status_code != 200:
            assert time.monotonic() < until + 10
            time.sleep(0.05)
        answer = client.post("/v1/events", json=event).json()
        assert (answer["recorded"], answer["repeated"]) == (0, 1)  # it was done: sent again it counts once


def test_a_day_is_spent_up_to_a_bound_and_never_turns_into_credit():
    ledger = Ledger(np.full(2, 5), 0, daily=True)
    for _ in range(5):
        ledger.charge(np.zeros(10_000, np.int64), np.full(10_000, 10**15), np.full(10_000, 20_000))
    ledger.charge(np.array([0, 1]), np.array([7, 3]), np.array([20_001, 20_000]))
    days = ledger.spent_on_day.get(np.array([20_000 * 2, 20_001 * 2, 20_000 * 2 + 1]))
    assert days.tolist() == [MOST_SPENT, 7, 3]
