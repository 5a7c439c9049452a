"""Both stores: no acknowledged event is lost on kill -9, repeated events count once, histories are strictly earlier."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from redis_server import needs_redis, redis_server

from adrec.config.inference.serve import StoreConfig
from adrec.errors import AdrecError
from adrec.serve.sqlite_store import SqliteStore
from adrec.serve.store import Event, StoreError, open_store

WRITER = """
import json, sys
from adrec.config.inference.serve import StoreConfig
from adrec.serve.store import Event, open_store
store = open_store(StoreConfig.model_validate(json.loads(sys.argv[1])))
number = store.totals().last
while True:
    store.record([Event(f"u{number % 7}", f"a{number % 11}", "click", number, 0.5, f"e{number}")])
    print(number, flush=True)
    number += 1
"""


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as (_, url):
        yield url


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def config(request, tmp_path):
    values = {"store": str(tmp_path / "store.sqlite")}
    if request.param == "redis":
        values |= {"redis": request.getfixturevalue("redis_url"), "redis_prefix": tmp_path.name}
    return StoreConfig.model_validate(values)


class TestStore:
    def test_events_of_one_moment_keep_the_order_of_recording(self, config):
        store = open_store(config)
        moment = 1_764_000_000_123_456
        store.record([Event("u", f"a|{number}", "click", moment, scenario="s", context='{"slot": 1}') for number in range(12)])
        told = store.after(0, 100)
        assert [one.event.ad_id for one in told] == [f"a|{number}" for number in range(12)]
        assert {(one.event.scenario, one.event.context) for one in told} == {("s", '{"slot": 1}')}

    def test_repeated_events_count_once(self, config):
        store = open_store(config)
        event = Event("u", "a", "click", 1, 0.25, "same")
        assert store.record([event, event]) == 1
        assert store.record([event]) == 0
        assert store.record([event._replace(event_id=None)] * 2) == 2
        assert store.totals().spent == {"a": 0.75}

    def test_all_survives_reopening(self, config):
        store = open_store(config)
        store.put_ad("n1", {"title": "新 ad"})
        store.put_ad("n2", {"title": "x"})
        store.put_ad("n1", {"title": "newer"})
        store.put_ad("n2", None)
        event = Event("用户|x", "n1", "impression", 1, None, "i", "r", 2, 0.25, 0.5, "b")
        store.record([event, event._replace(event_id=None), event._replace(user_id="y", event_id=None)])
        numbers = store.numbers(["用户|x", "y", "nobody"])
        store.close()
        again = open_store(config)
        assert again.numbers(["y", "用户|x"]) == numbers and set(numbers) == {"用户|x", "y"}
        assert again.ads() == {"n1": {"title": "newer"}, "n2": None} and list(again.ads()) == ["n1", "n2"]
        found = again.totals()
        assert sorted(found.impressions) == sorted([(numbers["用户|x"], "n1", 2), (numbers["y"], "n1", 1)])
        assert found.last == 3
        first, *rest = again.after(0, 10)
        assert first == (1, numbers["用户|x"], event) and [one.number for one in rest] == [2, 3]
        assert again.after(1, 1) == rest[:1] and again.after(3, 10) == []

    def test_another_server_sees_what_this_one_recorded(self, config):
        one, other = open_store(config), open_store(config)
        assert other.after(0, 10) == []
        one.record([Event("u", "a", "click", 5)])
        assert [told.event.ad_id for told in other.after(0, 10)] == ["a"]
        other.record([Event("u", "b", "click", 6)])
        assert [told.event.ad_id for told in one.after(0, 10)] == ["a", "b"]

    def test_many_threads_lose_and_double_nothing(self, config):
        store = open_store(config)

        def write(start):
            for number in range(start, start + 60):  # every event is told twice, by two threads
                store.record([Event(f"u{number % 5}", "a", "impression", number, None, f"e{number}")])

        threads = [threading.Thread(target=write, args=(30 * thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told = store.after(0, 1000)
        assert len({one.event.event_id for one in told}) == len(told) == 150
        assert [one.number for one in told] == sorted(one.number for one in told)
        assert sum(count for _, _, count in store.totals().impressions) == 150

    def test_kill_9_loses_no_acknowledged_event(self, config):
        for _ in range(5):
            command = [sys.executable, "-c", WRITER, config.model_dump_json()]
            writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            lines = [writer.stdout.readline() for _ in range(5)]
            time.sleep(0.02)
            os.kill(writer.pid, signal.SIGKILL)
            lines += writer.stdout.readlines()
            acknowledged = int([line for line in lines if line.endswith("\n")][-1])
            store = open_store(config)
            assert {f"e{number}" for number in range(acknowledged + 1)} <= {one.event.event_id for one in store.after(0, 10**6)}
            store.close()


def test_a_file_of_an_earlier_version_is_read_on(tmp_path):
    with sqlite3.connect(tmp_path / "old.sqlite") as old:
        old.executescript(
            "CREATE TABLE users (number INTEGER PRIMARY KEY, user_id TEXT NOT NULL UNIQUE); INSERT INTO users VALUES (1, 'u');"
            "CREATE TABLE events (number INTEGER PRIMARY KEY, event_id TEXT UNIQUE, user INTEGER NOT NULL, ad_id TEXT NOT NULL,"
            " kind TEXT NOT NULL, at INTEGER NOT NULL, price REAL);"
            "INSERT INTO events VALUES (1, NULL, 1, 'a', 'click', 5, 1.0)"
        )
    store = SqliteStore(tmp_path / "old.sqlite")
    assert store.record([Event("u", "b", "click", 6, request_id="r")]) == 1
    assert [(one.event.ad_id, one.event.at) for one in store.after(0, 10)] == [("a", 5), ("b", 6)]


def test_a_store_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "no.sqlite").write_bytes(b"this is no database, but a text of some length" * 10)
    with pytest.raises(StoreError, match=r"no\.sqlite: cannot be used as the event store"):
        SqliteStore(tmp_path / "no.sqlite")
    pytest.importorskip("redis")
    for url, says in (("redis://127.0.0.1:1/0", "cannot be used"), ("http://x", "not an address")):
        with pytest.raises(AdrecError, match=says) as fault:
            open_store(StoreConfig.model_validate({"redis": url}))
        assert "\n" not in str(fault.value)


@needs_redis
def test_kill_9_of_redis_itself_loses_no_acknowledged_event(tmp_path):
    recorded = 0
    port = None
    for _ in range(3):
        with redis_server(tmp_path, port) as (server, url):
            port = int(url.rsplit(":", 1)[1].partition("/")[0])
            store = open_store(StoreConfig.model_validate({"redis": url}))
            assert store.totals().last == recorded
            for _ in range(20):
                recorded += store.record([Event("u", "a", "click", recorded)])
            server.kill()
            with pytest.raises(StoreError, match="cannot be used"):
                store.record([Event("u", "a", "click", 1)])
