"""EASE and transitions against ten-line oracles; what validation chooses; what a bundle keeps."""

import numpy as np
import pytest
from baseline_worlds import catalog, inputs

from adrec.models.baselines.collaborative.items import Ease, ItemTransitions
from adrec.models.baselines.suite import fit_all, load_all, save_all

ADS = catalog([f"a{i}" for i in range(7)])
USERS = catalog([f"u{i}" for i in range(4)])
TRAIN = inputs(
    [
        (0, [0, 1], [(2, 1), (3, 0)]),
        (0, [0, 1, 2], [(4, 1), (5, 0)]),
        (1, [], [(0, 1), (4, 0)]),
        (1, [0], [(1, 1), (2, 0)]),
        (2, [3, 5, 3], [(4, 0), (5, 1)]),
    ],
    ADS,
    USERS,
)
CLICKED = np.array([[1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1]], float)
# Each user's whole sequence.
SEQUENCES = [[0, 1, 2, 4], [0, 1], [3, 5, 3, 5]]
ASKED = [(0, [0, 1]), (1, [4, 5]), (3, [0, 2, 5]), (3, [])]
TEST = inputs([(u, h, [(a, 0) for a in range(7)]) for u, h in ASKED], ADS, USERS)


def scored(weights, half_life, ties):
    """(rows of TEST,) the sum over the history by a loop; ad 6 was never clicked."""
    found = []
    for _, history in ASKED:
        for ad in range(7):
            value = ties[ad] if ad < 6 else 0.0
            for back, earlier in enumerate(reversed(history)):
                fade = 1.0 if half_life is None else 0.5 ** (back / half_life)
                value += fade * weights[earlier, ad] if ad < 6 else 0.0
            found.append(value)
    return found


@pytest.mark.parametrize("ridge", [0.5, 30.0])
def test_ease_is_the_closed_form(ridge):
    model = Ease(strength=ridge, half_life=2.0)
    model.fit(TRAIN)
    inverse = np.linalg.inv(CLICKED.T @ CLICKED + ridge * np.eye(6))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    counts = CLICKED.sum(0)
    np.testing.assert_allclose(model.score(TEST), scored(weights, 2.0, 1e-6 * counts / counts.max()), atol=1e-6)


def test_ease_solves_its_least_squares():
    """The closed form is the least squares problem of each ad on all others (Steck 2019, equation 4)."""
    model = Ease(strength=3.0)
    model.fit(TRAIN)
    for ad in range(6):
        others = [i for i in range(6) if i != ad]
        x = CLICKED[:, others]
        own = np.linalg.solve(x.T @ x + 3.0 * np.eye(5), x.T @ CLICKED[:, ad])
        np.testing.assert_allclose(model.weights[others, ad], own, atol=1e-6)
        assert model.weights[ad, ad] == 0


def test_transitions_are_the_pairs_of_each_sequence_once():
    model = ItemTransitions(half_life=3.0)
    model.fit(TRAIN)
    weights, counts = np.zeros((6, 6)), np.zeros(6)
    for sequence in SEQUENCES:
        for place, ad in enumerate(sequence):
            counts[ad] += 1
            for later in range(place + 1, len(sequence)):
                weights[ad, sequence[later]] += 1 / (later - place)
    weights /= np.sqrt(counts[:, None] * counts[None, :])
    popular = CLICKED.sum(0)
    np.testing.assert_allclose(model.score(TEST), scored(weights, 3.0, 1e-6 * popular / popular.max()), atol=1e-6)


def test_without_a_history_the_popular_come_first():
    for model in (Ease(), ItemTransitions()):
        model.fit(TRAIN)
        last = model.score(TEST)[-7:]
        assert set(np.argsort(-last, kind="stable")[:2].tolist()) == {0, 1} and last[6] == 0


def successions(rows, seed, chain):
    """Users who go on from the last click with `chain` (the ad after it), or from the first of their history."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(rows):
        history = rng.integers(0, 7, 4).tolist()
        step = history[-1] if chain == "last" else history[0]
        click = (step + 1) % 7
        found.append((number % 4, history, [(click, 1), ((click + 3) % 7, 0)]))
    return inputs(found, ADS, USERS)


def test_validation_chooses_how_fast_clicks_fade():
    train, valid = successions(300, 0, "last"), successions(100, 1, "last")
    model = ItemTransitions()
    model.fit(train, valid)
    assert model.half_life == 1.0
    again = ItemTransitions()
    again.adopt(model)
    again.fit(train)
    assert (again.half_life, again.strength) == (model.half_life, model.strength)


def test_a_bundle_keeps_both(tmp_path):
    suite = fit_all(["ease", "item_transitions"], TRAIN, TEST)
    save_all(suite.fitted, tmp_path / "baselines")
    for name, model in load_all(tmp_path / "baselines").items():
        np.testing.assert_array_equal(model.score(TEST), suite.fitted[name].score(TEST))
    again = fit_all(list(suite.fitted), TRAIN, like=suite.fitted)
    assert again.fitted["ease"].strength == suite.fitted["ease"].strength
