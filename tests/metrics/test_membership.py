"""Attacks on numbers whose truth is known: silence, a planted leak, and what a leak proves."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from adrec.metrics.membership import caught, confidence, exposure, least_epsilon, likelihood_ratios, membership_auc


def world(leak, *, models=8, units=4000, seed=0):
    """Scores of which a unit's own level is the most, and membership adds `leak` deviations."""
    random = np.random.default_rng(seed)
    member = random.random((models, units)) < 0.5
    return random.normal(size=units) * 3 + random.normal(size=(models, units)) + leak * member, member


def test_lira_finds_what_a_threshold_hardly_sees():
    scores, member = world(1.0)
    plain, ratio = membership_auc(scores, member).mean(), membership_auc(likelihood_ratios(scores, member), member).mean()
    assert plain == pytest.approx(norm.cdf(1 / np.sqrt(20)), abs=0.01)
    assert 0.68 < ratio < norm.cdf(1 / np.sqrt(2)) + 0.01  # what whoever knew each unit's level could reach


def test_silence_is_half_and_proves_nothing():
    scores, member = world(0.0)
    ratios = likelihood_ratios(scores, member)
    assert membership_auc(ratios, member).mean() == pytest.approx(0.5, abs=0.01)
    assert caught(ratios[0], member[0], false_alarms=0.01) < 0.03
    assert least_epsilon(ratios[0], member[0], delta=1e-6) < 0.3


def test_the_bound_holds_for_randomised_response():
    """Of a mechanism whose epsilon is exactly known no more is proved, and nearly as much."""
    for epsilon in (0.5, 2.0):
        proofs = []
        for seed in range(40):
            random = np.random.default_rng(seed)
            member = random.random(2000) < 0.5
            told = np.where(random.random(2000) < np.exp(epsilon) / (1 + np.exp(epsilon)), member, ~member)
            proofs.append(least_epsilon(told + 0.1 * random.random(2000), member, delta=0.0))
        assert np.mean(np.array(proofs) <= epsilon) >= 0.95
        assert np.median(proofs) > 0.65 * epsilon


def test_the_bound_is_clopper_and_pearsons():
    member = np.arange(100) < 50
    perfect = binomtest(100, 100, alternative="greater").proportion_ci(1 - 0.05 / 3, "exact").low  # all are guessed, and right
    assert least_epsilon(member + 0.0, member, delta=0.0) == pytest.approx(np.log(perfect / (1 - perfect)))
    assert least_epsilon(member + 0.0, member, delta=1e-4) < np.log(perfect / (1 - perfect))
    assert least_epsilon(-(member + 0.0), member, delta=0.0) == 0.0


def test_confidence_is_of_what_happened():
    assert confidence([0.9, 0.9, 0.5], [1, 0, 1]) == pytest.approx([np.log(9), -np.log(9), 0.0])


def test_exposure_counts_ranks():
    others = np.arange(1023.0)
    assert exposure(2000.0, others) == 10.0
    assert exposure(-1.0, others) == 0.0
    assert exposure(510.5, others) == pytest.approx(np.log2(1024 / 513))
    random = np.random.default_rng(0)
    by_chance = [exposure(random.random(), random.random(500)) for _ in range(2000)]
    assert np.mean(by_chance) == pytest.approx(np.log2(np.e), abs=0.1)
