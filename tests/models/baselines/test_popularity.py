"""Counting baselines by hand, and the beta prior against the one that drew the data."""

import numpy as np
import pytest
from baseline_worlds import catalog, inputs
from scipy.special import betaln

from adrec.models.baselines.popularity import Popularity, SmoothedCtr, fit_beta_prior

ADS, USERS = catalog(["a", "b", "c"]), catalog(["u"])
TRAIN = inputs([(0, [], [(0, 1), (1, 0)]), (0, [], [(0, 1), (1, 1)]), (0, [], [(0, np.nan)])], ADS, USERS)
TEST = inputs([(0, [], [(0, 0), (1, 0), (2, 0)])], ADS, USERS)


def test_popularity_counts_known_clicks():
    model = Popularity()
    model.fit(TRAIN)
    np.testing.assert_allclose(model.score(TEST), np.log1p([2, 1, 0]), rtol=1e-6)


def test_smoothed_ctr_is_the_posterior_mean():
    model = SmoothedCtr()
    model.fit(TRAIN)
    model.prior = (2.0, 8.0)
    np.testing.assert_allclose(model.score(TEST), [(2 + 2) / (2 + 10), (1 + 2) / (2 + 10), 2 / 10], rtol=1e-6)


def test_the_prior_that_drew_the_ads_is_found():
    rng = np.random.default_rng(0)
    impressions = rng.integers(1, 400, 20_000).astype(float)
    clicks = rng.binomial(impressions.astype(int), rng.beta(2.0, 38.0, 20_000)).astype(float)
    a, b = fit_beta_prior(clicks, impressions)
    assert a == pytest.approx(2.0, rel=0.05) and b == pytest.approx(38.0, rel=0.05)


def test_the_prior_maximises_the_likelihood():
    rng = np.random.default_rng(1)
    impressions = rng.integers(5, 60, 500).astype(float)
    clicks = rng.binomial(impressions.astype(int), rng.beta(1.0, 9.0, 500)).astype(float)

    def likelihood(a, b):
        return (betaln(clicks + a, impressions - clicks + b) - betaln(a, b)).sum()

    a, b = fit_beta_prior(clicks, impressions)
    best = likelihood(a, b)
    assert a / (a + b) == pytest.approx(clicks.sum() / impressions.sum(), rel=1e-2)
    assert all(best >= likelihood(a * x, b * x) for x in (0.9, 1, 1.1))


def test_ads_with_a_lucky_click_do_not_rule_the_prior():
    """2,000 ads seen 30 times, a few clicked once, beside 50 seen 100,000 times: an unseen ad gets the rate of all."""
    rng = np.random.default_rng(2)
    impressions = np.r_[np.full(2000, 30.0), np.full(50, 100_000.0)]
    clicks = np.r_[rng.binomial(30, 0.004, 2000), rng.binomial(100_000, 0.0002, 50)].astype(float)
    a, b = fit_beta_prior(clicks, impressions)
    assert a / (a + b) == pytest.approx(clicks.sum() / impressions.sum(), rel=1e-2)


@pytest.mark.parametrize("clicks", [[0.0, 0.0], [5.0, 5.0], [1.0, 1.0], []])
def test_degenerate_counts_give_a_finite_prior(clicks):
    a, b = fit_beta_prior(np.array(clicks), np.full(len(clicks), 5.0))
    assert 0 < a < np.inf and 0 < b < np.inf
