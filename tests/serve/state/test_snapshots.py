"""A restart goes on from the store's snapshot and knows what counting all events again would have told."""

import shutil
import sqlite3
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("fastapi")
from redis_server import needs_redis, redis_server
from served import make_counted_bundle, settings_of

from adrec.serve import engine as engines
from adrec.serve.engine import Engine
from adrec.serve.intake.messages import AdIn, EventIn
from adrec.serve.store import Event, open_store
from adrec.serve.store.contract import NUMBER

LATER = 1_800_000_000_000_000
POLICIES = {"default": {"limits": {"user_ad": 3, "user_lists": 9, "user_campaign": 5, "budget_period": "day"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("snapshots")
    make_counted_bundle(made)
    return made


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def settings(request, folder, tmp_path):
    changes = {"policies": POLICIES}
    if request.param == "sqlite":
        yield settings_of(folder, tmp_path / "s.sqlite", **changes)
        return
    with redis_server(tmp_path) as (_, url):
        yield settings_of(folder, tmp_path / "s.sqlite", redis=url, **changes)


@pytest.fixture(autouse=True)
def snapshots_of_few_events(monkeypatch):
    monkeypatch.setattr(engines, "_SLICE", 100)


def events_of(ads, count=700, seed=0):
    """Impressions, of some of which clicks and conversions come later, in the order in which they happened."""
    rng = np.random.default_rng(seed)
    events: list[EventIn] = []
    clicked: set[object] = set()
    while len(events) < count:
        number = len(events)
        pair = seed * 1_000 + number  # a user sees an ad once: of several impressions the click would be the newest's
        told = {
            "at": datetime.fromtimestamp((LATER + seed * 10**12 + number * 10**8) / 10**6, UTC),
            "price": float(rng.integers(3)) / 4,
        }
        if number and rng.random() < 0.4:
            before, kind = events[rng.integers(number)], "click"
            if (before.request_id, before.ad_id) in clicked:
                kind = "conversion"
            clicked.add((before.request_id, before.ad_id))
            events.append(before.model_copy(update={**told, "kind": kind, "value": 2.0 if kind == "conversion" else None}))
            continue
        events.append(
            EventIn(
                user_id=f"u{pair % 120}", ad_id=ads[pair // 120 % len(ads)], kind="impression", score=0.25,
                scenario=str(rng.choice(["search", "social"])), request_id=f"r{pair}",
                arm=str(rng.choice(["a", "b"])), **told,
            )
        )  # fmt: skip
    return events


def counted_anew(settings, monkeypatch):
    """What a server knows that counts every event of the store."""
    with monkeypatch.context() as patched:
        patched.setattr("adrec.serve.state.snapshot.Snapshots.restore", lambda *_: False)
        return Engine(settings)


def known(engine):
    """All that the tally holds, by name, of ads and campaigns by their identifiers."""
    state = engine.tally.state(engine.live)
    ids = engine.live.ranker.ads.ids
    room = state["ledger/room"][0]
    told = {name: values for name, values in state.items() if not name.startswith(("about/ads", "about/camp", "asof/sums"))}
    for by, sums in engine.tally.asof._shared.live.sums.items():  # as they answer: how they lie there depends on the slices
        keys = told[f"keys {by}"] = sums.flat().keys
        seen = sums.peek(keys, np.full(len(keys), LATER + 10**14))
        told |= {f"{name} {by}": values for name, values in seen._asdict().items() if values is not None}
    for name in [name for name in ("user_ad", "spent_on_day") if f"ledger/{name}_key" in told]:
        key = told.pop(f"ledger/{name}_key")
        count = told.pop(f"ledger/{name}_count")
        names = ids.take(pa.array(key % room)).to_pylist()
        told[name] = sorted(zip((key // room).tolist(), names, count.tolist(), strict=True))
    for kind in ("clicks", "skips"):
        told[f"asof/{kind}/ads"] = ids.take(pa.array(told[f"asof/{kind}/ads"])).to_pylist()
    return told


def assert_same(one, other):
    one, other = known(one), known(other)
    assert one.keys() == other.keys()
    for name, values in one.items():
        if isinstance(values, list):
            assert values == other[name], name
        else:
            np.testing.assert_allclose(values, other[name], rtol=1e-9, err_msg=name)


def test_a_restart_from_a_snapshot_knows_what_all_events_say(settings, monkeypatch):
    engine = Engine(settings)
    for name in ("n1", "n2", "n3"):
        engine.put_ad(name, AdIn(title=f"guitar {name}", bid=1.0, budget=9.0, advertiser_id=name))
    ads = [*engine.live.ranker.ads.ids.to_pylist()[:20], "n1", "n2", "n3"]
    engine.record(events_of(ads))
    engine.put_ad("n1", AdIn(title="guitar again", bid=2.0, budget=9.0, advertiser_id="n1"))  # stands last at the next start
    engine.close()
    read = []
    store = type(engine.store)
    after = store.after
    monkeypatch.setattr(store, "after", lambda self, number, limit: read.append(number) or after(self, number, limit))
    again = Engine(settings)
    assert read == [700] and again.tally.last == 700
    assert_same(again, counted_anew(settings, monkeypatch))
    assert again.live.ranker.ads.ids.to_pylist()[-3:] == ["n2", "n3", "n1"]
    more = events_of(ads, 250, seed=1)  # and goes on from there
    again.record(more)
    assert_same(again, counted_anew(settings, monkeypatch))
    again.close()
    third = Engine(settings)
    assert third.tally.last == 950
    third.record(events_of(ads, 30, seed=2))
    assert_same(third, counted_anew(settings, monkeypatch))


def test_a_snapshot_is_made_while_the_server_runs(settings, monkeypatch):
    from adrec.serve.state import snapshot

    monkeypatch.setattr(snapshot, "_OFTEN", 300)
    monkeypatch.setattr(snapshot.Snapshots.follow, "__defaults__", (300,))
    engine = Engine(settings)
    ads = engine.live.ranker.ads.ids.to_pylist()[:20]
    for seed in range(4):
        engine.record(events_of(ads, 200, seed))
        engine._snapshots.close()
    # killed here
    again = Engine(settings)
    assert again._snapshots._last == 800
    assert_same(again, counted_anew(settings, monkeypatch))


class TestRefused:
    """What the snapshot was made of is no more so: all events are counted."""

    @pytest.fixture
    def engine(self, settings):
        engine = Engine(settings)
        engine.record(events_of(engine.live.ranker.ads.ids.to_pylist()[:20]))
        engine.close()
        return engine

    def restarted(self, settings):
        engine = Engine(settings)
        return engine._snapshots._saved is not None, engine

    def test_not_by_a_restart_alone(self, engine, settings):
        assert self.restarted(settings)[0]

    @pytest.mark.parametrize("limits", [{"user_lists": 9}, {"budget_period": "day"}])
    def test_by_other_settings(self, engine, settings, limits, monkeypatch):
        other = settings.model_validate(settings.model_dump() | {"policies": {"default": {"limits": limits}}})
        restored, again = self.restarted(other)
        assert not restored
        assert_same(again, counted_anew(other, monkeypatch))

    def test_by_other_files(self, engine, settings, folder, tmp_path, monkeypatch):
        shutil.copytree(folder / "prepared", tmp_path / "prepared")
        moved = settings.model_validate(settings.model_dump() | {"prepared": str(tmp_path / "prepared")})
        assert self.restarted(moved)[0]  # the same, elsewhere
        ads = pq.read_table(tmp_path / "prepared" / "ads.parquet")
        pq.write_table(ads.slice(3), tmp_path / "prepared" / "ads.parquet")
        restored, again = self.restarted(moved)
        assert not restored
        assert_same(again, counted_anew(moved, monkeypatch))

    def test_by_another_version(self, engine, settings, monkeypatch):
        monkeypatch.setattr("adrec.serve.state.snapshot.VERSION", 99)
        assert not self.restarted(settings)[0]

    def test_by_events_that_went_away(self, engine, settings, monkeypatch):
        store = open_store(settings)
        assert len(store.erase("u7").events) > 0
        restored, again = self.restarted(settings)
        assert not restored
        assert_same(again, counted_anew(settings, monkeypatch))
        again.close()
        assert self.restarted(settings)[0]
        store.drop_before(LATER + 10**11)
        assert not self.restarted(settings)[0]
        store.close()

    def test_by_damage(self, engine, settings, tmp_path, monkeypatch):
        if settings.redis is None:
            with sqlite3.connect(settings.store) as damaged:
                damaged.execute("UPDATE snapshot_pieces SET content = zeroblob(length(content)) WHERE place = 0")
        else:
            engine.store._binary.hset("{adrec}:snapshot", "piece-0", b"\0" * 100)
        restored, again = self.restarted(settings)
        assert not restored
        assert_same(again, counted_anew(settings, monkeypatch))

    @pytest.mark.parametrize("content", [b"", b"{}", b"\x08\0\0\0\0\0\0\0{}      "])
    def test_by_arrays_that_are_none(self, engine, settings, content, monkeypatch):
        store = open_store(settings)
        assert store.put_snapshot(engine.tally.definition, store.epoch(), content)
        restored, again = self.restarted(settings)
        assert not restored
        assert_same(again, counted_anew(settings, monkeypatch))

    def test_by_sums_of_an_earlier_epoch(self, engine, settings):
        store = open_store(settings)
        epoch = store.epoch()
        store.erase("u7")
        assert not store.put_snapshot(engine.tally.definition, epoch, b"sums of whom nobody knows any more")
        assert store.snapshot(engine.tally.definition) is None


def test_pieces_of_a_snapshot_that_was_not_finished_go_away(folder, tmp_path):
    store = open_store(settings_of(folder, tmp_path / "s.sqlite"))
    store.put_snapshot("d", 0, bytes(5_000_000))
    with sqlite3.connect(tmp_path / "s.sqlite") as other:
        other.execute("INSERT INTO snapshot_pieces VALUES ('killed', 0, x'00')")
    content = np.random.default_rng(0).bytes(5_000_000)
    store.put_snapshot("d", 0, content)
    assert store.snapshot("d") == content and store.snapshot("e") is None
    with sqlite3.connect(tmp_path / "s.sqlite") as other:
        assert other.execute("SELECT count(*), count(DISTINCT snapshot) FROM snapshot_pieces").fetchone() == (3, 1)


def test_events_behind_the_snapshot_count_once_and_all(settings, monkeypatch):
    engine = Engine(settings)
    ads = engine.live.ranker.ads.ids.to_pylist()[:20]
    engine.record(events_of(ads))
    engine.close()
    store = open_store(settings)  # of another server, or of this one before it was killed
    store.record([Event("u1", ads[0], "click", LATER + number, event_id=f"e{number}") for number in range(50)])
    store.close()
    again = Engine(settings)
    assert again.tally.last == again.store.after(0, 10**6).events[NUMBER][-1].as_py() == 750
    assert_same(again, counted_anew(settings, monkeypatch))
