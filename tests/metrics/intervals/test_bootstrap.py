import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adrec.metrics import classification, ranking
from adrec.metrics.intervals import bootstrap, significance


@st.composite
def weighted_users(draw):
    users = draw(st.integers(2, 8))
    rows = draw(st.integers(4, 60))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    labels = rng.random(rows) < draw(st.floats(0.1, 0.9))
    scores = rng.integers(0, draw(st.integers(1, 30)), rows) / 30
    return labels.astype(float), scores, rng.integers(0, users, rows), users, rng.integers(0, 4, (users, 5)).astype(float)


@settings(deadline=None)
@given(weighted_users())
def test_curves_equal_metrics_of_weighted_rows(case):
    y, s, u, users, weights = case
    found = bootstrap.of_curve(y, s, u, users)(weights)
    for draw in range(weights.shape[1]):
        w = weights[u, draw]
        assert found["auc"][draw] == pytest.approx(classification.auc(y, s, w), abs=1e-12, nan_ok=True)
        assert found["pr_auc"][draw] == pytest.approx(classification.pr_auc(y, s, w), abs=1e-12, nan_ok=True)


@given(weighted_users())
def test_sums_equal_sums_over_copied_rows(case):
    y, s, u, users, weights = case
    measure = bootstrap.of_sums({"a": y, "b": s}, u, users, lambda sums: {"ratio": bootstrap.divide(sums["a"], sums["b"])})
    for draw, value in enumerate(measure(weights)["ratio"]):
        again = np.repeat(np.arange(len(y)), weights[u, draw].astype(int))
        expected = y[again].sum() / s[again].sum() if s[again].sum() > 0 else np.nan
        assert value == pytest.approx(expected, nan_ok=True)


def test_curves_in_blocks_equal_curves_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    y, s, u = rng.random(500) < 0.3, rng.integers(0, 200, 500) / 200, rng.integers(0, 20, 500)
    weights = rng.integers(0, 3, (20, 7)).astype(float)
    whole = bootstrap.of_curve(y, s, u, 20)(weights)
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", 21)
    for name, values in bootstrap.of_curve(y, s, u, 20)(weights).items():
        np.testing.assert_allclose(values, whole[name], atol=1e-12)


def test_means_of_groups_skip_groups_without_a_value():
    measure = bootstrap.of_groups({"x": np.array([1.0, np.nan, 4.0])}, np.array([0, 0, 1]), 2)
    np.testing.assert_allclose(measure(np.array([[1.0, 0.0, 2.0], [1.0, 1.0, 0.0]]))["x"], [(1 + 4) / 2, 4, 1])


def test_draws_are_multinomial_and_repeatable():
    blocks = list(bootstrap.draw_weights(50, 600, np.random.default_rng(3)))
    weights = np.concatenate(blocks, axis=1)
    assert weights.shape == (50, 600)
    assert (weights.sum(axis=0) == 50).all()
    assert weights.mean() == 1
    assert weights.var() == pytest.approx(1 - 1 / 50, abs=0.03)
    again = np.concatenate(list(bootstrap.draw_weights(50, 600, np.random.default_rng(3))), axis=1)
    np.testing.assert_array_equal(weights, again)


def test_all_runs_see_the_same_draws():
    rng = np.random.default_rng(0)
    y, s, u = rng.random(300) < 0.4, rng.random(300), rng.integers(0, 30, 300)
    measure = [bootstrap.of_curve(y, s, u, 30)]
    draws = bootstrap.bootstrap({"a": measure, "b": measure}, users=30, replicates=400, generator=np.random.default_rng(1))
    np.testing.assert_array_equal(draws["a"]["auc"], draws["b"]["auc"])
    found = significance.difference(0.0, draws["a"]["auc"] - draws["b"]["auc"], users=30)
    assert found == (0.0, 0.0, 0.0, 1.0)


def test_interval_of_a_mean_is_the_classical_one():
    """Rows of their own users: the bootstrap's interval of a mean agrees with Student's."""
    rng = np.random.default_rng(2)
    x = rng.normal(3, 2, 400)
    measure = bootstrap.of_groups({"x": x}, np.arange(400), 400)
    draws = bootstrap.bootstrap({"": [measure]}, users=400, replicates=4000, generator=rng)[""]["x"]
    found = significance.interval(x.mean(), draws)
    low, high = stats.t.interval(0.95, 399, x.mean(), stats.sem(x))
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_too_many_undefined_draws_give_no_interval():
    draws = np.array([0.5, np.nan, np.nan, np.nan])
    assert np.isnan(significance.interval(0.5, draws).low)
    assert np.isnan(significance.difference(0.5, draws, users=9).p_value)
    assert np.isnan(significance.interval(float("nan"), np.zeros(9)).high)


