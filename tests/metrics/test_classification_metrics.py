import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from adrec.metrics import calibration, classification


@st.composite
def scored(draw, both_classes=True):
    """Labels and scores with many ties, and row weights."""
    size = draw(st.integers(2, 60))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)))
    if both_classes:
        labels[:2] = [0, 1]
    steps = draw(st.integers(1, 25))
    scores = np.array(draw(st.lists(st.integers(0, steps), min_size=size, max_size=size))) / steps
    weights = np.array(draw(st.lists(st.integers(1, 5), min_size=size, max_size=size)), dtype=float)
    return labels, scores, weights


@given(scored())
def test_discrimination_equals_scikit_learn(case):
    y, s, w = case
    assert classification.auc(y, s) == pytest.approx(sk.roc_auc_score(y, s), abs=1e-12)
    assert classification.auc(y, s, w) == pytest.approx(sk.roc_auc_score(y, s, sample_weight=w), abs=1e-12)
    assert classification.pr_auc(y, s) == pytest.approx(sk.average_precision_score(y, s), abs=1e-12)
    assert classification.pr_auc(y, s, w) == pytest.approx(sk.average_precision_score(y, s, sample_weight=w), abs=1e-12)


@given(scored())
def test_probability_errors_equal_scikit_learn(case):
    y, s, w = case
    assert classification.log_loss(y, s) == pytest.approx(sk.log_loss(y, s), abs=1e-9)
    assert classification.log_loss(y, s, w) == pytest.approx(sk.log_loss(y, s, sample_weight=w), abs=1e-9)
    assert classification.brier(y, s) == pytest.approx(sk.brier_score_loss(y, s), abs=1e-12)
    assert classification.rmse(y, s) == pytest.approx(sk.root_mean_squared_error(y, s), abs=1e-12)
    assert classification.mae(y, s, w) == pytest.approx(sk.mean_absolute_error(y, s, sample_weight=w), abs=1e-12)
    rate = y.mean()
    constant = sk.log_loss(y, np.full(len(y), rate))
    assert classification.normalised_entropy(y, s) == pytest.approx(sk.log_loss(y, s) / constant, rel=1e-9)


@given(scored(both_classes=False), st.floats(0, 1))
def test_decisions_equal_scikit_learn(case, threshold):
    y, s, w = case
    yes = (s >= threshold).astype(int)
    found = classification.decisions(y, s, threshold, w)
    assert found.accuracy == pytest.approx(sk.accuracy_score(y, yes, sample_weight=w))
    for value, oracle in ((found.precision, sk.precision_score), (found.recall, sk.recall_score), (found.f1, sk.f1_score)):
        expected = oracle(y, yes, sample_weight=w, zero_division=np.nan)
        assert value == pytest.approx(expected, nan_ok=True)
    assert classification.accuracy(y, s, threshold) == pytest.approx(sk.accuracy_score(y, yes))


def test_float32_log_loss_clips_as_scikit_learn_does():
    y, p = np.array([1, 0, 1]), np.array([0.0, 1.0, 0.5], dtype=np.float32)
    assert classification.log_loss(y, p) == pytest.approx(sk.log_loss(y, p), rel=1e-6)


@given(scored())
def test_auc_depends_on_order_alone(case):
    y, s, _ = case
    assert classification.auc(y, s) == pytest.approx(classification.auc(y, np.exp(3 * s) - 7), abs=1e-12)
    assert classification.auc(y, s) == pytest.approx(1 - classification.auc(y, -s), abs=1e-12)
    assert classification.auc(1 - y, s) == pytest.approx(1 - classification.auc(y, s), abs=1e-12)


@given(scored(), st.integers(1, 4))
def test_integer_weights_are_copies_of_rows(case, times):
    y, s, w = case
    again = np.repeat(np.arange(len(y)), (w * times).astype(int))
    assert classification.auc(y, s, w) == pytest.approx(classification.auc(y[again], s[again]), abs=1e-12)
    assert classification.pr_auc(y, s, w) == pytest.approx(classification.pr_auc(y[again], s[again]), abs=1e-12)


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
def test_one_class_has_no_auc(labels):
    scores = np.linspace(0, 1, len(labels))
    assert np.isnan(classification.auc(labels, scores))
    assert np.isnan(classification.normalised_entropy(labels, scores))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        classification.auc([0, 1], [0.1, float("nan")])
    with pytest.raises(ValueError, match="equally long"):
        classification.auc([0, 1], [0.1])


@given(scored(), st.integers(2, 20))
def test_ece_by_hand(case, bins):
    y, s, _ = case
    codes = calibration.bin_codes(s, bins, "uniform")
    expected = sum(
        (codes == b).mean() * abs(s[codes == b].mean() - y[codes == b].mean()) for b in range(bins) if (codes == b).any()
    )
    assert calibration.ece(y, s, bins, "uniform") == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50)
@given(scored(), st.integers(2, 20))
def test_quantile_bins_keep_equal_scores_together(case, bins):
    y, s, _ = case
    codes = calibration.bin_codes(s, bins)
    assert codes.min() >= 0
    assert codes.max() < bins
    for value in np.unique(s):
        assert len(np.unique(codes[s == value])) == 1
    table = calibration.reliability(y, s, bins)
    assert table.rows.sum() == len(y)
    assert (table.low <= table.observed + 1e-12).all()
    assert (table.high >= table.observed - 1e-12).all()


def test_quantile_bins_are_even_without_ties():
    scores = np.random.default_rng(0).permutation(np.arange(1000)) / 1000
    rows = np.bincount(calibration.bin_codes(scores, 10))
    assert rows.min() >= 99
    assert rows.max() <= 101


def test_perfect_and_biased_calibration():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.01, 0.3, 200_000)
    y = rng.random(len(p)) < p
    assert calibration.ece(y, p) < 0.005
    assert calibration.predicted_over_observed(y, p) == pytest.approx(1, abs=0.02)
    assert calibration.predicted_over_observed(y, 2 * p) == pytest.approx(2, abs=0.04)
    assert calibration.ece(y, 2 * p) == pytest.approx(p.mean(), abs=0.005)
