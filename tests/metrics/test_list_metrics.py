import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec.metrics import curves, lists
from adrec.metrics.classification import auc


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30).filter(sum))
def test_gini_is_half_the_relative_mean_difference(counts):
    x = np.array(counts, dtype=float)
    expected = np.abs(np.subtract.outer(x, x)).mean() / (2 * x.mean())
    assert lists.gini(counts) == pytest.approx(expected, abs=1e-12)


def test_gini_at_its_ends():
    assert lists.gini([5, 5, 5]) == 0
    assert lists.gini([0] * 99 + [1]) == pytest.approx(0.99)
    assert np.isnan(lists.gini([0, 0]))


def test_diversity_equals_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    vectors, groups = rng.normal(size=(40, 6)), rng.integers(0, 9, 40)
    vectors[3] = 0
    groups[-1] = 99
    found = lists.intra_list_diversity(vectors, groups)
    for value, group in zip(found, np.unique(groups), strict=True):
        own = vectors[groups == group]
        pairs = [(a, b) for i, a in enumerate(own) for b in own[i + 1 :]]
        if not pairs:
            assert np.isnan(value)
            continue
        lengths = [np.linalg.norm(a) * np.linalg.norm(b) for a, b in pairs]
        cosines = [a @ b / length if length else 0.0 for (a, b), length in zip(pairs, lengths, strict=True)]
        assert value == pytest.approx(1 - np.mean(cosines), abs=1e-12)


def test_category_diversity_equals_the_mean_over_pairs():
    rng = np.random.default_rng(1)
    kinds, groups = rng.choice(list("abc"), 40), rng.integers(0, 12, 40)
    found = lists.category_diversity(kinds, groups)
    for value, group in zip(found, np.unique(groups), strict=True):
        own = kinds[groups == group]
        pairs = [a != b for i, a in enumerate(own) for b in own[i + 1 :]]
        assert value == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)


def test_novelty_of_common_rare_and_unseen():
    np.testing.assert_allclose(lists.novelty([50, 25, 0], 100), [1, 2, np.log2(200)])


def test_shares_and_coverage():
    assert lists.coverage([1, 1, 2], 4) == 0.5
    assert np.isnan(lists.coverage([], 0))
    assert lists.top_share(["x"] * 3 + ["y"]) == 0.75
    assert lists.concentration(["x"]) == 1
    assert lists.revenue_per_thousand([0.2, 0.4]) == pytest.approx(300)
    assert np.isnan(lists.revenue_per_thousand([]))


@pytest.mark.parametrize("steps", [7, 100_000])
def test_area_under_the_drawn_curves(steps):
    rng = np.random.default_rng(2)
    y, s = rng.random(20_000) < 0.2, rng.integers(0, steps, 20_000) / steps
    s = np.where(y, np.sqrt(s), s)
    roc = curves.roc(y, s)
    assert len(roc.x) <= 400
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(auc(y, s), abs=2e-4)
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    gained = curves.gain(y, s)
    assert (np.diff(gained.x) > 0).all()
    assert (np.diff(gained.y) >= 0).all()
    precision = curves.precision_recall(y, s)
    assert precision.y[-1] == pytest.approx(y.mean())
