"""Losses against sums written out, and what must not change them."""

import math

import numpy as np
import pytest
import torch

from adrec.training import losses

NAN = float("nan")


def _positive(label):
    return torch.nonzero(label > 0).squeeze(-1)


def _bpr(logits, label, group):
    return losses.bpr(logits, label, group, _positive(label))


def _world(seed=0, rows=40, groups=9):
    rng = np.random.default_rng(seed)
    group = torch.tensor(np.sort(rng.integers(0, groups, rows)))
    _, group = torch.unique(group, return_inverse=True)
    label = torch.tensor(rng.choice([0.0, 0.0, 1.0, NAN], rows), dtype=torch.float32)
    return torch.tensor(rng.normal(size=rows), dtype=torch.float32), label, group


@pytest.mark.parametrize("seed", range(5))
def test_listwise_is_the_softmax_of_each_positive_against_its_negatives(seed):
    logits, label, group = _world(seed)
    terms = []
    for row in range(len(logits)):
        others = [float(logits[j]) for j in range(len(logits)) if group[j] == group[row] and label[j] == 0]
        if label[row] == 1 and others:
            own = math.exp(float(logits[row]))
            terms.append(-math.log(own / (own + sum(math.exp(x) for x in others))))
    assert float(losses.listwise(logits, label, group)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_bpr_is_the_mean_over_pairs(seed):
    logits, label, group = _world(seed)
    terms = [
        -math.log(1 / (1 + math.exp(-(float(logits[i]) - float(logits[j])))))
        for i in range(len(logits))
        for j in range(len(logits))
        if group[i] == group[j] and label[i] == 1 and label[j] == 0
    ]
    assert float(_bpr(logits, label, group)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_in_batch_with_log_frequency():
    generator = torch.Generator().manual_seed(0)
    users, ads = torch.randn(4, 6, generator=generator), torch.randn(5, 6, generator=generator)
    context, ad = torch.tensor([0, 1, 2, 3, 3]), torch.tensor([0, 1, 0, 2, 4])
    label, log_q = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]), torch.log(torch.tensor([0.4, 0.3, 0.4, 0.2, 0.1]))
    terms = []
    for row in range(4):
        # Row 2 has the ad of row 0: neither is a negative of the other.
        rivals = [j for j in range(4) if j == row or ad[j] != ad[row]]
        logit = {j: float(users[context[row]] @ ads[ad[j]]) / math.sqrt(6) - float(log_q[j]) for j in rivals}
        terms.append(-logit[row] + math.log(sum(math.exp(x) for x in logit.values())))
    found = losses.in_batch(users, ads, context, ad, _positive(label), log_q)
    assert float(found) == pytest.approx(sum(terms) / 4, rel=1e-5)


@pytest.mark.parametrize("name", ["binary", "squared"])
def test_missing_labels_are_left_out(name):
    loss = getattr(losses, name)
    logits, label = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([1.0, NAN, 0.0])
    assert float(loss(logits, label)) == pytest.approx(float(loss(logits[[0, 2]], label[[0, 2]])))
    assert float(loss(logits, torch.full((3,), NAN))) == 0.0


@pytest.mark.parametrize("loss", [losses.listwise, _bpr])
def test_nothing_to_compare_is_zero_with_a_gradient(loss):
    logits = torch.randn(4, requires_grad=True)
    value = loss(logits, torch.tensor([1.0, 1.0, 0.0, NAN]), torch.tensor([0, 0, 1, 1]))
    value.backward()
    assert float(value) == 0.0 and torch.equal(logits.grad, torch.zeros(4))


@pytest.mark.parametrize("loss", [losses.listwise, _bpr])
def test_a_shift_of_a_group_changes_nothing_and_huge_logits_stay_finite(loss):
    logits, label, group = _world(3)
    shift = torch.linspace(-3, 3, int(group.max()) + 1)[group]
    assert float(loss(logits + shift, label, group)) == pytest.approx(float(loss(logits, label, group)), rel=1e-4)
    assert torch.isfinite(loss(logits * 1e4, label, group))


def test_learned_weights_follow_the_formula():
    weights = losses.TaskWeights(weights=(1.0, 1.0), learned=True, is_binary=(True, False))
    with torch.no_grad():
        weights.log_variance.copy_(torch.tensor([0.5, -1.0]))
    found = weights(torch.tensor([0.7, 2.0]))
    expected = math.exp(-0.5) * 0.7 + 0.5 / 2 + math.exp(1.0) * 2.0 / 2 - 1.0 / 2
    assert float(found) == pytest.approx(expected, rel=1e-6)
    fixed = losses.TaskWeights(weights=(2.0, 3.0), learned=False, is_binary=(True, True))
    assert float(fixed(torch.tensor([1.0, 10.0]))) == 32.0
