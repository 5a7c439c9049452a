"""Both stores: no acknowledged event is lost on kill -9, repeated events count once, histories are strictly earlier."""

import json
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
from adrec.serve.store import Event, StoreError, open_store
from adrec.serve.store.sqlite_store import SqliteStore

WRITER = """
import json, sys
from adrec.config.inference.serve import StoreConfig
from adrec.serve.store import Event, open_store
store = open_store(StoreConfig.model_validate(json.loads(sys.argv[1])))
number = store.after(0, 10**6).last
while True:
    store.record([Event(f"u{number % 7}", f"a{number % 11}", "click", number, 0.5, f"e{number}")])
    print(number, flush=True)
    number += 1
"""


def events_of(piece):
    """A slice as events."""
    rows = piece.events.select(list(Event._fields)).to_pylist()
    return [Event(**row) for row in rows]


def all_of(store):
    return events_of(store.after(0, 10**6))


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
        told = events_of(store.after(0, 100))
        assert [event.ad_id for event in told] == [f"a|{number}" for number in range(12)]
        assert {(event.scenario, event.context) for event in told} == {("s", '{"slot": 1}')}

    def test_repeated_events_count_once(self, config):
        store = open_store(config)
        event = Event("u", "a", "click", 1, 0.25, "same")
        assert store.record([event, event]).new == 1
        assert store.record([event]).new == 0
        assert store.record([event._replace(event_id=None)] * 2).new == 2
        assert [told.event_id for told in all_of(store)] == ["same", None, None]

    def test_all_survives_reopening(self, config):
        store = open_store(config)
        store.put_ad("n1", {"title": "新 ad"})
        store.put_ad("n2", {"title": "x"})
        store.put_ad("n1", {"title": "newer"})
        store.put_ad("n2", None)
        event = Event("用户|x", "n1", "impression", 1, 1 / 3, "i", "r", 2, 0.1, 0.7, "b", None, None, 1e-9)
        last = store.record([event, event._replace(event_id=None), event._replace(user_id="y", event_id=None)]).last
        store.close()
        again = open_store(config)
        assert {ad_id: ad for ad_id, (_, ad) in again.ads().items()} == {"n1": {"title": "newer"}, "n2": None}
        assert list(again.ads()) == ["n1", "n2"]
        newest = max(number for number, _ in again.ads().values())
        assert again.ads(newest) == {} and again.put_ad("n1", None) > newest and list(again.ads(newest)) == ["n1"]
        whole = again.after(0, 10)
        assert events_of(whole)[0] == event and whole.last == last and len(whole.events) == 3
        first = whole.events["number"][0].as_py()
        assert events_of(again.after(first, 1)) == events_of(whole)[1:2]
        assert again.after(last, 10).last == last and len(again.after(last, 10).events) == 0

    def test_another_server_sees_what_this_one_recorded(self, config):
        one, other = open_store(config), open_store(config)
        assert all_of(other) == []
        one.record([Event("u", "a", "click", 5)])
        assert [told.ad_id for told in all_of(other)] == ["a"]
        other.record([Event("u", "b", "click", 6)])
        assert [told.ad_id for told in all_of(one)] == ["a", "b"]

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
        told = store.after(0, 1000).events
        assert len(set(told["event_id"].to_pylist())) == len(told) == 150
        assert told["number"].to_pylist() == sorted(told["number"].to_pylist())

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
            assert {f"e{number}" for number in range(acknowledged + 1)} <= {told.event_id for told in all_of(store)}
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
    assert store.record([Event("u", "b", "click", 6, request_id="r")]).new == 1
    assert [(told.ad_id, told.at) for told in all_of(store)] == [("a", 5), ("b", 6)]


BEFORE = ("user", "ad", "impression", 7, 0.5, "e", "r", 2, 0.25, 0.5, "b", "s", "{}", 3.0)
"""An event as version 3 kept it: nothing was said of conversions."""
AFTER = Event("user", "ad", "click", 8, score_conversion=0.125)


def test_a_file_of_version_3_learns_promises_of_conversions_and_loses_nothing(tmp_path):
    SqliteStore(tmp_path / "s.sqlite").close()
    with sqlite3.connect(tmp_path / "s.sqlite") as old:
        old.execute("ALTER TABLE events DROP COLUMN score_conversion")
        old.execute("INSERT INTO users VALUES (1, 'user')")
        old.execute(f"INSERT INTO events VALUES (1, 'e', 1, {', '.join('?' * 12)})", (*BEFORE[1:5], *BEFORE[6:]))
        old.execute("PRAGMA user_version = 3")
    store = SqliteStore(tmp_path / "s.sqlite")
    store.record([AFTER])
    assert all_of(store) == [Event(*BEFORE), AFTER]


@needs_redis
def test_a_redis_of_version_3_learns_promises_of_conversions_and_loses_nothing(redis_url):
    from redis import Redis

    old = Redis.from_url(redis_url)
    old.set("{three}:version", 3)
    old.xadd("{three}:log", {"event": json.dumps(BEFORE)}, id="1-0")
    old.set("{three}:last", 1)
    store = open_store(StoreConfig.model_validate({"redis": redis_url, "redis_prefix": "three"}))
    store.record([AFTER])
    assert all_of(store) == [Event(*BEFORE), AFTER] and int(old.get("{three}:version")) > 3


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
            assert len(all_of(store)) == recorded
            for _ in range(20):
                recorded += store.record([Event("u", "a", "click", recorded)]).new
            server.kill()
            with pytest.raises(StoreError, match="cannot be used"):
                store.record([Event("u", "a", "click", 1)])
