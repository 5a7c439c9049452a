"""Passes go first: what stands back goes on when they end, or after its patience; what a server does beside stands back."""

import threading
import time

import pytest

from adrec.serve.turns import Turns


def test_work_beside_waits_for_the_end_of_a_pass_and_not_for_ever():
    turns, done = Turns(patience_seconds=5.0), threading.Event()

    def beside():
        turns.stand_back()
        done.set()

    turns.stand_back()  # nobody to wait for
    with turns.first():
        thread = threading.Thread(target=beside)
        thread.start()
        assert not done.wait(0.1)
    assert done.wait(2)
    thread.join()
    turns = Turns(patience_seconds=0.05)
    with pytest.raises(ZeroDivisionError), turns.first():
        began = time.monotonic()
        turns.stand_back()
        assert 0.04 < time.monotonic() - began < 1
        1 / 0  # noqa: B018
    began = time.monotonic()
    turns.stand_back()  # a pass that failed is over
    assert time.monotonic() - began < 0.04


def test_explanations_changes_reloads_and_events_stand_back(tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    from served import make_bundle, settings_of

    from adrec.serve.engine import Engine
    from adrec.serve.intake.messages import AdIn, EventIn, ExplainRequest

    make_bundle(tmp_path)
    engine = Engine(settings_of(tmp_path, tmp_path / "s.sqlite"))
    stood = []
    monkeypatch.setattr(engine.turns, "stand_back", lambda: stood.append(1))
    deeds = {
        "explain": lambda: engine.explain(ExplainRequest(user={"user_id": "u1"}, ad_id="a1")),
        "put": lambda: engine.put_ad("a1", AdIn(title="guitar", bid=1.0)),
        "reload": lambda: engine.reload(None),
        "events": lambda: engine.record([EventIn(user_id="u1", ad_id="a1", kind="click")]),
    }
    for name, deed in deeds.items():
        stood.clear()
        deed()
        assert len(stood) >= 2, name
    engine.close()
