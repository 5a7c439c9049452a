"""Calibration of rows with weights is that of so many equal rows."""

import numpy as np
import pytest

from adrec.models.blend.calibration import METHODS, fit, level_shift, log_loss


def arms(seed=0, count=60):
    """Arms with a true rate, a biased logit, and counts: rows of clicks and of misses, with weights."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-2.5, 0.7, count)
    shown = rng.integers(20, 200, count)
    clicks = rng.binomial(shown, 1 / (1 + np.exp(-true)))
    logits, labels = np.repeat(1.4 * true + 0.3, 2), np.tile([1.0, 0.0], count)
    weights = np.stack([clicks, shown - clicks], axis=1).ravel().astype(float)
    kept = weights > 0
    group = np.repeat(np.arange(count), 2)
    return logits[kept], labels[kept], weights[kept], group[kept]


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_repetition(method):
    logits, labels, weights, group = arms()
    row = np.repeat(np.arange(len(labels)), weights.astype(int))
    few = fit(logits, labels, weights=weights, method=method, groups=group)
    many = fit(logits[row], labels[row], method=method, groups=group[row])
    assert (few.rows, few.clicks) == (many.rows, many.clicks) == (len(row), int(labels[row].sum()))
    grid = np.linspace(-8, 2, 41)
    tolerance = 1e-5 if method == "temperature" else 1e-9  # a search by golden sections ends where it ends
    np.testing.assert_allclose(few.logit(grid), many.logit(grid), rtol=tolerance, atol=tolerance)
    assert few.log_loss[method] == pytest.approx(many.log_loss[method], rel=1e-6)


def test_the_level_shift_is_that_of_so_many_rows():
    logits, labels, weights, group = arms(1)
    recent = group >= 45
    row = np.repeat(np.arange(len(labels)), weights.astype(int))
    # One older period, so that where it is cut does not depend on how rows are counted.
    few = level_shift(logits, labels, np.zeros(len(labels)), recent | (group < 0), weights)
    many = level_shift(logits[row], labels[row], np.zeros(len(row)), recent[row])
    assert few == pytest.approx(many, abs=0.05) and few != 0.0


def test_weights_of_one_change_no_bit():
    logits, labels, _, group = arms(2)
    ones = np.ones(len(labels))
    assert fit(logits, labels, weights=ones, groups=group).to_json() == fit(logits, labels, groups=group).to_json()
    assert log_loss(logits, labels, ones) == log_loss(logits, labels)
