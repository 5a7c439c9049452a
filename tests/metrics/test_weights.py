"""Weights are repetition: whatever a metric says of rows with weights, it says of so many equal rows. Weights of 1 are none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.metrics import calibration, classification, curves
from adrec.metrics.intervals.bootstrap import of_curve, point
from adrec.metrics.intervals.proportions import difference_interval, difference_p_value

METRICS = {
    "auc": classification.auc,
    "pr_auc": classification.pr_auc,
    "log_loss": classification.log_loss,
    "brier": classification.brier,
    "normalised_entropy": classification.normalised_entropy,
    "accuracy": lambda y, p, weights=None: classification.accuracy(y, p, 0.4, weights),
    "precision": lambda y, p, weights=None: classification.precision(y, p, 0.4, weights),
    "recall": lambda y, p, weights=None: classification.recall(y, p, 0.4, weights),
    "f1": lambda y, p, weights=None: classification.f1(y, p, 0.4, weights),
    "rmse": classification.rmse,
    "mae": classification.mae,
    "ece": calibration.ece,
    "ece_uniform": lambda y, p, weights=None: calibration.ece(y, p, binning="uniform", weights=weights),
    "predicted_over_observed": calibration.predicted_over_observed,
}
CURVES = {"roc": curves.roc, "precision_recall": curves.precision_recall, "gain": curves.gain, "lift": curves.lift}

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 19), st.integers(1, 6)), min_size=1, max_size=30)


def arrays(drawn):
    y, p, w = (np.array(column, dtype=float) for column in zip(*drawn, strict=True))
    return y, p / 20, w


def same(value, other, tolerance):
    return (np.isnan(value) and np.isnan(other)) or value == pytest.approx(other, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=60, deadline=None)
@given(drawn=rows)
def test_integer_weights_equal_repetition(name, drawn):
    y, p, w = arrays(drawn)
    times = w.astype(int)
    assert same(METRICS[name](y, p, weights=w), METRICS[name](np.repeat(y, times), np.repeat(p, times)), 1e-9)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=60, deadline=None)
@given(drawn=rows)
def test_weights_of_one_change_no_bit(name, drawn):
    y, p, _ = arrays(drawn)
    np.testing.assert_array_equal(METRICS[name](y, p, weights=np.ones(len(y))), METRICS[name](y, p))


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=30, deadline=None)
@given(drawn=rows, unit=st.floats(0.01, 1000))
def test_the_unit_of_weights_does_not_matter(name, drawn, unit):
    if name == "ece":  # its bins hold equally many impressions: a thousandth of one has no place among them
        unit = 1.0
    y, p, w = arrays(drawn)
    assert same(METRICS[name](y, p, weights=unit * w), METRICS[name](y, p, weights=w), 1e-9)


@pytest.mark.parametrize("name", CURVES)
@settings(max_examples=30, deadline=None)
@given(drawn=rows)
def test_curves(name, drawn):
    y, p, w = arrays(drawn)
    times = w.astype(int)
    whole = CURVES[name](np.repeat(y, times), np.repeat(p, times))
    for axis, other in zip(CURVES[name](y, p, weights=w), whole, strict=True):
        np.testing.assert_allclose(axis, other, rtol=1e-12)
    for axis, other in zip(CURVES[name](y, p, weights=np.ones(len(y))), CURVES[name](y, p), strict=True):
        np.testing.assert_array_equal(axis, other)


@settings(max_examples=40, deadline=None)
@given(drawn=rows)
def test_reliability(drawn):
    y, p, w = arrays(drawn)
    times = w.astype(int)
    whole = calibration.reliability(np.repeat(y, times), np.repeat(p, times))
    for axis, other in zip(calibration.reliability(y, p, weights=w), whole, strict=True):
        np.testing.assert_allclose(axis, other, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(drawn=rows, seed=st.integers(0, 99))
def test_the_curve_of_a_bootstrap(drawn, seed):
    y, p, w = arrays(drawn)
    times, users = w.astype(int), np.random.default_rng(seed).integers(0, 4, len(y))
    few = point([of_curve(y, p, users, 4, w)], 4)
    many = point([of_curve(np.repeat(y, times), np.repeat(p, times), np.repeat(users, times), 4)], 4)
    assert all(same(few[name], many[name], 1e-9) for name in many)
    assert same(few["auc"], classification.auc(y, p, w), 1e-9)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        classification.log_loss([0, 1], [0.2, 0.8], weights)


# ------------------------------------------------------------------------------------------- two rates

NEWCOMBE = [  # Newcombe 1998, table II, method 10
    ((56, 70, 48, 80), (0.0524, 0.3339)),
    ((9, 10, 3, 10), (0.1705, 0.8090)),
    ((6, 7, 2, 7), (0.0582, 0.8062)),
    ((5, 56, 0, 29), (-0.0381, 0.1926)),
    ((0, 10, 0, 20), (-0.1611, 0.2775)),
    ((10, 10, 0, 20), (0.6791, 1.0000)),
]


@pytest.mark.parametrize(("counts", "ends"), NEWCOMBE)
def test_the_interval_is_newcombes(counts, ends):
    value, low, high = difference_interval(*([count] for count in counts))
    assert (round(float(low[0]), 4), round(float(high[0]), 4)) == ends
    assert low[0] <= value[0] <= high[0]


def test_the_test_of_a_difference_is_fishers():
    from scipy.stats import fisher_exact

    rng = np.random.default_rng(0)
    n, other_n = rng.integers(50, 5000, (2, 20))
    k, other_k = rng.binomial(n, 0.03), rng.binomial(other_n, 0.04)
    found = difference_p_value(k, n, other_k, other_n)
    for place, p in enumerate(found):
        table = [[k[place], n[place] - k[place]], [other_k[place], other_n[place] - other_k[place]]]
        tails = [fisher_exact(table, alternative=side).pvalue for side in ("less", "greater")]
        assert p == pytest.approx(min(1.0, 2 * min(tails)), rel=1e-6)


def test_chance_alone_seldom_looks_like_a_difference():
    """Few clicks, where a z test would err: at most 5 % of equal pairs fall below .05."""
    rng = np.random.default_rng(2)
    n, other_n = np.full(3000, 300), np.full(3000, 20_000)
    p = difference_p_value(rng.binomial(n, 2e-4), n, rng.binomial(other_n, 2e-4), other_n)
    assert np.mean(p < 0.05) <= 0.05


def test_the_interval_holds_the_difference_as_often_as_it_says():
    rng = np.random.default_rng(1)
    n, other_n = np.full(4000, 900), np.full(4000, 400)
    _, low, high = difference_interval(rng.binomial(n, 0.02), n, rng.binomial(other_n, 0.035), other_n)
    assert 0.935 < np.mean((low <= 0.02 - 0.035) & (high >= 0.02 - 0.035)) < 0.97
