"""The conditional logit against a numerical gradient, scikit-learn, and planted weights."""

from dataclasses import replace

import numpy as np
import pytest
from baseline_worlds import catalog, inputs, planted
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from adrec.metrics.ranking import auc_request
from adrec.models.baselines.base import Columns
from adrec.models.baselines.tabular.bends import Bends
from adrec.models.baselines.tabular.choice import ConditionalLogit, _Problem
from adrec.models.baselines.tabular.design import Design

WORLD = planted(200, seed=1)


def world_of_features(requests=400, *, per_request=4, seed=0, weights=(1.5, -0.7), shape=lambda x: x):
    """Exactly one click a request, drawn from the softmax of a score that is linear in `shape` of the features."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(requests, per_request, len(weights)))
    p = np.exp(shape(x) @ np.array(weights))
    p /= p.sum(axis=1, keepdims=True)
    chosen = (p.cumsum(axis=1) > rng.random((requests, 1))).argmax(axis=1)
    listed = [(0, [], [(a, int(a == chosen[r])) for a in range(per_request)]) for r in range(requests)]
    columns = Columns(numeric=("first", "second"))
    return inputs(listed, catalog(range(per_request)), catalog(["u"]), columns=columns, numeric=x.reshape(-1, len(weights)))


@pytest.mark.parametrize("by_request", [True, False])
def test_the_slope_is_the_derivative_of_the_loss(by_request):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(WORLD), 3)).astype(np.float32)
    places = 3 + np.stack([rng.integers(0, 4, len(WORLD)), 4 + rng.integers(0, 90, len(WORLD))], axis=1)
    problem = replace(_Problem.of(WORLD, features, places, 3 + 94), by_request=by_request)
    part = problem._softmax if by_request else problem._logistic
    for _ in range(3):
        weights = rng.normal(size=problem.columns + 1) * 0.3
        laid_out = np.zeros((len(WORLD), problem.columns + 1))
        laid_out[:, : problem.wide.shape[1]] = problem.wide
        np.put_along_axis(laid_out, problem.coded, 1, axis=1)
        laid_out[:, -1] = 1
        np.testing.assert_allclose(problem.product(weights), laid_out @ weights, atol=1e-4)
        slope = part(laid_out @ weights)[1]
        np.testing.assert_allclose(problem.slopes(slope)[:-1], (laid_out.T @ slope)[:-1], atol=1e-5)
        error = check_grad(lambda w: part(laid_out @ w)[0], lambda w: laid_out.T @ part(laid_out @ w)[1], weights, epsilon=1e-6)
        assert error < 1e-4


def test_planted_weights_are_found():
    world = world_of_features(3000)
    model = ConditionalLogit()
    model.fit(world)
    x = world.examples.numeric
    slopes = np.linalg.lstsq(np.c_[x, np.ones(len(x))], model.score(world), rcond=None)[0]
    np.testing.assert_allclose(slopes[:2], [1.5, -0.7], atol=0.12)


def test_what_rises_and_falls_again_is_found():
    world = world_of_features(3000, shape=lambda x: 2.0 - 2.0 * np.abs(x))
    train, test = world.take(np.arange(8000)), world.take(np.arange(8000, 12_000))
    model = ConditionalLogit()
    model.fit(train)
    found = auc_request(test.clicks, model.score(test), test.examples.request)
    oracle = auc_request(test.clicks, -np.abs(test.examples.numeric) @ [1.5, -0.7], test.examples.request)
    assert found - 0.5 > 0.9 * (oracle - 0.5) > 0.1


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_bends_are_their_quantiles_and_a_weight_is_so_many_rows(seed):
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=300), int(rng.integers(0, 3)))[:, None].astype(np.float32)
    table = Design(values, ("x",), np.zeros((300, 0), np.int32), ())
    weights = rng.integers(1, 5, 300)
    many = replace(table, dense=np.repeat(values, weights, axis=0), codes=np.zeros((weights.sum(), 0), np.int32))
    by_weight, by_rows = Bends.fit(table, weights=weights.astype(np.float64)), Bends.fit(many)
    np.testing.assert_array_equal(by_weight.landmarks, by_rows.landmarks)
    if by_rows.width:
        ranks = by_rows.dense(many)[:, 0] + 0.5
        # Landmarks stand every 1/64; a value of many rows spreads over theirs.
        expected = (rankdata(many.dense[:, 0]) - 0.5) / len(many.dense)
        shares = np.unique(many.dense, return_counts=True)[1].max() / len(many.dense)
        np.testing.assert_allclose(ranks, expected, atol=2 / 64 + shares / 2)
        assert (np.diff(ranks[np.argsort(many.dense[:, 0])]) >= -1e-6).all()


def test_rows_one_by_one_are_logistic_regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2))
    clicks = rng.random(2000) < 1 / (1 + np.exp(1.0 - x @ [1.0, -2.0]))
    listed = [(0, [], [(0, int(click))]) for click in clicks]
    columns = Columns(numeric=("first", "second"))
    world = inputs(listed, catalog(["a"]), catalog(["u"]), columns=columns, numeric=x)
    model = ConditionalLogit()
    model.fit(world)
    theirs = LogisticRegression(C=1 / (1e-3 * 2000), tol=1e-8).fit((x - x.mean(0)) / x.std(0), clicks)
    expected = theirs.decision_function((x - x.mean(0)) / x.std(0))
    score = model.score(world)
    assert np.corrcoef(score, expected)[0, 1] > 0.99
    assert np.abs(score - expected).mean() < 0.15
    assert (1 / (1 + np.exp(-model.score(world)))).mean() == pytest.approx(clicks.mean(), abs=0.01)


def test_it_learns_which_directions_of_the_text_matter():
    # Clicks follow agreement in the first direction alone; the others are noise that blurs the plain cosine.
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(80, 16))
    users = rng.choice([-1, 1], 40)
    liked = [np.flatnonzero(np.sign(vectors[:, 0]) == sign) for sign in (-1, 1)]
    listed = []
    for _ in range(1200):
        user = int(rng.integers(40))
        history = rng.choice(liked[int(users[user] > 0)], 5).tolist()
        shown = rng.choice(80, 5, replace=False)
        p = 1 / (1 + np.exp(2 - 2.5 * np.sign(vectors[shown, 0]) * users[user]))
        listed.append((user, history, list(zip(shown.tolist(), (rng.random(5) < p).astype(int).tolist()))))
    world = inputs(listed, catalog(range(80), vectors=vectors), catalog(range(40)))
    train, test = world.take(np.arange(4000)), world.take(np.arange(4000, 6000))
    model = ConditionalLogit()
    model.fit(train, test)
    assert abs(model.products[0]) > 3 * np.abs(model.products[1:]).mean()
    strong = ConditionalLogit(penalty=1e6)
    strong.fit(train)
    request = test.examples.request
    assert auc_request(test.clicks, model.score(test), request) > auc_request(test.clicks, strong.score(test), request) + 0.03


def test_the_solution_does_not_depend_on_the_seed():
    one, two = ConditionalLogit(penalty=0.01), ConditionalLogit(penalty=0.01)
    one.fit(WORLD, seed=0)
    two.fit(WORLD, seed=1)
    np.testing.assert_array_equal(one.score(WORLD), two.score(WORLD))
