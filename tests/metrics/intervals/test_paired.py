"""Paired differences against the bootstrap and against simulation."""

import numpy as np
import pytest

from adrec.metrics.classification import auc
from adrec.metrics.intervals.paired import around, auc_difference, auc_request_difference
from adrec.metrics.ranking import auc_request


def drawn(seed, *, clusters=150, size=4, gap=0.0, ties=False):
    """Two noisy scores of a truth, the second noisier by `gap`; rows of a cluster share a mood that both scores miss."""
    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(clusters), size)
    truth = rng.normal(size=len(cluster))
    click = rng.random(len(cluster)) < 1 / (1 + np.exp(1 - 2 * truth - rng.normal(size=clusters)[cluster]))
    scores = [
        truth + (1 + extra) * rng.normal(size=clusters)[cluster] + 0.5 * rng.normal(size=len(cluster)) for extra in (0, gap)
    ]
    return click.astype(int), *(np.round(score) if ties else score for score in scores), cluster


@pytest.mark.parametrize("ties", [False, True])
def test_the_value_is_the_difference_of_the_metrics(ties):
    click, first, second, cluster = drawn(0, ties=ties)
    assert auc_difference(click, first, second, cluster)[0] == pytest.approx(auc(click, first) - auc(click, second))
    value, _ = auc_request_difference(click, first, second, cluster, cluster // 3)
    assert value == pytest.approx(auc_request(click, first, cluster) - auc_request(click, second, cluster))


@pytest.mark.parametrize("metric", ["auc", "auc_request"])
def test_the_error_is_that_of_the_bootstrap_over_clusters(metric):
    click, first, second, cluster = drawn(1, ties=True)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(400):
        chosen = rng.integers(0, 150, 150)
        rows = (chosen[:, None] * 4 + np.arange(4)).ravel()
        request = np.repeat(np.arange(150), 4)
        of = (lambda y, s: auc(y, s)) if metric == "auc" else (lambda y, s: auc_request(y, s, request))
        draws.append(of(click[rows], first[rows]) - of(click[rows], second[rows]))
    found = (
        auc_difference(click, first, second, cluster)
        if metric == "auc"
        else auc_request_difference(click, first, second, cluster, cluster)
    )
    assert found[1] == pytest.approx(np.std(draws), rel=0.15)


def test_intervals_cover_no_difference():
    covered = 0
    for seed in range(300):
        click, first, second, cluster = drawn(seed + 10, clusters=60)
        value, error = auc_difference(click, first, second, cluster)
        low, high = around(value, error, clusters=60)
        covered += low <= 0 <= high
    assert 0.92 <= covered / 300 <= 0.98


def test_without_both_labels_nothing_is_said():
    assert np.isnan(auc_difference([1, 1], [0.1, 0.2], [0.2, 0.1], [0, 1])).all()
    assert np.isnan(auc_request_difference([1, 0], [0.1, 0.2], [0.2, 0.1], [0, 1], [0, 1])).all()
