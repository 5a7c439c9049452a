"""Collaborative filtering and matrix factorisation against scikit-learn's cosine, loops, and a direct solve."""

import numpy as np
import pytest
from baseline_worlds import catalog, inputs, planted
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics.pairwise import cosine_similarity

from adrec.models.baselines.collaborative.factorisation import ImplicitAls, solve
from adrec.models.baselines.collaborative.neighbours import ClickMatrix, ItemCf, UserCf

ADS = catalog([f"a{i}" for i in range(6)])
USERS = catalog([f"u{i}" for i in range(4)])
TRAIN = inputs(
    [
        (0, [0, 1], [(2, 1), (3, 0)]),
        (1, [0], [(2, 1), (4, 1)]),
        (2, [3, 3], [(4, 0), (5, 1)]),
        (3, [], [(0, 0), (1, 0)]),
    ],
    ADS,
    USERS,
)
# What users 0 to 2 clicked, histories included; user 3 clicked nothing and ad 5's row is its own.
CLICKED = np.array([[1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 1]])


def test_the_click_matrix_joins_clicks_and_histories():
    matrix = ClickMatrix.of(TRAIN)
    assert matrix.users.tolist() == ["u0", "u1", "u2"] and matrix.ads.tolist() == [f"a{i}" for i in range(6)]
    assert matrix.clicks.toarray().tolist() == CLICKED.tolist()


def user_oracle(history, own, ad, neighbours):
    query = np.zeros((1, 6))
    query[0, history] = 1
    cosine = cosine_similarity(query, CLICKED)[0]
    if own is not None:
        cosine[own] = 0
    near = np.argsort(-cosine, kind="stable")[:neighbours]
    total = cosine[near].sum()
    return sum(cosine[j] / total * CLICKED[j, ad] for j in near) if total else 0.0


@pytest.mark.parametrize("neighbours", [1, 2, 10])
def test_user_cf_is_the_formula(neighbours):
    model = UserCf(neighbours=neighbours)
    model.fit(TRAIN)
    asked = [(0, [0, 1]), (1, [4, 5]), (2, [0, 3]), (3, [0, 2, 5]), (3, [])]
    test = inputs([(u, h, [(a, 0) for a in range(6)]) for u, h in asked], ADS, USERS)
    expected = [user_oracle(h, u if u < 3 else None, a, neighbours) for u, h in asked for a in range(6)]
    np.testing.assert_allclose(model.score(test), expected, atol=1e-6)


def test_item_cf_is_the_formula():
    model = ItemCf()
    model.fit(TRAIN)
    asked = [(0, [0, 1]), (1, [4, 5]), (3, [0, 2, 5]), (3, [])]
    test = inputs([(u, h, [(a, 0) for a in range(6)]) for u, h in asked], ADS, USERS)
    near = cosine_similarity(CLICKED.T)
    expected = [sum(near[i, j] for j in h if j != i) / max(len(h), 1) for _, h in asked for i in range(6)]
    np.testing.assert_allclose(model.score(test), expected, atol=1e-6)


@pytest.mark.parametrize("model", [UserCf(), ItemCf(), ImplicitAls(factors=4)])
def test_renumbered_ads_and_users_do_not_matter(model):
    model.fit(TRAIN)
    straight = inputs([(3, [0, 1], [(a, 0) for a in range(6)])], ADS, USERS)
    new_ads = catalog(["x", "a5", "a4", "a3", "a2", "a1", "a0"])
    turned = inputs([(1, [6, 5], [(6 - a, 0) for a in range(6)])], new_ads, catalog(["v", "u3"]))
    np.testing.assert_allclose(model.score(turned), model.score(straight), atol=1e-6)


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=12), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_interest_stays_within_zero_and_one(histories, ad):
    ads, users = catalog(range(10)), catalog(range(len(histories)))
    world = inputs([(u, h, [(ad, 1), ((ad + 1) % 10, 0)]) for u, h in enumerate(histories)], ads, users)
    for model in (UserCf(), ItemCf()):
        model.fit(world)
        scores = model.score(world)
        assert ((scores >= -1e-6) & (scores <= 1 + 1e-6)).all()


def test_many_histories_cross_block_borders():
    world = planted(600, seed=4)
    for model in (UserCf(neighbours=5), ItemCf()):
        model.fit(world)
        whole = model.score(world)
        some = np.arange(1500, 1800)
        np.testing.assert_allclose(model.score(world.take(some)), whole[some], atol=1e-6)


def test_als_steps_reach_the_direct_solution():
    rng = np.random.default_rng(0)
    clicks = sparse.random(12, 9, density=0.3, random_state=1, format="csr", dtype=np.float32)
    clicks.data[:] = 1
    other = rng.normal(size=(9, 4)).astype(np.float32)
    found = solve(clicks, other, np.zeros((12, 4), np.float32), confidence=5.0, regularisation=0.7, steps=30)
    for u in range(12):
        c = np.diag(1 + 5.0 * clicks[u].toarray()[0])
        left = other.T @ c @ other + 0.7 * np.eye(4)  # Hu, Koren and Volinsky, equation 4
        right = other.T @ c @ clicks[u].toarray()[0]
        np.testing.assert_allclose(found[u], np.linalg.solve(left, right), atol=1e-4)


def test_als_finds_the_checkerboard():
    # Even users click even ads, odd users odd ads; the held-out click must still be predicted.
    ads, users = catalog(range(12)), catalog(range(12))
    rng = np.random.default_rng(0)
    train = [(u, rng.permutation(np.arange(u % 2, 12, 2))[:5].tolist(), [(u % 2, 1)]) for u in range(12)]
    model = ImplicitAls(factors=2, regularisation=0.1)
    model.fit(inputs(train, ads, users), seed=0)
    scores = model.score(inputs([(u, train[u][1], [(a, 0) for a in range(12)]) for u in range(12)], ads, users)).reshape(12, 12)
    even = np.add.outer(np.arange(12), np.arange(12)) % 2 == 0
    assert scores[even].min() > 0.8 and scores[~even].max() < 0.2
