"""A row that weighs w gives the loss and the gradient of w equal rows."""

import pytest
import torch

from adrec.training import losses
from adrec.training.click_distillation import binary_soft_loss

NAN = float("nan")


def world(seed, rows=24):
    """Rows of a few groups, and how often each counts."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.sort(torch.randint(0, 5, (rows,), generator=generator)).values
    group = torch.unique(group, return_inverse=True)[1]
    labels = torch.randint(0, 2, (rows,), generator=generator).float()
    labels[::9] = NAN
    weight = torch.randint(1, 6, (rows,), generator=generator)
    logits = torch.randn(rows, generator=generator, dtype=torch.float64)
    return logits, labels.double(), group, weight


def positive(labels):
    return torch.nonzero(labels > 0).squeeze(-1)


def gradient(loss, logits):
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    value.backward()
    return float(value.detach()), logits.grad


POINTWISE = {
    "binary": lambda z, y, group, w: losses.binary(z, y, w),
    "squared": lambda z, y, group, w: losses.squared(z, y, w),
}
GROUPED = {
    "listwise": losses.listwise,
    "bpr": lambda z, y, group, w: losses.bpr(z, y, group, positive(y), w),
}


@pytest.mark.parametrize("name", [*POINTWISE, *GROUPED])
@pytest.mark.parametrize("seed", range(4))
def test_weights_are_repetition(name, seed):
    logits, labels, group, times = world(seed)
    loss = {**POINTWISE, **GROUPED}[name]
    row = torch.repeat_interleave(torch.arange(len(logits)), times)
    weight = times.double()
    if name in POINTWISE:  # of mean 1 over the rows that count
        weight = weight / weight[~torch.isnan(labels)].mean()
    value, slope = gradient(lambda z: loss(z, labels, group, weight), logits)
    whole, slope_of_each = gradient(lambda z: loss(z, labels[row], group[row], None), logits[row])
    assert value == pytest.approx(whole, rel=1e-9)
    summed = torch.zeros_like(logits).scatter_add(0, row, slope_of_each)
    torch.testing.assert_close(slope, summed, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_in_batch_weights_are_repetition(seed):
    generator = torch.Generator().manual_seed(seed)
    users, ads = (torch.randn(count, 3, generator=generator, dtype=torch.float64) for count in (6, 5))
    rows = 12
    context, ad = (torch.randint(0, count, (rows,), generator=generator) for count in (6, 5))
    labels = torch.randint(0, 2, (rows,), generator=generator).double()
    times = torch.randint(1, 4, (rows,), generator=generator)
    frequency = torch.randn(rows, generator=generator, dtype=torch.float64)
    row = torch.repeat_interleave(torch.arange(rows), times)
    weighted = losses.in_batch(users, ads, context, ad, positive(labels), frequency, times.double())
    whole = losses.in_batch(users, ads, context[row], ad[row], positive(labels[row]), frequency[row])
    assert float(weighted) == pytest.approx(float(whole), rel=1e-9)


def test_soft_targets_weigh_too():
    logits, _, _, times = world(3)
    teacher = torch.roll(logits, 1)[:, None]
    row = torch.repeat_interleave(torch.arange(len(logits)), times)
    weighted = binary_soft_loss(logits[:, None], teacher, 2.0, times.double() / times.double().mean())
    assert float(weighted) == pytest.approx(float(binary_soft_loss(logits[row, None], teacher[row], 2.0)), rel=1e-9)


@pytest.mark.parametrize("name", [*POINTWISE, *GROUPED])
def test_weights_of_one_are_none(name):
    logits, labels, group, _ = world(1)
    loss = {**POINTWISE, **GROUPED}[name]
    assert float(loss(logits, labels, group, torch.ones_like(logits))) == pytest.approx(
        float(loss(logits, labels, group, None)), rel=1e-12
    )
