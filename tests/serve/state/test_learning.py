"""Live events move counters and histories of the next request, with a log behind the server and without one."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served import make_bundle, settings_of

from adrec.asof.keys import codes_of
from adrec.serve.engine import Engine
from adrec.serve.intake.messages import EventIn, ScoreRequest

LATER = 1_800_000_000_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("learning")
    make_bundle(path)
    return path


def clicked(engine, user, moment=LATER):
    """The ads that a request of the user would find in the history, after the server has caught up."""
    engine.score([ScoreRequest(rows=[{"user_id": user, "ad_id": "a1"}])])
    found = engine.live.ranker.known.asof.clicks(codes_of(pa.array([user]), "user_id"), np.array([moment]), 5)
    return engine.live.ranker.ads.ids.take(pa.array(found.ads)).to_pylist()


def event(kind, ad, at, user="u7", **more):
    return EventIn(user_id=user, ad_id=ad, kind=kind, at=np.datetime64(at, "us").item(), **more)


def test_a_server_without_a_log_learns_from_events(folder, tmp_path):
    pq.write_table(pq.read_table(folder / "prepared" / "ads.parquet"), tmp_path / "ads.parquet")
    engine = Engine(settings_of(folder, tmp_path / "s.sqlite", prepared=None, ads=str(tmp_path / "ads.parquet")))
    assert clicked(engine, "u7") == []
    engine.record([event("impression", "a3", LATER - 9), event("click", "a3", LATER - 8), event("click", "a5", LATER - 5)])
    assert clicked(engine, "u7") == ["a3", "a5"]
    assert clicked(engine, "u7", LATER - 8) == [] and clicked(engine, "u8") == []
    again = Engine(settings_of(folder, tmp_path / "s.sqlite", prepared=None, ads=str(tmp_path / "ads.parquet")))
    assert clicked(again, "u7") == ["a3", "a5"]


def test_events_inside_the_log_are_in_it_already(folder, tmp_path):
    engine = Engine(settings_of(folder, tmp_path / "s.sqlite"))
    before = clicked(engine, "u7")
    last = engine.live.ranker.known.asof.last_moment
    engine.record([event("click", "a3", last), event("click", "a9", last - 1), event("click", "zz", LATER - 9)])
    assert clicked(engine, "u7") == before
    engine.record([event("click", "a9", last + 1)])
    assert clicked(engine, "u7") == [*before, "a9"][-5:]
