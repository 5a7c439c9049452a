"""The losses of late labels: the papers' formulas in loops, and what they recover in a world whose truth is known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import weibull_min

from adrec.metrics.delays import DelayCurve, fit_delay_curve
from adrec.models.net.delay import (
    DelayLoss,
    delayed_feedback,
    elapsed_time_sampled,
    fake_negative_weighted,
    sampling_heads,
)


def rows(count=40, seed=0):
    """Logits, labels by now, delays, elapsed hours and two further logits, as float64."""
    generator = np.random.default_rng(seed)
    elapsed = generator.uniform(1, 100, count)
    happened = (generator.random(count) < 0.5).astype(float)
    delay = np.where(happened > 0, generator.uniform(0, elapsed), np.nan)
    return [torch.from_numpy(values) for values in (generator.normal(size=count), happened, delay, elapsed,
            generator.normal(size=count), generator.normal(size=count))]  # fmt: skip


def probability(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("shape", [1.0, 1.7, 0.6])
def test_delayed_feedback_is_the_likelihood_of_chapelle(shape):
    logits, happened, delay, elapsed, log_rate, _ = rows()
    log_rate = log_rate - 4  # in hours
    log_shape = torch.full_like(logits, math.log(shape))
    found = delayed_feedback(logits, happened, torch.nan_to_num(delay), elapsed, log_rate, log_shape)
    for i in range(len(logits)):
        p, scale = probability(logits[i]), math.exp(-log_rate[i])
        likelihood = p * weibull_min.pdf(delay[i], shape, scale=scale)
        if not happened[i]:
            likelihood = 1 - p + p * weibull_min.sf(elapsed[i], shape, scale=scale)
        assert float(found[i]) == pytest.approx(-math.log(likelihood), rel=1e-6)


def test_fake_negatives_are_weighted_as_ktena_says():
    logits, happened, *_ = rows()
    logits.requires_grad_()
    found = fake_negative_weighted(logits, happened)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    for i in range(len(logits)):
        p = probability(float(logits[i].detach()))
        negative, positive = (1 + p) * (1 - p), (1 + p) * float(happened[i])
        assert float(found[i].detach()) == pytest.approx(-negative * math.log(1 - p) - positive * math.log(p), rel=1e-9)
        # Weights have no gradient: that of -log(1 - p) is p, that of -log p is p - 1.
        assert float(slope[i]) == pytest.approx(negative * p + positive * (p - 1), rel=1e-9)


def test_elapsed_time_sampling_is_weighted_as_yang_says():
    logits, happened, delay, _, late, real = rows()
    wait, again = 20.0, torch.full_like(logits, 1.7)
    found = elapsed_time_sampled(logits, happened, torch.nan_to_num(delay), wait, late, real, again)
    heads = sampling_heads(happened, torch.nan_to_num(delay), wait, late, real, again)
    for i in range(len(logits)):
        p, dp, rn = (probability(float(values[i])) for values in (logits, late, real))
        entries = []  # (label, weight) of each time that the row enters
        is_late = bool(happened[i]) and float(delay[i]) > wait
        if happened[i] and not is_late:
            entries.append((1, 1 + dp))
        else:
            entries.append((0, (1 + dp) * rn))
            if is_late:
                entries.append((1, 1.7 * (1 + dp)))
        expected = sum(-weight * math.log(p if label else 1 - p) for label, weight in entries)
        assert float(found[i]) == pytest.approx(expected, rel=1e-9)
        of_late = -1.7 * math.log(dp) if is_late else -math.log(1 - dp)
        of_real = 0.0 if entries[0][0] else (-1.7 * math.log(1 - rn) if is_late else -math.log(rn))
        assert float(heads[i]) == pytest.approx(of_late + of_real, rel=1e-9)


def world(seed=0, rows=16_000):
    """Two kinds of ads: of the dear kind as many convert, much later. Rows, and the true probability of each kind."""
    generator = np.random.default_rng(seed)
    kind = generator.integers(0, 2, rows)
    truth = np.array([0.30, 0.30])
    happens = generator.random(rows) < truth[kind]
    delay = generator.exponential(np.array([6.0, 60.0])[kind])
    elapsed = generator.uniform(0, 240, rows)
    seen = happens & (delay <= elapsed)
    return kind, seen, np.where(seen, delay, np.nan), elapsed, truth


def learned(method, seed=0):
    """What a network of two numbers comes to believe of the two kinds."""
    kind, seen, delay, elapsed, truth = world(seed)
    torch.manual_seed(seed)
    curve = fit_delay_curve(delay[seen], elapsed[seen])
    loss = DelayLoss(method=method, wait_hours=24.0, curve=curve, width=4)
    logits = torch.zeros(2, requires_grad=True)
    vectors = torch.eye(4)[:2] * 2 - 0.5
    optimizer = torch.optim.Adam([{"params": [logits], "lr": 0.08}, {"params": list(loss.parameters()), "lr": 0.02}])
    code = torch.from_numpy(kind)
    labels, late, hours = (torch.from_numpy(v.astype(np.float32)) for v in (seen, delay, elapsed))
    for _ in range(120):
        optimizer.zero_grad()
        loss(logits[code], labels, late, hours, torch.ones(len(code), 4), vectors[code], None).backward()
        optimizer.step()
    return torch.sigmoid(logits).detach().numpy(), truth


def test_methods_make_up_for_what_has_not_come():
    believed, truth = learned("none")
    assert believed[1] < 0.78 * truth[1], "or there is nothing to make up for"
    shortfall = truth[1] - believed[1]
    for method, most in (("wait", 0.95), ("dfm", 0.25), ("es_dfm", 0.6)):
        believed, _ = learned(method)
        assert abs(believed[1] - truth[1]) < most * shortfall, method
        assert believed[0] == pytest.approx(truth[0], abs=0.03), method


def test_what_has_not_come_by_the_cut_is_lost_on_fake_negatives():
    assert learned("fnw")[0] == pytest.approx(learned("none")[0], abs=0.01)


def test_rows_without_label_or_too_young_say_nothing():
    loss = DelayLoss(method="wait", wait_hours=24.0, curve=DelayCurve(np.array([1.0]), np.array([1.0])), width=2)
    logits, vectors = torch.zeros(4, requires_grad=True), torch.zeros(4, 2)
    labels, delay = torch.tensor([1.0, 0.0, math.nan, 1.0]), torch.tensor([1.0, math.nan, math.nan, 30.0])
    elapsed = torch.tensor([23.0, 30.0, 50.0, 40.0])
    value = loss(logits, labels, delay, elapsed, vectors, vectors, None)
    assert float(value.detach()) == pytest.approx(math.log(2))
    (slope,) = torch.autograd.grad(value, logits)
    assert slope.tolist() == [0, 0.25, 0, -0.25]
