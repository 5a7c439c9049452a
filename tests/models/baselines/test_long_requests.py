"""LightGBM takes lists of 10,000 rows at most: a guest user of a log without hours has longer requests."""

from types import SimpleNamespace

import numpy as np
import pytest

from adrec.models.baselines.tabular.trees import request_sizes


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([3, 1], [3, 1]), ([10_000], [10_000]), ([2, 12_000, 20_000, 1], [2, 10_000, 2_000, 10_000, 10_000, 1]), ([], [])],
)
def test_longer_requests_become_several_lists(sizes, expected):
    starts = np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))])
    assert request_sizes(SimpleNamespace(examples=SimpleNamespace(request_starts=starts))).tolist() == expected
