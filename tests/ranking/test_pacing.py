"""When budgets begin anew and how much is released: against Python's own calendar and plain counting."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec.ranking.ledger import Counts, Ledger, Shown
from adrec.ranking.pacing import BudgetClock, RequestShares, flown

START = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.sampled_from(["UTC", "Asia/Shanghai", "America/New_York", "Asia/Kolkata"]), st.lists(st.integers(0, 500 * 86_400)))
def test_a_day_begins_at_the_zones_midnight(zone, seconds):
    clock = BudgetClock(daily=True, time_zone=zone)
    moments = [START + timedelta(seconds=one) for one in seconds]
    micros = np.array([int(one.timestamp()) * 1_000_000 for one in moments], np.int64)
    local = [one.astimezone(ZoneInfo(zone)) for one in moments]
    assert clock.day(micros).tolist() == [one.date().toordinal() - datetime(1970, 1, 1).toordinal() for one in local]
    elapsed = [(one.hour * 3600 + one.minute * 60 + one.second) / 86_400 for one in local]
    assert clock.elapsed(micros) == pytest.approx(elapsed)
    assert BudgetClock().day(micros).tolist() == [0] * len(seconds)


def test_an_ads_own_time_releases_its_budget():
    starts, ends = np.array([[0, -1, 100, 100]]), np.array([[100, 100, 1_000, 200]])
    share = flown(starts, ends, np.array([150]), always=-1, never=1_000)
    assert share.tolist() == [[1.0, 1.0, 1.0, 0.5]], "over; no start; no end; half way"
    assert flown(starts, ends, np.array([100]), always=-1, never=1_000)[0, 3] == 0.0


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60).map(sorted), st.integers(1, 9))
def test_a_batch_releases_by_the_requests_of_the_day(days, block):
    shares = RequestShares.of(np.array(days))
    for first in range(0, len(days), block):
        size = min(block, len(days) - first)
        expected = [days[: first + size].count(day) / days.count(day) for day in days[first : first + size]]
        assert shares.released(first, size)[:, 0] == pytest.approx(expected)
    assert RequestShares(np.zeros(1, int), np.array([10])).released(4, 3).tolist() == [[0.7]] * 3


def test_a_daily_ledger_goes_on_from_its_state_and_keeps_its_keys_when_it_grows():
    ledger = Ledger(np.array([10, 10, 10]), 2, daily=True)
    ledger.charge(np.array([1, 1, 2]), np.array([3, 4, 5]), np.array([20_000, 20_000, 20_001]))
    ledger.commit(np.array([7]), Shown(np.array([[1, -1]]), np.array([[0, -1]]), np.array([[2, 0]])), day=np.array([20_001]))
    assert ledger.spent.tolist() == [0, 0, 0]
    other = Ledger(np.array([10, 10, 10]), 2, daily=True)
    other.restore(ledger.state())
    for one in (ledger, other, ledger.copy(), ledger.grown(np.full(9, 10), 2)):
        width = one._ads
        keys = np.array([20_000 * width + 1, 20_001 * width + 2, 20_001 * width + 1, 20_002 * width + 1])
        assert one.spent_on_day.get(keys).tolist() == [7, 5, 2, 0]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1), st.integers(1, 4))
def test_amounts_are_summed_by_key(entries, block):
    counts, expected = Counts(), {}
    for start in range(0, len(entries), block):
        keys, amounts = (np.array(column) for column in zip(*entries[start : start + block], strict=True))
        counts.add(keys, amounts)
    for key, amount in entries:
        expected[key] = expected.get(key, 0) + amount
    assert counts.get(np.arange(6)).tolist() == [expected.get(key, 0) for key in range(6)]