def test_centred_draws_hold_the_value():
    found = significance.interval(0.02, np.random.default_rng(0).normal(0.06, 0.01, 1000), centred=True)
    assert 0 <= found.low < 0.02 < found.high < 0.05


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_rejects_step_by_step(p):
    """Reject the smallest while p <= level / (those left), and stop at the first that is not."""
    adjusted, level = significance.adjust(p), 0.05
    rejected = set()
    for place, index in enumerate(np.argsort(p, kind="stable")):
        if p[index] * (len(p) - place) > level:
            break
        rejected.add(int(index))
    assert rejected == set(np.flatnonzero(adjusted <= level).tolist())
    assert (adjusted >= np.array(p) - 1e-15).all()


def test_missing_p_values_are_no_comparisons():
    np.testing.assert_allclose(significance.adjust([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])


def clustered_logs(rng, users=150):
    """Users with their own click rate and a score noisier than the truth; rows of a user are alike."""
    size = rng.integers(2, 9, users)
    user = np.repeat(np.arange(users), size)
    taste = rng.normal(0, 0.8, users)[user]
    signal = rng.normal(0, 1, len(user))
    label = rng.random(len(user)) < 1 / (1 + np.exp(1 - taste - signal))
    return label.astype(float), signal + 0.6 * taste, user, users


def auc_draws(y, scores, user, users, rng, replicates=400):
    measures = {name: [bootstrap.of_curve(y, s, user, users)] for name, s in scores.items()}
    draws = bootstrap.bootstrap(measures, users=users, replicates=replicates, generator=rng)
    return {name: (bootstrap.point(measures[name], users)["auc"], draws[name]["auc"]) for name in scores}


@pytest.mark.slow
def test_intervals_of_auc_cover_the_truth():
    """200 simulated logs: 95 % intervals hold the AUC of the population in at least 90 % of them."""
    y, s, _, _ = clustered_logs(np.random.default_rng(0), 400_000)
    truth = classification.auc(y, s)
    covered = 0
    for run in range(200):
        rng = np.random.default_rng(1000 + run)
        y, s, user, users = clustered_logs(rng)
        value, draws = auc_draws(y, {"": s}, user, users, rng)[""]
        found = significance.interval(value, draws)
        covered += found.low <= truth <= found.high
    print(f"AUC: {covered} of 200 intervals cover")
    assert covered >= 180


@pytest.mark.slow
def test_intervals_of_auc_per_request_cover_the_truth():
    y, s, u, _ = clustered_logs(np.random.default_rng(0), 200_000)
    truth = ranking.auc_request(y, s, u)
    covered = 0
    for run in range(200):
        rng = np.random.default_rng(5000 + run)
        y, s, user, users = clustered_logs(rng)
        measure = [bootstrap.of_groups({"x": ranking.RankedGroups(y, s, user).auc()}, np.arange(users), users)]
        draws = bootstrap.bootstrap({"": measure}, users=users, replicates=400, generator=rng)[""]["x"]
        found = significance.interval(bootstrap.point(measure, users)["x"], draws)
        covered += found.low <= truth <= found.high
    print(f"AUC per request: {covered} of 200 intervals cover")
    assert covered >= 180


@pytest.mark.slow
def test_false_alarms_of_the_paired_test():
    """Two runs with equally noisy scores differ by chance alone: about 5 % of tests at level .05 say otherwise."""
    alarms, runs = 0, 2000
    for run in range(runs):
        rng = np.random.default_rng(9000 + run)
        y, s, user, users = clustered_logs(rng)
        scores = {name: s + rng.normal(0, 0.7, len(s)) for name in "ab"}
        found = auc_draws(y, scores, user, users, rng, 250)
        gap = significance.difference(found["a"][0] - found["b"][0], found["a"][1] - found["b"][1], users=users)
        alarms += gap.p_value < 0.05
    print(f"false alarms: {alarms / runs:.2%} of {runs}")
    assert 0.03 <= alarms / runs <= 0.07


def test_the_bca_interval_is_scipys():
    values = np.random.default_rng(0).exponential(1.0, 60) ** 2
    found = stats.bootstrap((values,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(1))
    without = (values.sum() - values) / (len(values) - 1)
    ours = significance.bca_interval(float(values.mean()), found.bootstrap_distribution, without)
    assert np.allclose([ours.low, ours.high], found.confidence_interval, rtol=1e-9)
    plain = significance.interval(float(values.mean()), found.bootstrap_distribution)
    assert ours.high > plain.high and ours.low > plain.low  # the tail is on the right


def test_the_bca_interval_of_draws_on_one_side_is_the_percentile_interval():
    draws = np.linspace(1, 2, 50)
    assert significance.bca_interval(0.5, draws, np.array([0.4, 0.6])) == significance.interval(0.5, draws)
