"""Drawn labels protect as much as they claim, and losses on them are those of the true labels on average."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta

from adrec.privacy.labels import debiased, flip_share, randomised
from adrec.privacy.ledger import Ledger, Line
from adrec.privacy.noise import Noise
from adrec.training.losses import binary


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_either_answer_is_as_much_likelier_as_claimed(epsilon):
    rows = 400_000
    share = {truth: (randomised(np.full(rows, truth, np.float32), epsilon, Noise(seed=truth)) == 1).sum() for truth in (0, 1)}
    at_least = beta.ppf(0.001, share[1], rows - share[1] + 1) / beta.ppf(0.999, share[0] + 1, rows - share[0])
    at_most = beta.ppf(0.999, share[1] + 1, rows - share[1]) / beta.ppf(0.001, share[0], rows - share[0] + 1)
    assert math.log(at_least) <= epsilon <= math.log(at_most)  # Clopper and Pearson around the claim
    assert math.log(at_most) < epsilon + 0.05
    assert math.log((1 - flip_share(epsilon)) / flip_share(epsilon)) == pytest.approx(epsilon)


def test_a_label_that_is_not_known_stays_unknown():
    labels = np.array([np.nan, 1, 0], np.float32)
    drawn = randomised(labels, 0.1, Noise(seed=0))
    assert np.isnan(drawn).tolist() == [True, False, False] and set(drawn[1:]) <= {0, 1}


def test_the_loss_and_its_gradient_are_unbiased():
    epsilon, random = 1.0, np.random.default_rng(0)
    labels = (random.random(400) < 0.2).astype(np.float32)
    logits = torch.from_numpy(random.normal(-1, 2, 400)).requires_grad_()

    def of(values):
        loss = binary(logits, torch.from_numpy(values).double())
        return np.append(torch.autograd.grad(loss, logits)[0].numpy(), float(loss.detach()))

    draws = np.stack([of(debiased(randomised(labels, epsilon, Noise(seed=run)), epsilon)) for run in range(3000)])
    truth, error = of(labels), draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - truth) < 5 * error + 1e-9).all()
    naive = np.stack([of(randomised(labels, epsilon, Noise(seed=run))) for run in range(200)])[:, -1]
    assert abs(naive.mean() - truth[-1]) > 20 * error[-1]  # what flipped labels would teach without the correction


def test_pure_epsilons_add_up_in_the_ledger():
    lines = tuple(
        Line(f"labels of {name}", "noised", "", (), "randomised response", pure=1.5) for name in ("click", "conversion")
    )
    stored = Ledger("label", 3.0, 1e-6, "rdp", True, lines).to_json()
    assert stored["spent"] == 3.0 and stored["lines"][0]["epsilon_alone"] == 1.5
    with_sums = Ledger("label", 3.0, 1e-6, "rdp", True, (Line("config", "public", ""),)).to_json()
    assert with_sums["spent"] == 0 and "pure" not in with_sums["lines"][0]
