"""Acts told a few at a time are those of one log, in any order, and what is taken back is gone; sums in layers are one sum."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.asof.history import EventLog
from adrec.asof.recent import RecentLog
from adrec.asof.sums import KeyedSums

ACT = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 30))
PIECES = st.lists(st.lists(ACT, max_size=6), max_size=12)


def log_of(acts):
    user, ad, time = (np.array([act[part] for act in acts], np.int64) for part in range(3))
    return EventLog.of(user, ad, time)


@settings(max_examples=150, deadline=None)
@given(PIECES, PIECES, st.integers(1, 8))
def test_any_cutting_gives_the_histories_of_a_list(pieces, taken, limit):
    recent, acts = RecentLog(), []
    for number, piece in enumerate(pieces):
        recent.add(log_of(piece))
        acts += [(user, ad, time, len(acts) + place) for place, (user, ad, time) in enumerate(piece)]
        for user, ad, time in taken[number] if number < len(taken) else []:
            recent.take_back(np.array([user]), np.array([ad]), np.array([time]))
            same = [act for act in acts if act[:2] == (user, ad) and act[2] <= time]
            if same:  # of equal moments which one goes is the same to every reader
                newest = max(act[2] for act in same)
                acts.remove(next(act for act in same if act[2] == newest))
    for user in range(4):
        for moment in (0, 7, 15, 31):
            earlier = sorted((time, ad) for who, ad, time, _ in acts if who == user and time < moment)
            found = recent.histories(np.array([user]), np.array([moment]), limit)
            assert found.times.tolist() == [time for time, _ in earlier][-limit:]
            every = recent.histories(np.array([user]), np.array([moment]), 1000)
            assert sorted(zip(every.times.tolist(), every.ads.tolist(), strict=True)) == earlier
            assert int(every.lengths[0]) == len(earlier)


def test_an_act_is_moved_a_few_times_however_many_come_one_by_one(monkeypatch):
    moved = []
    merged = EventLog.merged
    monkeypatch.setattr(
        EventLog, "merged", lambda self, other: moved.append(len(self.ads) + len(other.ads)) or merged(self, other)
    )
    recent = RecentLog()
    for number in range(2000):
        recent.add(log_of([(number % 7, number % 5, number)]))
    assert len(recent) == 2000 and sum(moved) < 2000 * 2 * np.log2(2000)


def test_a_take_back_finds_the_newest_act_in_whichever_layer_it_lies():
    recent = RecentLog()
    recent.add(log_of([(1, 4, 10), (1, 4, 20), (1, 5, 30), (2, 4, 20), *[(9, 9, time) for time in range(40)]]))
    recent.add(log_of([(1, 4, 40)]))
    recent.take_back(np.array([1, 3]), np.array([4, 4]), np.array([25, 25]))
    found = recent.histories(np.array([1, 2]), np.array([99, 99]), 10)
    assert found.ads.tolist() == [4, 5, 4, 4] and found.times.tolist() == [10, 30, 40, 20]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=12), min_size=1, max_size=20))
def test_sums_in_many_layers_are_those_of_one(pieces):
    layered, whole = KeyedSums(1, (2.0,), first=True), KeyedSums(1, (2.0,), first=True)
    layered.most_loose = 3
    for number, piece in enumerate(pieces):
        keys, times = np.array([key for key, _ in piece]), np.sort(np.array([10 * number + time for _, time in piece]))
        for sums in (layered, whole):
            sums.step(keys, times * 3_600_000_000, np.ones((len(keys), 1), np.int64))
    asked = np.arange(42), np.full(42, 10_000) * 3_600_000_000
    for left, right in zip(layered.peek(*asked), whole.peek(*asked), strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(layered.flat().keys, whole.flat().keys)
