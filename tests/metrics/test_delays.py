"""The curve of delays: the truth it was drawn from, whatever was cut off, and the plain count where nothing was."""

import numpy as np
import pytest

from adrec.metrics.delays import AT_ONCE, fit_delay_curve


def drawn(rows, days, seed=0, window=None):
    """Delays of `rows` events, and how long their rows have been watched; only those that have come."""
    generator = np.random.default_rng(seed)
    delay = 24 * np.exp(1.2 * generator.normal(size=rows))
    elapsed = generator.uniform(0, 24 * days, rows)
    seen = delay <= elapsed
    return delay, delay[seen], elapsed[seen]


def test_all_seen_is_the_plain_share():
    delay = np.array([1.0, 2.0, 2.0, 5.0] * 20)
    curve = fit_delay_curve(delay, np.full(80, 100.0))
    np.testing.assert_allclose(curve.by([0.5, 1, 2, 4.9, 5, 50]), [0, 1 / 4, 3 / 4, 3 / 4, 1, 1])


@pytest.mark.parametrize("seed", range(3))
def test_what_is_not_seen_yet_is_made_up_for(seed):
    whole, delay, elapsed = drawn(40_000, 12, seed)
    hours = np.array([6.0, 24, 72, 168])
    truth = np.array([(whole <= h).mean() for h in hours]) / (whole <= 12 * 24).mean()
    naive = np.array([(delay <= h).mean() for h in hours])
    found = fit_delay_curve(delay, elapsed).by(hours)
    np.testing.assert_allclose(found, truth, atol=0.015)
    assert (naive - truth)[1] > 0.05, "delays as they show are too short, or the test shows nothing"


def test_a_window_ends_it():
    whole, delay, elapsed = drawn(40_000, 12)
    curve = fit_delay_curve(delay, elapsed, window_hours=96)
    inside = whole[whole <= 96]
    np.testing.assert_allclose(curve.by([12, 24, 48, 96]), [(inside <= h).mean() for h in (12, 24, 48, 96)], atol=0.015)
    assert curve.by([96.0, 1e9]).tolist() == [1, 1]


def test_on_its_clock_delays_are_exponential():
    whole, delay, elapsed = drawn(40_000, 12)
    clock = fit_delay_curve(delay, elapsed).clock(whole[whole < 150])
    for quantile in (0.25, 0.5):
        # Quantiles of all delays, since those beyond 150 hours are the latest.
        assert np.sort(clock)[int(quantile * len(whole))] == pytest.approx(-np.log(1 - quantile), rel=0.05)


def test_too_few_say_nothing():
    assert fit_delay_curve([1.0, 2.0], [3.0, 3.0]) is AT_ONCE
    assert fit_delay_curve([], []).by([0.0, 5.0]).tolist() == [1, 1]
