"""What goes on with one changed or one new vector finds what is made anew finds: pools, and neighbours of clicks."""

import numpy as np
import pytest

from adrec.ranking.constraints import Asking, Rules
from adrec.ranking.neighbours import Neighbours
from adrec.ranking.pool import Pool
from adrec.ranking.retrieve import ExactIndex


@pytest.mark.parametrize("method", [None, "hnsw"])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_changed_and_new_vectors_are_found_and_stale_ones_are_not(method, share):
    if method:
        pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4000, 8)).astype(np.float32)
    allowed = rng.random(4000) < share
    pool = Pool(ExactIndex(vectors), allowed, method, seed=0)
    queries = rng.normal(size=(5, 8)).astype(np.float32)
    for row in (7, 4000, 8, 4001, 7, int(np.flatnonzero(~allowed)[0]) if share < 1 else 9):
        near = 5 * queries[row % 5][None]
        vectors = np.concatenate([vectors[:row], near, vectors[row + 1 :]])
        allowed = np.concatenate([allowed[:row], [True], allowed[row + 1 :]])
        pool = pool.with_row(ExactIndex(vectors), allowed, row)
        rules = Rules(allowed=allowed, starts=np.zeros(len(allowed), np.int64), ends=np.full(len(allowed), 9))
        nothing = np.zeros(0, np.int64)
        asking = Asking(np.full(5, 5), [], np.zeros(6, np.int64), nothing, None)
        found = pool.search(queries, 20, rules, asking)
        product = np.where(allowed, queries @ vectors.T, -np.inf)
        best = np.argsort(-product, axis=1)[:, :20]
        assert row in found[row % 5]
        overlap = np.mean([len(np.intersect1d(ours, theirs)) / 20 for ours, theirs in zip(found, best, strict=True)])
        assert overlap == 1 if method is None else overlap > 0.9
        gone = rules.without([row])
        assert row not in pool.search(queries, 20, gone, asking)


def test_neighbours_of_clicks_are_those_of_vectors_made_anew():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(900, 6)).astype(np.float32)
    allowed = rng.random(900) < 0.7
    near, clicked = None, np.arange(0, 300)
    for row in (5, 900, 17, 901, 5, int(np.flatnonzero(~allowed)[0]), 400):
        vectors = np.concatenate([vectors[:row], rng.normal(size=(1, 6)), vectors[row + 1 :]]).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        allowed = np.concatenate([allowed[:row], [row != 400], allowed[row + 1 :]])
        index = ExactIndex(vectors)
        near = Neighbours(index, allowed) if near is None else near.with_row(index, allowed, row)
        searched = len(near._ad)
        ads, cosines = near.of(clicked)
        fresh = Neighbours(index, allowed)
        ads_anew, cosines_anew = fresh.of(clicked)
        np.testing.assert_array_equal(ads, ads_anew)
        np.testing.assert_allclose(cosines, cosines_anew, atol=1e-6)
        assert near.spread == fresh.spread and (searched > 100 or row == 5)  # most lists were not searched again
