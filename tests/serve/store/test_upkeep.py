"""Retention keeps sums, erasure leaves nothing, backups give everything back; both kinds of store, and one to the other."""

import json
import time
from functools import partial

import pytest
from redis_server import needs_redis, redis_server
from typer.testing import CliRunner

from adrec.cli.app import app
from adrec.config.inference.serve import StoreConfig
from adrec.prepare.staging.privacy import pseudonym
from adrec.schema import NOBODY
from adrec.serve.store import Event, Totals, events_table, open_store

KEY = b"0123456789abcdef0123456789abcdef"
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


def test_raw_names_of_before_become_pseudonyms_and_are_nowhere_else(options, tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_PRIVACY_KEY", KEY.decode())
    store = store_of(options)
    name = partial(pseudonym, key=KEY)
    store.record(EVENTS)
    store.keep(Totals([("anna", "a1", 3), (name("anna"), "a1", 2), ("carla", "a9", 1)], {}))
    # Since then the server keeps pseudonyms; one event was sent again, and counts once.
    later = [
        Event(name("anna"), "a2", "click", NOW + 5, request_id=name("r2")),
        Event(name("anna"), "a2", "impression", NOW, None, name("i2"), name("r2")),
        Event(NOBODY, "a3", "impression", NOW + 6),
    ]
    last, epoch = store.record(later).last, store.epoch()
    code, out = adrec(*options, "--pseudonymise")
    assert code == 0 and json.loads(out)["upkeep"] == {"under pseudonyms now": 5}
    held = events_of(store)
    assert {event.user_id for event in held} == {name("anna"), name("berta"), NOBODY}
    before = {name(event.event_id): event for event in EVENTS}
    for event in held:
        if event.event_id is not None:
            was = before[event.event_id]
            assert event.request_id == (None if was.request_id is None else name(was.request_id))
            assert event[1:5] == was[1:5] and event[7:] == was[7:]
    assert len(held) == 7 and sorted(event.ad_id for event in held if event.event_id is None) == ["a2", "a3"]
    assert sorted(store.kept().impressions) == sorted([(name("anna"), "a1", 5), (name("carla"), "a9", 1)])
    assert store.epoch() > epoch  # servers count anew
    assert store.record([EVENTS[0]._replace(event_id=name("i1"))]).new == 0 and store.record(later[:1]).last > last
    assert json.loads(adrec(*options, "--pseudonymise")[1])["upkeep"] == {"under pseudonyms now": 0}
    assert adrec(*options, "--backup", str(tmp_path / "b.sqlite"))[0] == 0
    store.close()
    for file in tmp_path.glob("**/*"):
        if file.is_file() and ".aof" not in file.name:
            content = file.read_bytes()
            assert not any(word in content for word in (b"anna", b"berta", b"carla")), file


def test_pseudonyms_need_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("ADREC_PRIVACY_KEY", raising=False)
    store_of(["--store", str(tmp_path / "s.sqlite")]).close()
    code, out = adrec("--store", str(tmp_path / "s.sqlite"), "--pseudonymise")
    assert code == 1 and "ADREC_PRIVACY_KEY" in out


@needs_redis
def test_what_is_recorded_while_names_change_is_kept_under_its_name(tmp_path):
    with redis_server(tmp_path) as (_, url):
        store, other = (store_of(["--redis", url]) for _ in range(2))
        store.record([Event(f"u{number}", "a", "click", NOW, event_id=f"e{number}") for number in range(30)])
        late = iter(range(3))

        def named(name):
            for number in late:  # three more while the log is copied
                other.record([Event(f"late{number}", "a", "click", NOW, event_id=f"l{number}")])
                break
            return name if name.startswith("new-") else f"new-{name}"

        assert store.rename(named) == 33
        held = events_of(store)
        assert len(held) == 33 and all(event.user_id.startswith("new-") for event in held)
        assert [event.event_id for event in held[30:]] == ["new-l0", "new-l1", "new-l2"]


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
