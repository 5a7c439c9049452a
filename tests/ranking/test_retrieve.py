"""Exact retrieval equals sorting everything, whatever the blocks, ties and eligibility."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.ranking.retrieve import ExactIndex


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    ads=st.integers(1, 1_200),
    requests=st.integers(1, 9),
    k=st.integers(1, 50),
    ad_block=st.sampled_from([7, 32, 64, 100, 4096]),
    request_block=st.sampled_from([1, 4, 100]),
    share=st.sampled_from([0.0, 0.05, 0.7, 1.0]),
)
def test_equals_sorting_everything(seed, ads, requests, k, ad_block, request_block, share):
    rng = np.random.default_rng(seed)
    # Small integers: products are exact in float32 and tie often.
    queries = rng.integers(-2, 3, (requests, 5)).astype(np.float32)
    catalogue = rng.integers(-2, 3, (ads, 5)).astype(np.float32)
    mask = rng.random((requests, ads)) < share
    found = ExactIndex(catalogue).search(
        queries, k, eligible=lambda r, a: mask[r, a], ad_block=ad_block, request_block=request_block
    )
    products = np.where(mask, queries @ catalogue.T, -np.inf)
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(products, order, axis=1)
    width = order.shape[1]
    assert np.array_equal(found.ad[:, :width], np.where(np.isinf(values), -1, order))
    assert np.array_equal(found.similarity[:, :width], values)
    assert (found.ad[:, width:] == -1).all()


@pytest.mark.parametrize("spread", [1.0, 0.01])
@pytest.mark.parametrize(("requests", "width"), [(90, 12), (5, 64), (1, 64)])
def test_requests_of_real_vectors_equal_sorting_everything(spread, requests, width):
    """With a small spread all products are alike."""
    rng = np.random.default_rng(3)
    ads = (1 + spread * rng.standard_normal((36_000, width))).astype(np.float32)
    queries = (1 + spread * rng.standard_normal((requests, width))).astype(np.float32)
    mask = rng.random((requests, 36_000)) < 0.8
    found = ExactIndex(ads).search(queries, 8, eligible=lambda r, a: mask[r, a], ad_block=4_000)
    products = np.where(mask, queries.astype(np.float64) @ ads.T.astype(np.float64), -np.inf)
    expected = np.sort(products, axis=1)[:, :-9:-1]
    assert mask[np.arange(requests)[:, None], found.ad].all()
    assert all(len(set(row)) == 8 for row in found.ad.tolist())
    assert np.allclose(np.take_along_axis(products, found.ad.astype(np.int64), axis=1), expected, rtol=6e-7, atol=0)
    assert np.allclose(found.similarity, expected, rtol=1e-6)


def test_few_requests_find_the_same_in_one_block_and_where_few_ads_are_eligible():
    """All ads at once, as serving does: a user whose vector is zero, one with fewer eligible ads than wanted, ads of zero."""
    rng = np.random.default_rng(1)
    ads = rng.standard_normal((9_000, 80)).astype(np.float32)
    ads[::100] = 0.0
    queries = rng.standard_normal((3, 80)).astype(np.float32)
    queries[1] = 0.0
    mask = np.ones((3, 9_000), bool)
    mask[2, 20:] = False
    index = ExactIndex(ads)
    for rows in ([0], [0, 1], [0, 1, 2]):
        found = index.search(queries[rows], 50, eligible=lambda r, a, rows=rows: mask[rows][r, a])
        products = np.where(mask[rows], queries[rows].astype(np.float64) @ ads.T.astype(np.float64), -np.inf)
        order = np.argsort(-products, axis=1, kind="stable")[:, :50]
        assert np.array_equal(found.ad, np.where(np.isinf(np.take_along_axis(products, order, axis=1)), -1, order))


def test_a_sample_that_holds_all_the_best_misleads_nobody():
    """Every 32nd ad, those that the guess is made from, is far better than the others."""
    rng = np.random.default_rng(0)
    ads = rng.standard_normal((6_400, 8)).astype(np.float32)
    ads[::32] *= 10
    queries = rng.standard_normal((20, 8)).astype(np.float32)
    expected = np.argsort(-(queries @ ads.T), axis=1, kind="stable")[:, :150]
    assert np.array_equal(ExactIndex(ads).search(queries, 150, ad_block=700).ad, expected)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="one width"):
        ExactIndex(np.zeros((2, 4), np.float32)).search(np.zeros((2, 3), np.float32), 1)
    with pytest.raises(ValueError, match="at least 1"):
        ExactIndex(np.zeros((2, 3), np.float32)).search(np.zeros((2, 3), np.float32), 0)
