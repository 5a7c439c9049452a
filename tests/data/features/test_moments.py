"""Moments of batches are those of all values at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrec.data.features.moments import Moments

BATCHES = st.lists(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), max_size=20), max_size=8)


@given(BATCHES)
def test_batches_merge_to_the_whole(batches):
    moments = Moments()
    for batch in batches:
        moments.add(np.array(batch, np.float64))
    values = np.array([value for batch in batches for value in batch if not np.isnan(value)], np.float64)
    assert moments.count == len(values)
    if len(values):
        scale = max(1.0, float(np.abs(values).max()))
        assert moments.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-9 * scale)
        assert moments.total == pytest.approx(values.sum(), rel=1e-9, abs=1e-9 * scale)
        assert moments.squares == pytest.approx(np.square(values - values.mean()).sum(), rel=1e-6, abs=1e-9 * scale**2)


def test_a_far_offset_costs_no_precision():
    """The sum of squares less the square of the sum would leave nothing of this spread."""
    moments = Moments()
    for start in (0, 1, 2):
        moments.add(1e9 + np.array([start, start + 1.0]))
    assert moments.squares / moments.count == pytest.approx(np.var([0, 1, 1, 2, 2, 3]), rel=1e-6)
