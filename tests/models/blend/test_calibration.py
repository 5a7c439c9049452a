"""Calibration against planted probabilities, scikit-learn, and its own promises (increasing, exact odds, JSON)."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from adrec.models.blend import calibration
from adrec.models.blend.calibration import METHODS, Calibration, fit


def planted(rows: int, distort, *, seed: int = 0, rate: float = -3.0):
    """Logits that a distortion has bent, and labels drawn from the true ones."""
    rng = np.random.default_rng(seed)
    true = rng.normal(rate, 1.0, rows)
    return distort(true), (rng.random(rows) < expit(true)).astype(np.float32), true


DISTORTIONS = {
    "none": lambda x: x,
    "temperature": lambda x: 2.5 * x,
    "platt": lambda x: 0.5 * x + 2.0,
    "isotonic": lambda x: np.exp(x / 2) * 4,
}


@pytest.mark.parametrize("name", DISTORTIONS)
def test_auto_recovers_the_true_probabilities(name):
    logits, labels, true = planted(40_000, DISTORTIONS[name])
    fitted = fit(logits, labels)
    fresh_logits, fresh_labels, fresh_true = planted(40_000, DISTORTIONS[name], seed=1)
    p = fitted.apply(fresh_logits)
    assert np.abs(p - expit(fresh_true)).mean() < 0.005
    assert p.mean() / fresh_labels.mean() == pytest.approx(1.0, abs=0.04)
    best = min(fitted.log_loss.values())
    assert fitted.log_loss[fitted.method] == best
    assert fitted.log_loss[name] - best < 2e-4, "the method that undoes the distortion is among the best"


def test_platt_is_logistic_regression():
    logits, labels, _ = planted(5_000, DISTORTIONS["platt"])
    ours = fit(logits, labels, method="platt")
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits[:, None], labels)
    # Platt's smoothed targets move the optimum by about one row.
    assert ours.slope == pytest.approx(theirs.coef_[0, 0], rel=0.02)
    assert ours.intercept == pytest.approx(theirs.intercept_[0], rel=0.02)


def test_platt_finds_planted_slope_and_intercept():
    logits, labels, _ = planted(200_000, lambda x: (x - 1.0) / 2.0)
    ours = fit(logits, labels, method="platt")
    assert (ours.slope, ours.intercept) == (pytest.approx(2.0, abs=0.06), pytest.approx(1.0, abs=0.12))


def test_isotonic_goes_through_the_block_centres_of_sklearn():
    logits, labels, _ = planted(3_000, DISTORTIONS["isotonic"])
    ours = fit(logits, labels, method="isotonic")
    pooled = IsotonicRegression(y_min=0, y_max=1).fit_transform(logits.astype(np.float64), labels)
    assert len(ours.knots) == len(np.unique(np.round(pooled, 12)))
    shift = {
        round(y - float(logit(p)), 6) for (_, y), p in zip(ours.knots, np.unique(np.round(pooled, 12))) if 0.001 < p < 0.999
    }
    assert len(shift) == 1, "one common shift matches the number of clicks"
    assert ours.apply(logits).mean() == pytest.approx(labels.mean(), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_strictly_increasing(method):
    logits, labels, _ = planted(2_000, DISTORTIONS["isotonic"])
    fitted = fit(logits, labels, method=method)
    grid = np.linspace(logits.min() - 10, logits.max() + 10, 10_001)
    assert (np.diff(fitted.logit(grid)) > 0).all()
    p = fitted.apply(grid)
    assert ((p >= 0) & (p <= 1)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_useless_or_inverted_model_still_gets_an_increasing_map(method):
    logits, labels, _ = planted(4_000, lambda x: -x)
    fitted = fit(logits, labels, method=method)
    assert (np.diff(fitted.logit(np.linspace(-5, 5, 101))) > 0).all()
    if method in {"platt", "isotonic"}:
        assert fitted.apply(logits).mean() == pytest.approx(labels.mean(), rel=0.02)


def test_down_sampling_is_undone_exactly():
    rng = np.random.default_rng(3)
    true = rng.normal(-3, 1, 50_000)
    for rate in (1.0, 0.1, 0.01):
        p = expit(true)
        learned = p / (p + (1 - p) * rate)  # what a perfect learner sees after keeping `rate` of the negatives
        undone = Calibration(offset=calibration.sampling_offset(rate)).apply(logit(learned))
        np.testing.assert_allclose(undone, p, rtol=1e-5)
        he_et_al = learned / (learned + (1 - learned) / rate)
        np.testing.assert_allclose(undone, he_et_al, rtol=1e-5)


def test_ten_fold_down_sampling_then_calibration_counts_the_clicks():
    logits, labels, _ = planted(300_000, lambda x: x - np.log(0.1))
    assert expit(logits).mean() / labels.mean() > 4, "uncalibrated, down-sampled odds promise far too many clicks"
    for method in ("none", "auto"):
        p = fit(logits, labels, method=method, negative_rate=0.1).apply(logits)
        assert p.mean() / labels.mean() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_an_impossible_share_is_refused(rate):
    with pytest.raises(ValueError, match="share"):
        fit([0.0], [1.0], negative_rate=rate)


@pytest.mark.parametrize("labels", [[], [1.0, 0.0], [1.0] * 4])
def test_too_few_labels_leave_the_logits_alone(labels):
    fitted = fit(np.zeros(len(labels)), np.array(labels), negative_rate=0.5)
    assert fitted.method == "none"
    assert fitted.apply(np.array([0.0]))[0] == pytest.approx(1 / 3)  # odds 1, halved


@pytest.mark.parametrize("clicks", [0, 50])
def test_a_named_method_leaves_labels_of_one_kind_alone(clicks):
    assert fit(np.zeros(50), np.arange(50) < clicks, method="platt").method == "none"


@pytest.mark.parametrize("clicks", [0, 3, 47, 50])
def test_few_labels_and_logits_that_know_nothing_become_the_click_rate(clicks):
    logits = np.random.default_rng(0).normal(0, 8, 50)
    fitted = fit(logits, np.random.default_rng(1).permutation(50) < clicks)
    assert fitted.apply(logits).mean() == pytest.approx((clicks + 1) / 52, abs=0.02)
    assert np.ptp(fitted.logit([-8.0, 8.0])) < 1.0


@pytest.mark.parametrize(
    "distort",
    [
        lambda x, noise: x,
        lambda x, noise: x + 1.5,
        lambda x, noise: 4 * x + 6,
        lambda x, noise: 8 * noise,
        lambda x, noise: 4 * x + 6 * noise,
    ],
    ids=["right", "shifted", "steep", "wild", "half_wild"],
)
@pytest.mark.parametrize("rows", [25, 100, 250])
def test_a_map_of_few_rows_costs_little_beside_none_and_beside_the_click_rate(distort, rows):
    """Mean log loss of forty maps, each of other rows with a click in ten, on rows of their own world."""
    rng = np.random.default_rng(rows)
    true = rng.normal(-2.5, 1.0, 4_000)
    noise, labels = rng.normal(size=4_000), rng.random(4_000) < expit(true)
    logits = distort(true, noise)
    lost = []
    for start in range(40):
        some = np.arange(start, start + rows * 13, 13) % 4_000
        rate = (labels[some].sum() + 1) / (rows + 2)
        own = fit(logits[some], labels[some], seed=start).logit(logits)
        lost.append([calibration.log_loss(x, labels) for x in (own, logits, np.full(4_000, logit(rate)))])
    own, as_they_are, of_the_rate = np.mean(lost, axis=0)
    assert own < min(as_they_are, of_the_rate) + (0.05 if rows == 25 else 0.01)


def test_few_rows_say_nothing_of_logits_beyond_theirs():
    labels = np.arange(30) % 6 == 0
    fitted = fit(np.where(labels, -1.0, -3.0), labels)
    low, high = fitted.apply([-3.0, -1.0])
    assert low < labels.mean() < high
    far = fitted.apply([-40.0, 40.0])
    assert far[0] == pytest.approx(low, rel=0.05) and far[1] == pytest.approx(high, rel=0.05)
    assert far[0] < low and far[1] > high, "the order is kept"


def test_rows_of_one_request_are_judged_by_no_fold():
    fitted = fit(np.linspace(-20, 20, 60), np.arange(60) % 8 == 0, groups=np.zeros(60))
    assert fitted.method == "platt" and fitted.log_loss == {}
    assert fitted.apply(np.linspace(-20, 20, 60)).mean() == pytest.approx(8 / 60, abs=0.02)


def test_one_click_does_not_choose_a_network_that_is_sure_of_misses():
    """Twenty-five misses are as the logits say, and the click costs 2: less, on these rows, than the click rate does."""
    logits, labels = np.concatenate([np.full(25, -10.0), [-2.0]]), np.arange(26) == 25
    assert calibration.log_loss(logits, labels) < calibration.log_loss(np.full(26, logit(1 / 26)), labels)
    assert fit(logits, labels).apply(logits).min() > 0.03


def test_rows_without_a_label_are_left_out():
    logits, labels, _ = planted(1_000, DISTORTIONS["platt"])
    with_missing = np.concatenate([labels, np.full(500, np.nan)])
    extra = np.concatenate([logits, np.full(500, 99.0)])
    assert fit(extra, with_missing, method="platt") == fit(logits, labels, method="platt")


def test_separable_rows_stay_finite():
    logits = np.concatenate([np.full(50, -4.0), np.full(50, 4.0)])
    labels = np.repeat([0.0, 1.0], 50)
    for method in METHODS:
        p = fit(logits, labels, method=method).apply([-1e4, -4.0, 0.0, 4.0, 1e4])
        assert np.isfinite(p).all() and (np.diff(p) >= 0).all()


def test_constant_logits_become_the_click_rate():
    fitted = fit(np.full(1_000, 7.0), np.repeat([0.0, 1.0], [900, 100]))
    assert fitted.apply([7.0])[0] == pytest.approx(0.1, abs=0.002)


def test_groups_stay_together_and_seeds_repeat():
    logits, labels, _ = planted(2_000, DISTORTIONS["platt"])
    groups = np.arange(2_000) // 20
    assert fit(logits, labels, groups=groups, seed=1) == fit(logits, labels, groups=groups, seed=1)
    fold = calibration._folds(2_000, groups, 5, 0)
    assert all(len(np.unique(fold[groups == g])) == 1 for g in range(100))
    assert np.bincount(fold).min() == 400


@given(
    method=st.sampled_from(METHODS),
    logits=st.lists(st.floats(-50, 50), min_size=10, max_size=60),
    seed=st.integers(0, 99),
    rate=st.floats(0.01, 1),
)
@settings(max_examples=60, deadline=None)
def test_json_round_trip_and_order(method, logits, seed, rate):
    labels = (np.random.default_rng(seed).random(len(logits)) < 0.5).astype(float)
    fitted = fit(logits, labels, method=method, negative_rate=rate)
    again = Calibration.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted
    ordered = np.sort(logits)
    p = again.apply(ordered)
    assert (np.diff(p) >= 0).all() and ((p >= 0) & (p <= 1)).all()


@pytest.mark.parametrize("near", [5e-324, 1e-300, 1e-16, 1e-12])
def test_logits_that_hardly_differ_keep_the_order(near):
    logits = np.tile([-50.0, -near, 0.0, near, 2 * near, 1.0, 50.0], 8)
    for seed in range(20):
        labels = (np.random.default_rng(seed).random(len(logits)) < 0.5).astype(float)
        p = fit(logits, labels, method="isotonic").apply(np.sort(logits))
        assert (np.diff(p) >= 0).all() and ((p > 0) & (p < 1)).all()


def test_unknown_method_in_a_file_is_refused():
    with pytest.raises(ValueError, match="unknown calibration method"):
        Calibration.from_json({"method": "magic", "knots": []})


def test_a_shifted_map_moves_every_logit_by_as_much():
    logits, labels, _ = planted(4000, DISTORTIONS["isotonic"])
    for method in METHODS:
        fitted = fit(logits, labels, method=method)
        np.testing.assert_allclose(fitted.shifted(0.3).logit(logits), fitted.logit(logits) + 0.3, atol=1e-12)


def test_the_level_of_all_rows_is_found_where_recent_ones_are_like_the_others():
    logits, labels, _ = planted(40_000, lambda x: x + 0.4)
    labels[:50] = np.nan
    times = np.random.default_rng(1).permutation(40_000)
    shift = calibration.level_shift(logits, labels, times, times >= 36_000)
    assert expit(logits[50:] + shift).mean() / labels[50:].mean() == pytest.approx(1, abs=0.01)
    assert shift == pytest.approx(-0.4, abs=0.04)
    everything = np.ones(40_000, bool)
    assert calibration.level_shift(logits, labels, times, everything) == pytest.approx(shift, abs=0.03)
    no_click = calibration.level_shift(logits[:60], np.zeros(60), times[:60], everything[:60])
    assert no_click == 0.0, "it says nothing"


def test_recent_rows_win_where_the_level_has_truly_moved():
    true = np.random.default_rng(3).normal(-2.0, 1.0, 40_000)
    recent = np.arange(40_000) >= 30_000
    labels = (np.random.default_rng(4).random(40_000) < expit(true + 0.8 * recent)).astype(float)
    assert calibration.level_shift(true, labels, np.arange(40_000), recent) == pytest.approx(0.8, abs=0.06)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 380), st.floats(-2, 2))
def test_the_level_lies_between_that_of_all_and_that_of_the_recent(seed, old, moved):
    rng = np.random.default_rng(seed)
    true = rng.normal(-1.0, 1.0, 400)
    recent = np.arange(400) >= old
    labels = (rng.random(400) < expit(true + moved * recent)).astype(float)
    times, none = np.arange(400), np.zeros(400, bool)
    found = calibration.level_shift(true, labels, times, recent)
    ends = [calibration.level_shift(true[rows], labels[rows], times[rows], none[rows]) for rows in (slice(None), recent)]
    if 5 <= labels[recent].sum() <= recent.sum() - 5:
        assert min(ends) - 1e-9 <= found <= max(ends) + 1e-9


def test_the_variance_between_periods_is_that_of_the_textbook():
    """The beta-blocker trials' first five log odds ratios and variances, tau^2 worked out by the formula's other form."""
    values = np.array([0.028, -0.741, -0.541, -0.246, 0.069])
    variances = np.array([0.723, 0.233, 0.318, 0.019, 0.079])
    w = 1 / variances
    q = np.sum(w * values**2) - np.sum(w * values) ** 2 / np.sum(w)
    expected = max(0.0, (q - 4) / (np.sum(w) - np.sum(w**2) / np.sum(w)))
    assert calibration._variance_between(values, variances) == pytest.approx(expected)
    spread = np.array([-1.0, 1.0, -1.0, 1.0])
    assert calibration._variance_between(spread, np.full(4, 0.01)) == pytest.approx(4 / 3 - 0.01)


@pytest.mark.parametrize("certain", [20.0, 50.0, 800.0])
def test_the_level_shift_of_rows_that_are_all_but_certain_is_finite(certain):
    """Where a model tells the labels apart, its probabilities are 0 and 1: a period of them says nothing of its level."""
    labels = np.tile([0.0, 1.0], 60)
    logits = np.where(labels > 0, certain, -certain)
    logits[:40] = np.where(labels[:40] > 0, 1.0, -1.0)  # an older period that does say something
    shift = calibration.level_shift(logits, labels, np.arange(120), np.arange(120) >= 80)
    assert np.isfinite(shift)
    swapped = calibration.level_shift(logits[::-1], labels[::-1], np.arange(120), np.arange(120) >= 80)
    assert np.isfinite(swapped)
