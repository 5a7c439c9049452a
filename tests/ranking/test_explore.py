"""Propensities are the frequencies with which ads are in fact shown."""

import numpy as np
import pytest
from scipy.stats import norm

from adrec.ranking.diversify import ByValue
from adrec.ranking.explore import logit_deviation, uniform, win_probability
from adrec.ranking.fill import Chance, Room, fill_lists

SCORE = np.array([0.10, 0.12, 0.05, 0.11])
BID = np.array([1.0, 1.0, 2.0, 0.5])
ADVERTISER = np.array([0, 0, 1, 2])


def filled(trials, **chance):
    shape = (trials, 4)
    ad = np.broadcast_to(np.arange(4), shape)
    score = np.broadcast_to(SCORE, shape)
    return fill_lists(
        ad,
        score,
        score * BID,
        np.ones(shape, bool),
        top_n=2,
        rooms=[Room(np.broadcast_to(ADVERTISER, shape), np.ones(shape, int))],
        diversifier=ByValue(shape),
        chance=Chance(seed=11, request=np.arange(trials), **chance),
    )


@pytest.mark.parametrize("chance", [{"epsilon": 0.4}, {"deviation": np.array([0.3, 0.5, 0.9, 0.2])}])
def test_propensity_is_the_frequency(chance):
    trials = 20_000
    if "deviation" in chance:
        chance = {"deviation": np.broadcast_to(chance["deviation"], (trials, 4))}
    lists = filled(trials, **chance)
    for first in range(4):
        given_first = lists.column[:, 0] == first
        share = given_first.mean()
        if given_first.any():
            said = lists.propensity[given_first, 0]
            assert np.ptp(said) < 1e-9
            assert abs(share - said[0]) < 4 * np.sqrt(share / trials)
        for second in range(4):
            both = given_first & (lists.column[:, 1] == second)
            if not both.any():
                continue
            frequency, said = both.sum() / given_first.sum(), lists.propensity[both, 1][0]
            assert abs(frequency - said) < 4 * np.sqrt(frequency / given_first.sum()) + 1e-6
            assert ADVERTISER[first] != ADVERTISER[second]


def test_thompson_probabilities_sum_to_one():
    rng = np.random.default_rng(0)
    shape = (50, 9)
    feasible = rng.random(shape) < 0.8
    feasible[:, 0] = True
    keys = {
        "weight": 0.7,
        "offset": -0.3 * rng.random(shape),
        "unit_value": rng.choice([0.5, 1.0, 2.0], shape),
        "mean": rng.normal(-3, 0.5, shape),
        "deviation": rng.choice([0.1, 0.3, 0.9], shape),
        "feasible": feasible,
    }
    each = np.stack([win_probability(np.full(50, c), **keys) for c in range(9)], axis=1)
    assert np.allclose(np.where(feasible, each, 0.0).sum(axis=1), 1.0, atol=1e-4)


def test_two_gaussians_by_the_closed_form():
    mean, deviation = np.array([[0.0, 0.4]]), np.array([[0.5, 0.8]])
    probability = win_probability(
        np.array([1]), weight=1.0, offset=np.zeros((1, 2)), unit_value=np.ones((1, 2)),
        mean=mean, deviation=deviation, feasible=np.ones((1, 2), bool),
    )  # fmt: skip
    assert probability[0] == pytest.approx(norm.cdf(0.4 / np.hypot(0.5, 0.8)), abs=1e-7)


def test_uniform_numbers_are_uniform_and_keyed():
    drawn = uniform(5, np.arange(100_000))
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert abs(counts - 5_000).max() < 5 * np.sqrt(5_000)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02
    assert np.array_equal(uniform(5, np.array([7, 8])), uniform(5, np.array([6, 7, 8]))[1:])
    assert uniform(6, np.array([7])) != uniform(5, np.array([7]))


def test_uncertainty_falls_with_impressions():
    known = logit_deviation(np.array([0.1, 0.1]), np.array([0, 10_000]), prior_impressions=20.0)
    assert known[0] == pytest.approx(1 / np.sqrt(20 * 0.1 * 0.9))
    assert known[1] < known[0] / 20
