"""Probabilities of what happens in the end from labels half of which are still to come, in worlds whose truth is known."""

import numpy as np
import pytest
from scipy.special import expit

from adrec.metrics.delays import fit_delay_curve
from adrec.models.blend import calibration
from adrec.models.blend.late_labels import fit_seen


def test_a_line_through_what_is_seen_by_now_is_of_what_comes_in_the_end():
    rng = np.random.default_rng(4)
    x, share = rng.normal(-1, 1, 200_000), rng.uniform(0, 1, 200_000)
    share[:500] = 0
    happens = rng.random(len(x)) < 1 / (1 + np.exp(-(0.7 * x - 0.4)))
    seen = (happens & (rng.random(len(x)) < share)).astype(np.float32)
    fitted = fit_seen(x, seen, share, is_level=False)
    assert (fitted.slope, fitted.intercept) == pytest.approx((0.7, -0.4), abs=0.03)
    plain = calibration.fit(x, seen, method="platt")
    assert plain.apply(x).mean() < 0.6 * happens.mean(), "or nothing was missing"
    level = fit_seen(0.7 * x, np.where(np.arange(len(x)) % 3, seen, np.nan), share, is_level=True)
    assert (level.slope, level.intercept) == pytest.approx((1, -0.4), abs=0.03)
    # With all of it seen it is Platt's line.
    whole, usual = fit_seen(x, happens, np.ones(len(x)), is_level=False), calibration.fit(x, happens, method="platt")
    assert (whole.slope, whole.intercept) == pytest.approx((usual.slope, usual.intercept), abs=1e-3)
    assert fit_seen(x[:8], np.zeros(8), share[:8], is_level=False).method == "none"


def test_a_likely_row_that_is_also_fast_makes_no_slope():
    """Half of the ads convert often and at once, the others seldom and late; all rows are a day and a half young at most."""
    rng = np.random.default_rng(0)
    rows = 400_000
    is_fast = rng.random(rows) < 0.5
    true = np.where(is_fast, -1.5, -2.5) + rng.normal(0, 0.5, rows)
    happens = rng.random(rows) < expit(true)
    delay = rng.exponential(np.where(is_fast, 8.0, 60.0))
    old, young = rng.uniform(0, 400, rows), rng.uniform(0, 36, rows)
    known = happens & (delay <= old)
    curve = fit_delay_curve(delay[known], old[known])
    seen, share = (happens & (delay <= young)).astype(np.float32), curve.by(young)
    line, level = (fit_seen(true, seen, share, is_level=which) for which in (False, True))
    assert line.slope > 1.2, "or the world is not what the test is about"
    assert (level.slope, level.intercept) == pytest.approx((1, 0), abs=0.05)
    for edge in (slice(None), is_fast, ~is_fast):
        assert level.apply(true[edge]).sum() == pytest.approx(happens[edge].sum(), rel=0.04)
    loss_of_line, loss = (calibration.log_loss(fitted.logit(true), happens.astype(float)) for fitted in (line, level))
    assert loss < loss_of_line - 0.001
