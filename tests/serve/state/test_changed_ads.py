"""An ad is added, changed or taken down by itself: the catalogue is then what making all of it anew gives."""

import shutil
import time

import numpy as np
import pyarrow as pa
import pytest
from served import make_bundle, settings_of

from adrec.serve.engine import Engine
from adrec.serve.intake.messages import AdIn, EventIn, RankRequest, ScoreRequest
from adrec.serve.state.live import Live
from adrec.serve.state.tally import user_numbers

CHANGES = [
    ("n1", {"title": "guitar concert", "category": "new kind", "bid": 3.0, "advertiser_id": "x"}),
    ("a7", {"title": "rose soil spade", "category": "c2", "bid": 2.0, "budget": 9.0, "advertiser_id": "y"}),
    ("a0", {"title": "吉他 音乐会 zither", "category": "newer kind", "bid": 1.0, "ends_at": "2200-01-01T00:00:00Z"}),
    ("a9", None),
    ("n2", {"title": "beach hotel", "category": "c0", "advertiser_id": "y"}),
    ("n2", None),
    ("n1", {"title": "zither concert", "category": "c1", "bid": 4.0, "advertiser_id": "z"}),
    ("a9", {"title": "oven pasta", "category": "c1", "bid": 2.5}),
    ("n3", {"title": "loan stock", "bid": 0.5, "advertiser_id": "x"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("changes")
    make_bundle(made)
    return made


def apply(engine, changes):
    for ad_id, ad in changes:
        engine.delete_ad(ad_id) if ad is None else engine.put_ad(ad_id, AdIn(**ad))


def asked(engine):
    rank = RankRequest(requests=[{"user_id": "u3"}, {"user_id": "stranger", "scenario": "search", "query": "zither"}])
    lists = engine.rank([rank])[0]["lists"]
    score = ScoreRequest(rows=[{"user_id": "u3", "ad_id": ad_id} for ad_id in ("n1", "a7", "a0", "a9", "n3", "a1")])
    shown = [[(ad["ad_id"], ad["price"], ad["title"]) for ad in one["ads"]] for one in lists]
    return shown, [row["score"] for row in engine.score([score])[0]["rows"]]


def test_changes_one_by_one_are_those_made_at_once(folder, tmp_path, monkeypatch):
    engine = Engine(settings_of(folder, tmp_path / "s.sqlite"))
    apply(engine, CHANGES[:1])  # the first one brings columns that the catalogue lacks
    monkeypatch.setattr(Live, "load", lambda *rest, **more: pytest.fail("a change of one ad makes the catalogue anew"))
    apply(engine, CHANGES[1:])
    monkeypatch.undo()
    whole = engine._load("a", engine._bundles["a"])
    ours, theirs = engine.live.ranker, whole.ranker
    assert ours.ads.ids.tolist() == theirs.ads.ids.tolist() and engine.live.row_of_ad == whole.row_of_ad
    assert engine.live.deleted == whole.deleted == {"n2"}
    for name in ("bid", "budget", "starts", "ends", "chinese"):
        np.testing.assert_array_equal(getattr(ours.ads, name), getattr(theirs.ads, name))
    for code, names in (("category", "categories"), ("advertiser", "advertisers")):
        spelled = [
            [None if row < 0 else getattr(side.ads, names)[int(row)].as_py() for row in getattr(side.ads, code)]
            for side in (ours, theirs)
        ]
        assert spelled[0] == spelled[1]
    np.testing.assert_allclose(ours.ad_vectors, theirs.ad_vectors, atol=1e-6)
    np.testing.assert_allclose(ours.unit_vectors, theirs.unit_vectors, atol=1e-6)
    np.testing.assert_array_equal(ours.catalogs.ads.categorical, theirs.catalogs.ads.categorical)
    np.testing.assert_array_equal(ours.catalogs.cold_ad, theirs.catalogs.cold_ad)
    for left, right in zip(ours.finder.rules, theirs.finder.rules, strict=True):
        np.testing.assert_array_equal(left[0].allowed, right[0].allowed)
    before = asked(engine)
    assert before[0][1] and {ad for ad, _, _ in before[0][1]} <= {"n1", "a0"}  # those with the new word
    again = asked(Engine(settings_of(folder, tmp_path / "s.sqlite")))
    assert again[0] == before[0]
    np.testing.assert_allclose(again[1], before[1], atol=1e-6)
    engine.reload(None)
    assert asked(engine)[0] == before[0]


def test_the_fortieth_change_costs_what_the_first_did(folder, tmp_path):
    engine = Engine(settings_of(folder, tmp_path / "s.sqlite"))  # two policies that allow the same ads
    apply(engine, CHANGES[:1])
    seconds = []
    for number in range(40):
        began = time.process_time()
        apply(engine, [(f"n{number % 3}", {"title": f"guitar {number}", "bid": 1.0})])
        seconds.append(time.process_time() - began)
    assert np.median(seconds[-10:]) < 3 * np.median(seconds[:10])


def test_what_was_counted_stays_with_its_campaign_through_changes_and_reloads(folder, tmp_path):
    policies = {"default": {"top_n": 5, "limits": {"campaign": 2}, "rules": {"clicked": "keep"}}}
    engine = Engine(settings_of(folder, tmp_path / "s.sqlite", policies=policies))
    apply(engine, [("n1", {"title": "guitar", "advertiser_id": "x"}), ("n2", {"title": "guitar", "advertiser_id": "y"})])
    engine.record([EventIn(user_id="u1", ad_id="n2", kind="impression")] * 2)

    def served(ad_id):
        return bool(engine.rank([RankRequest(requests=[{"user_id": "u3", "candidates": [ad_id]}])])[0]["lists"][0]["ads"])

    assert served("n1") and not served("n2")
    apply(engine, [("a0", {"title": "rose", "advertiser_id": "first"}), ("n1", {"title": "beach", "advertiser_id": "z"})])
    assert served("n1") and not served("n2") and served("a0")
    engine.reload(None)
    assert served("n1") and not served("n2") and served("a0")
    row = engine.live.row_of_ad["n2"]
    assert engine.tally.ledger.seen(user_numbers(pa.array(["u1"])), np.array([row])).tolist() == [2]


def test_ads_change_where_the_folders_are_gone(folder, tmp_path):
    for name in ("bundle", "prepared"):
        shutil.copytree(folder / name, tmp_path / name)
    engine = Engine(settings_of(tmp_path, tmp_path / "s.sqlite"))
    for name in ("bundle", "prepared"):
        shutil.rmtree(tmp_path / name)
    apply(engine, CHANGES)
    assert "zither concert" in [title for _, _, title in asked(engine)[0][1]]
