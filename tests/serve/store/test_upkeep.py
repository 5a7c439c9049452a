"""Retention keeps sums, erasure leaves nothing, backups give everything back; both kinds of store, and one to the other."""

import json
import time

import pytest
from redis_server import needs_redis, redis_server
from typer.testing import CliRunner

from adrec.cli.app import app
from adrec.config.inference.serve import StoreConfig
from adrec.serve.store import Event, events_table, open_store

NOW = int(time.time() * 1e6)
OLD = NOW - 40 * 86_400_000_000
EVENTS = [
    Event("anna", "a1", "impression", OLD, None, "i1", "r1", 1, 0.25, 0.5, "a"),
    Event("anna", "a1", "click", OLD + 1, 0.5, "c1", "r1"),
    Event("anna", "a2", "impression", NOW, None, "i2", "r2", 1, 0.5, 1.0, "b"),
    Event("berta", "a1", "impression", OLD, None, "i3"),
    Event("berta", "a1", "conversion", NOW, 2.0, "v1", value=9.0),
]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def options(request, tmp_path):
    if request.param == "sqlite":
        yield ["--store", str(tmp_path / "s.sqlite")]
        return
    with redis_server(tmp_path) as (_, url):
        yield ["--redis", url]


def store_of(options):
    return open_store(StoreConfig.model_validate({options[0].removeprefix("--"): options[1]}))


def adrec(*words):
    done = CliRunner().invoke(app, ["events", "--json", "--quiet", *words])
    return done.exit_code, done.output


def events_of(store):
    columns = events_table([]).column_names
    return [Event(**row) for row in store.after(0, 100).events.select(columns).to_pylist()]


def test_old_events_go_and_their_sums_and_numbers_stay(options):
    store = store_of(options)
    last = store.record(EVENTS).last
    code, out = adrec(*options, "--keep-days", "30")
    assert code == 0 and json.loads(out)["upkeep"] == {"taken away, their sums kept": 3}
    assert events_of(store) == [EVENTS[2], EVENTS[4]]
    kept = store.kept()
    assert sorted(kept.impressions) == [("anna", "a1", 1), ("berta", "a1", 1)] and kept.spent == {"a1": 500_000}
    adrec(*options, "--keep-days", "0.000001")
    assert events_of(store) == [] and store.kept().spent == {"a1": 2_500_000}
    assert store.after(last, 10).last == last
    assert store.record(EVENTS[:1]).last > last and len(store.after(last, 10).events) == 1
    store.close()


def test_an_erased_user_is_nowhere(options, tmp_path):
    store = store_of(options)
    store.record(EVENTS)
    adrec(*options, "--keep-days", "30")
    code, out = adrec(*options, "--erase-user", "anna")
    assert code == 0 and json.loads(out)["upkeep"] == {"erased": 1}
    assert {event.user_id for event in events_of(store)} == {"berta"}
    assert [user for user, _, _ in store.kept().impressions] == ["berta"] and store.kept().spent == {"a1": 500_000}
    store.close()
    assert not any(b"anna" in file.read_bytes() for file in tmp_path.glob("s.sqlite*"))


def test_a_backup_gives_everything_back_to_either_kind(options, tmp_path):
    store = store_of(options)
    store.record(EVENTS)
    store.put_ad("n1", {"title": "新 ad"})
    store.put_ad("a9", None)
    adrec(*options, "--keep-days", "30")
    file = str(tmp_path / "backup.sqlite")
    assert adrec(*options, "--backup", file)[0] == 0
    again = ["--store", str(tmp_path / "again.sqlite")]
    code, out = adrec(*again, "--restore", file)
    assert code == 0 and json.loads(out)["upkeep"] == {"restored": 2}
    other = store_of(again)
    assert events_of(other) == events_of(store) and other.kept() == store.kept()
    assert [(ad_id, ad) for ad_id, (_, ad) in other.ads().items()] == [("n1", {"title": "新 ad"}), ("a9", None)]
    for store_here in (store, other):
        store_here.close()
    assert "empty" in adrec(*again, "--restore", file)[1] and "there already" in adrec(*options, "--backup", file)[1]
    assert adrec(*options)[0] == 2 or "give" in adrec(*options)[1]
