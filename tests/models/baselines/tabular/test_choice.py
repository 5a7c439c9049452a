"""The conditional logit against a numerical gradient, scikit-learn, and planted weights."""

from dataclasses import replace

import numpy as np
import pytest
from baseline_worlds import catalog, inputs, planted
from scipy.optimize import check_grad
from sklearn.linear_model import LogisticRegression

from adrec.metrics.ranking import auc_request
from adrec.models.baselines.base import Columns
from adrec.models.baselines.tabular.choice import ConditionalLogit, _Problem

WORLD = planted(200, seed=1)


def world_of_features(requests=400, *, per_request=4, seed=0, weights=(1.5, -0.7)):
    """Exactly one click a request, drawn from the softmax of a linear score."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(requests, per_request, len(weights)))
    p = np.exp(x @ np.array(weights))
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
    deviation = model.scaler.deviation[:2]
    np.testing.assert_allclose(model.features[:2] / deviation, [1.5, -0.7], atol=0.12)


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
    np.testing.assert_allclose(model.features[:2], theirs.coef_[0], atol=0.02)
    assert model.intercept == pytest.approx(theirs.intercept_[0], abs=0.05)
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
