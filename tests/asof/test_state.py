"""The state: what is added late, merged or forgotten counts as if it had come in order, or never."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from point_in_time_reference import HOUR

from adrec.asof.event_layers import write_layer
from adrec.asof.events import EventRows
from adrec.asof.history import EventLog, joined
from adrec.asof.spec import CLICKED, CONVERTED, LABELLED, SHOWN, plan_keys
from adrec.asof.state import State
from adrec.asof.sums import NEVER, KeyedSums
from adrec.errors import DataError
from adrec.specs import CounterSpec, HistorySpec

PLANS = plan_keys(
    [
        CounterSpec(by=("ad",), measures=("rate", "hours_since_first"), half_lives_hours=(None, 1.0, 24.0)),
        CounterSpec(by=("user", "ad"), measures=("impressions",)),
        CounterSpec(by=("user",), measures=("clicks",), half_lives_hours=(2.0,)),
    ]
)
EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 400), st.booleans()), min_size=1, max_size=30)


def rows_of(events):
    user, ad, time, click = (np.array(column) for column in zip(*events, strict=True))
    ones = np.ones(len(events), np.int64)
    weights = {SHOWN: ones, LABELLED: ones, CLICKED: click.astype(np.int64), CONVERTED: 0 * ones}
    return EventRows(time * HOUR // 10, {"user": (user << 45) + 7, "ad": ad.astype(np.int64)}, weights)


def stepped(events):
    state = State(PLANS)
    state.step(rows_of(sorted(events, key=lambda event: event[2])))
    return state


def asked(state, moment=1000):
    user, ad = (side.ravel() for side in np.meshgrid(np.arange(5), np.arange(4)))
    return state.peek({"user": (user << 45) + 7, "ad": ad.astype(np.int64)}, np.full(len(user), moment * HOUR // 10))


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name, values in left.items():
        np.testing.assert_allclose(values, right[name], rtol=1e-9, atol=1e-12, err_msg=name)


@settings(max_examples=80, deadline=None)
@given(EVENTS, st.randoms(use_true_random=False), st.integers(1, 4))
def test_events_added_in_any_order_count_as_in_order(events, random, pieces):
    shuffled = random.sample(events, len(events))
    state = State(PLANS)
    for start in range(0, len(shuffled), pieces):
        state.add(rows_of(shuffled[start : start + pieces]))
    assert_equal(asked(state), asked(stepped(events)))


@settings(max_examples=80, deadline=None)
@given(EVENTS, st.data())
def test_states_of_other_events_add_up(events, data):
    mine = data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events)))
    sides = [[event for event, here in zip(events, mine, strict=True) if here == side] for side in (True, False)]
    states = [stepped(side) if side else State(PLANS) for side in sides]
    states[0].merge(states[1])
    assert_equal(asked(states[0]), asked(stepped(events)))


def test_only_states_of_the_same_counters_are_merged():
    with pytest.raises(DataError, match="other counters"):
        State(PLANS).merge(State(PLANS[:1]))


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_a_forgotten_user_is_as_if_never_seen(events):
    state = stepped(events)
    of_user = rows_of([(1, ad, 0, False) for ad in range(4)])
    state.forget(1, of_user.codes)
    found = asked(state)
    user, ad = (side.ravel() for side in np.meshgrid(np.arange(5), np.arange(4)))
    for name, values in found.items():
        if "user" in name.partition("|")[0]:
            assert not values[user == 1].any()
            np.testing.assert_array_equal(values[user != 1], asked(stepped(events))[name][user != 1])


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.integers(0, 400))
def test_a_saved_state_goes_on(tmp_path_factory, events, cut):
    folder = tmp_path_factory.mktemp("state")
    before, later = ([event for event in events if (event[2] < cut) == side] for side in (True, False))
    state = stepped(before) if before else State(PLANS)
    for log in ("clicks", "skips"):
        EventLog.write([], 0, folder / log)
    state.save(folder, HistorySpec())
    again = State.load(folder, PLANS, HistorySpec())
    if later:
        again.step(rows_of(sorted(later, key=lambda event: event[2])))
    assert_equal(asked(again), asked(stepped(events)))


def test_questions_leave_no_trace():
    sums, other = KeyedSums(1, (1.0,), first=True), KeyedSums(1, (1.0,), first=True)
    rng = np.random.default_rng(0)
    keys, times = rng.integers(0, 4, 300), np.sort(rng.integers(0, 99, 300)) * HOUR
    counted = rng.random(300) < 0.4
    ones = np.ones((300, 1), np.int64)
    with_questions = sums.step(keys, times, ones, counted)
    alone = other.step(keys[counted], times[counted], ones[counted])
    assert with_questions.counts[counted].tobytes() == alone.counts.tobytes()
    assert with_questions.faded[counted].tobytes() == alone.faded.tobytes()
    for name, values in sums.columns.items():
        assert values.tobytes() == other.columns[name].tobytes(), name
    ask = np.flatnonzero(~counted)
    expected = [((keys == keys[row]) & counted & (times < times[row])).sum() for row in ask]
    assert with_questions.counts[ask, 0].tolist() == expected
    firsts = [min(times[(keys == keys[row]) & counted & (times < times[row])], default=NEVER) for row in ask]
    assert with_questions.first[ask].tolist() == firsts


def test_a_log_with_newer_acts_beside_it_is_one_log():
    rng = np.random.default_rng(1)
    users, ads, times = rng.integers(0, 5, 200), rng.integers(0, 9, 200), rng.permutation(200) * HOUR
    order = np.argsort(times)
    old, new = order[:150], order[150:]
    whole = EventLog.of(users, ads, times)
    sides = [EventLog.of(users[part], ads[part], times[part]) for part in (old, new)]
    question = np.arange(7), np.array([0, 20, 90, 160, 199, 300, 300]) * HOUR
    found = joined(sides[0].histories(*question, 6), sides[1].histories(*question, 6), 6)
    for left, right in zip(found, whole.histories(*question, 6), strict=True):
        np.testing.assert_array_equal(left, right)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=5), st.integers(1, 6), st.booleans())
def test_a_log_in_layers_answers_as_one_log(tmp_path_factory, days, limit, in_order):
    """Each day is written over the layers of the days before; questions of any moment, days in order of time or not."""
    folder = tmp_path_factory.mktemp("layers")
    users, ads, times, earlier = [], [], [], None
    for number, events in enumerate(days):
        user, ad, time, _ = (np.array(column) for column in zip(*events, strict=True))
        time = time + number * 1_000 if in_order else time
        log = EventLog.of(user, ad, time)
        codes = np.repeat(log.users, np.diff(log.offsets))
        rows = pa.record_batch({"code": codes, "ad_index": log.ads, "time": log.times})
        layered = write_layer([rows], len(codes), folder / str(number), earlier)
        earlier = folder / str(number)
        users, ads, times = [*users, codes], [*ads, log.ads], [*times, log.times]
    sizes = [len(layer.ads) for layer in layered.layers]
    assert sum(sizes) == len(layered) == sum(map(len, users))
    assert all(larger >= 2 * smaller for larger, smaller in zip(sizes, sizes[1:], strict=False)), "there are few layers"
    whole = EventLog.of(*map(np.concatenate, (users, ads, times)))
    asked = np.repeat(np.unique(whole.users), 3)
    moments = np.tile(np.quantile(whole.times, [0.3, 0.8, 1.0]).astype(np.int64) + 1, len(asked) // 3)
    found, expected = layered.histories(asked, moments, limit), whole.histories(asked, moments, limit)
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right)
    assert layered.last_moment == whole.times.max()


@settings(max_examples=60, deadline=None)
@given(EVENTS, EVENTS)
def test_merged_logs_are_in_order_of_user_and_time_whatever_they_hold(tmp_path_factory, older, newer):
    folder = tmp_path_factory.mktemp("log")
    logs = []
    for at, events in enumerate((older, newer)):
        user, ad, time, _ = (np.array(column) for column in zip(*events, strict=True))
        logs.append(EventLog.of(user, ad + 10 * at, time))
    codes = [np.repeat(log.users, np.diff(log.offsets)) for log in logs]
    ads, times = (np.concatenate([getattr(log, name) for log in logs]) for name in ("ads", "times"))
    expected = EventLog.of(np.concatenate(codes), ads, times)
    for found in (logs[0].merged(logs[1]), logs[0].merged(logs[1], folder / "merged"), EventLog.load(folder / "merged")):
        for name in ("users", "offsets", "ads", "times"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert logs[0].merged(EventLog.empty()).ads.tolist() == logs[0].ads.tolist()
    assert EventLog.empty().merged(logs[0]).ads.tolist() == logs[0].ads.tolist()
