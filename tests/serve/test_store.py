"""No acknowledged event is lost on kill -9; repeated events count once; histories are strictly earlier, newest last."""

import os
import signal
import subprocess
import sys
import time

from adrec.serve.store import Event, SqliteStore

WRITER = """
import sys
from pathlib import Path
from adrec.serve.store import Event, SqliteStore
store = SqliteStore(Path(sys.argv[1]))
number = store.count()
while True:
    store.record([Event(f"u{number % 7}", f"a{number % 11}", "click", number, 0.5, f"e{number}")])
    print(number, flush=True)
    number += 1
"""


def test_history_is_strictly_earlier_and_newest_last(tmp_path):
    store = SqliteStore(tmp_path / "store.sqlite")
    store.record([Event("u", f"a{at}", "click", at) for at in (5, 1, 3, 9)] + [Event("u", "b", "impression", 2)])
    assert store.clicks("u", 9, 2) == [("a3", 3), ("a5", 5)]
    assert store.clicks("nobody", 9, 2) == []


def test_repeated_events_count_once(tmp_path):
    store = SqliteStore(tmp_path / "store.sqlite")
    event = Event("u", "a", "click", 1, 0.25, "same")
    assert store.record([event, event]) == [event]
    assert store.record([event]) == []
    assert store.spent() == {"a": 0.25}


def test_ads_and_numbers_survive_reopening(tmp_path):
    store = SqliteStore(tmp_path / "store.sqlite")
    numbers = store.user_numbers(["x", "y"])
    store.put_ad("n1", {"title": "新 ad"})
    store.put_ad("n2", None)
    store.record([Event("x", "n1", "impression", 1), Event("x", "n1", "impression", 2)])
    store.close()
    again = SqliteStore(tmp_path / "store.sqlite")
    assert again.user_numbers(["y", "x"]) == numbers
    assert again.ads() == {"n1": {"title": "新 ad"}, "n2": None}
    assert again.impressions() == [(numbers["x"], "n1", 2)]


def test_kill_9_loses_no_acknowledged_event(tmp_path):
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "store.sqlite")], stdout=subprocess.PIPE, text=True
        )
        lines = [writer.stdout.readline() for _ in range(5)]
        time.sleep(0.02)
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.readlines()
        acknowledged = int([line for line in lines if line.endswith("\n")][-1])
        store = SqliteStore(tmp_path / "store.sqlite")
        assert store.count() > acknowledged
        store.close()
