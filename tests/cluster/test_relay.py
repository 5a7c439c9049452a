"""What a process far away says, said here: the same calls in the same order, on whatever terminal the command has."""

import json

from adrec.cluster import relay
from adrec.cluster.relay import Relay, Replay


class Heard:
    """A terminal that writes down what it is told."""

    def __init__(self):
        self.said = []

    def progress(self, description, total=None, *, unit="rows", done=0):
        heard = self

        class Bar:
            def __enter__(self):
                heard.said.append(("open", description, total, unit, done))
                return lambda steps=1, note="": heard.said.append(("advance", description, steps, note))

            def __exit__(self, *fault):
                heard.said.append(("close", description))

        return Bar()

    def __getattr__(self, kind):
        return lambda message: self.said.append((kind, message))


def lines_of(file):
    return file.read_text(encoding="utf-8").splitlines()


def test_what_is_said_far_away_is_said_here(tmp_path, monkeypatch):
    monkeypatch.setattr(relay, "_PAUSE_SECONDS", 0.0)
    far = Relay(tmp_path / "lines")
    far.tell("先说一句\n")
    with far.progress("outer", 10, unit="steps", done=4) as advance, far.progress("inner") as inner:
        advance(3, note="loss 0.5")
        inner()
        far.warn("look out")
    far.note("done")
    here = Heard()
    with Replay(here) as replay:
        replay.say(lines_of(tmp_path / "lines"))
    assert here.said == [
        ("tell", "先说一句\n"), ("open", "outer", 10, "steps", 4), ("open", "inner", None, "rows", 0),
        ("advance", "outer", 3.0, "loss 0.5"), ("advance", "inner", 1.0, ""), ("warn", "look out"),
        ("advance", "inner", 0.0, ""), ("close", "inner"), ("advance", "outer", 0.0, ""), ("close", "outer"), ("note", "done"),
    ]  # fmt: skip


def test_many_steps_are_few_words_and_none_is_lost(tmp_path):
    far = Relay(tmp_path / "lines")
    with far.progress("rows", 100_000) as advance:
        for _ in range(100_000):
            advance()
    words = [json.loads(line) for line in lines_of(tmp_path / "lines")]
    assert len(words) < 20 and sum(word[2] for word in words if word[0] == "advance") == 100_000


def test_bars_of_a_process_that_died_are_closed(tmp_path):
    far, here = Relay(tmp_path / "lines"), Heard()
    far.progress("rows", 10).__enter__()
    with Replay(here) as replay:
        replay.say(lines_of(tmp_path / "lines"))
    assert here.said[-1] == ("close", "rows")


def test_other_processes_than_the_first_say_nothing(tmp_path, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    far = Relay(tmp_path / "lines")
    far.tell("a word")
    with far.progress("rows", 10) as advance:
        advance(2)
    assert lines_of(tmp_path / "lines") == []
