"""A baseline fitted on rows that stand for many impressions is the one fitted on so many rows."""

from dataclasses import replace

import numpy as np
import pytest
from baseline_worlds import planted

from adrec.models.baselines.collaborative.neighbours import ItemCf
from adrec.models.baselines.content import ContentScore
from adrec.models.baselines.popularity import Popularity, SmoothedCtr
from adrec.models.baselines.tabular.choice import ConditionalLogit
from adrec.models.baselines.tabular.design import Design, Scaler, design
from adrec.models.baselines.tabular.linear import LogisticRegression
from adrec.models.baselines.tabular.mlp import ClassicMlp
from adrec.models.baselines.tabular.rates import Rates
from adrec.models.baselines.tabular.trees import LightGbm, LightGbmRanker, TreeModel, quality
from adrec.models.blend.hybrid import _average, _Problem


def weighted(seed=0, requests=150):
    """A planted world with counts, and the same, one row an impression."""
    plain = planted(requests, seed=seed)
    weights = np.random.default_rng(seed).integers(1, 7, len(plain)).astype(float)
    few = replace(plain, examples=replace(plain.examples, weight=weights))
    return few, plain.take(np.repeat(np.arange(len(plain)), weights.astype(int)))


EXACT = {"popularity": Popularity, "smoothed_ctr": SmoothedCtr, "logistic": LogisticRegression, "item_cf": ItemCf,
         "content": ContentScore}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_weights_are_repetition(name):
    few, many = weighted()
    one, other = EXACT[name](), EXACT[name]()
    one.fit(few)
    other.fit(many)
    asked = planted(60, seed=5)
    np.testing.assert_allclose(one.score(asked), other.score(asked), rtol=2e-3 if name == "logistic" else 1e-5, atol=1e-6)


def test_the_conditional_logit_takes_counts_one_by_one():
    few, many = weighted()
    one, other = ConditionalLogit(), LogisticRegression(c=1.0)
    one.fit(few)
    other.fit(many)
    asked = planted(200, seed=5)
    probability = 1 / (1 + np.exp(-one.score(asked)))
    assert probability.mean() == pytest.approx(other.score(asked).mean(), rel=0.05)  # it has a level, as a logit of rows has


def test_trees_grow_the_same():
    few, many = weighted(requests=300)
    row = np.repeat(np.arange(len(few)), few.weights.astype(int))
    dense = np.round(design(few).dense[:, :2] * 2) / 2  # few distinct values: bins are made by rows
    table = Design(dense, ("a", "b"), np.zeros((len(few), 0), np.int32), ())
    settings = {
        "num_leaves": 7,
        "min_data_in_leaf": 1,
        "min_data_in_bin": 1,
        "bagging_fraction": 1.0,
        "bagging_freq": 0,
        "feature_fraction": 1.0,
    }
    one, other = (TreeModel(objective="binary", parameters=settings, rounds=30) for _ in range(2))
    one.fit(table, few, None, seed=0)
    other.fit(Design(dense[row], ("a", "b"), table.codes[row], ()), many, None, seed=0)
    np.testing.assert_allclose(one.predict(table), other.predict(table), rtol=1e-3, atol=1e-4)
    assert one.predict(table).std() > 0.1


def test_trees_read_the_weights():
    """What the trees learn is the rate of the impressions, not of the rows."""
    few, _ = weighted()
    heavy = np.where(few.clicks > 0, 1.0, 50.0)
    few = replace(few, examples=replace(few.examples, weight=heavy))
    model = LightGbm()
    model.fit(few)
    rate = float(heavy @ few.clicks / heavy.sum())
    assert float(heavy @ model.score(few) / heavy.sum()) == pytest.approx(rate, rel=0.2) and rate < 0.1


def test_the_network_learns_the_rate_of_the_impressions():
    few, _ = weighted()
    heavy = np.where(few.clicks > 0, 1.0, 50.0)
    few = replace(few, examples=replace(few.examples, weight=heavy))
    model = ClassicMlp(epochs=10)
    model.fit(few)
    assert float(heavy @ model.score(few) / heavy.sum()) == pytest.approx(float(heavy @ few.clicks / heavy.sum()), rel=0.4)


def test_scales_and_rates_are_of_impressions():
    few, many = weighted()
    one, other = Scaler.fit(design(few), weights=few.weights), Scaler.fit(design(many))
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.deviation, other.deviation, rtol=1e-5, atol=1e-6)
    (rates, _), (others, _) = (Rates.fit(design(part), part, beyond=1, seed=0) for part in (few, many))
    for values, other_values in zip(rates.values, others.values, strict=True):
        np.testing.assert_allclose(values, other_values, rtol=1e-5)


@pytest.mark.parametrize("kind", ["average", "weighted"])
def test_what_joins_scores_weighs_too(kind):
    few, many = weighted()
    row = np.repeat(np.arange(len(few)), few.weights.astype(int))
    members = np.random.default_rng(0).normal(size=(len(few), 3)) + few.clicks[:, None]
    even = _average(np.ones(3, bool))

    def fitted(rows, scores):
        problem = _Problem(("network", "a", "b"), scores, rows, "auc", 0, np.zeros(len(rows), np.int64))
        return problem._line(kind, even) if kind == "average" else problem._weighted(kind, np.arange(len(rows)), even)

    one, other = fitted(few, members), fitted(many, members[row])
    np.testing.assert_allclose(one.weighted(members), other.weighted(members), rtol=1e-3, atol=1e-3)


def test_what_chooses_weighs_too():
    few, many = weighted()
    row = np.repeat(np.arange(len(few)), few.weights.astype(int))
    scores = np.random.default_rng(0).normal(size=len(few))
    for metric in ("auc", "log_loss"):
        assert quality(metric, few, scores) == pytest.approx(quality(metric, many, scores[row]), rel=1e-9)


def test_a_ranker_of_requests_is_left_out():
    few, many = weighted()
    assert "counts" in LightGbmRanker.lacks(few) and not LightGbmRanker.lacks(many)
