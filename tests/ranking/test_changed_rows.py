"""A pool that goes on with one changed or one new vector finds what one made anew finds."""

import numpy as np
import pytest

from adrec.ranking.constraints import Asking, Rules
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
