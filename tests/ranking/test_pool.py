"""Rules hold in approximate search, and a list is full wherever enough ads are allowed: verticals, audiences, moments."""

import numpy as np
import pytest
from scipy import sparse

from adrec.ranking.constraints import Asking, Rules
from adrec.ranking.pool import RECALL_TARGET, Pool
from adrec.ranking.recall import shares_of
from adrec.ranking.retrieve import ExactIndex

ADS, REQUESTS, WIDTH = 12_000, 30, 16


def asking_of(requests=REQUESTS, *, ads=ADS, seed=1, at=50, clicks=20):
    rng = np.random.default_rng(seed)
    return Asking(
        shown_at=np.full(requests, at),
        audience=[rng.integers(0, 3, requests)],
        clicked_offsets=np.arange(requests + 1) * clicks,
        clicked=rng.integers(0, ads, requests * clicks),
        matched=None,
    )


def rules_of(*, ads=ADS, seed=2, vertical=1.0, audience=1.0, active=1.0):
    rng = np.random.default_rng(seed)
    return Rules(
        allowed=rng.random(ads) < vertical,
        starts=np.zeros(ads, np.int64),
        ends=np.where(rng.random(ads) < active, 100, 50),
        admits=[rng.random((4, ads)) < audience],
    )


def vectors(ads=ADS, requests=REQUESTS, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((rows, WIDTH), dtype=np.float32) for rows in (ads, requests))


CASES = {
    "no rules": {},
    "a vertical of 1 %": {"vertical": 0.01},
    "a vertical of 60 %": {"vertical": 0.6},
    "an audience that 1 % address": {"audience": 0.01},
    "2 % are active": {"active": 0.02},
    "half, to a quarter, a third active": {"vertical": 0.5, "audience": 0.25, "active": 0.33},
    "nothing is allowed": {"vertical": 0.0},
}


@pytest.mark.parametrize("method", [None, "hnsw", pytest.param("ivfpq", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_lists_are_full_keep_the_rules_and_hold_the_nearest(method, case):
    pytest.importorskip("faiss")
    ads, queries = vectors()
    rules, asking = rules_of(**CASES[case]), asking_of()
    k = 60
    pool = Pool(ExactIndex(ads), rules.allowed, method, seed=0)
    found = pool.search(queries, k, rules, asking)
    allowed = rules.eligible(asking, slice(0, REQUESTS), slice(0, ADS))
    products = np.where(allowed, queries @ ads.T, -np.inf)
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    best = np.where(np.take_along_axis(products, order, axis=1) > -np.inf, order, -1)
    for row in range(REQUESTS):
        mine = found[row][found[row] >= 0]
        assert len(mine) == min(k, allowed[row].sum()) == len(set(mine.tolist())), "the list is full"
        assert allowed[row, mine].all(), "the rules hold"
        assert (np.diff(products[row, mine]) <= 1e-4).all(), "best first"
    if allowed.any():
        reached = np.nanmean(shares_of(best, found))
        assert reached == 1.0 if method is None else reached >= RECALL_TARGET - 0.01
        assert pool.recall is None or pool.recall == pytest.approx(reached), "measured under the rules"


def test_what_some_requests_bring_is_what_they_brought_in_the_block():
    rng = np.random.default_rng(5)
    asking = asking_of(9, ads=80, clicks=4)._replace(
        clicked_offsets=np.concatenate([[0], np.sort(rng.integers(0, 37, 8)), [36]]),
        matched=sparse.csr_array((rng.random((9, 80)) < 0.5).astype(np.int8)),
    )
    rules = rules_of(ads=80, audience=0.7, active=0.7)
    whole = rules.eligible(asking, slice(0, 9), slice(0, 80))
    some = np.array([7, 2, 2, 0])
    assert np.array_equal(rules.eligible(asking.of(some), slice(0, 4), slice(0, 80)), whole[some])
    rows = np.sort(rng.permutation(80)[:30])
    place = np.full(80, -1)
    place[rows] = np.arange(30)
    own = rules.of(rows).eligible(asking.over(place, rows), slice(0, 9), slice(0, 30))
    assert np.array_equal(own, whole[:, rows])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hnsw", "ivfpq"])
def test_a_vertical_of_one_in_a_hundred_of_two_million_gets_its_full_list(method):
    pytest.importorskip("faiss")
    ads, queries = vectors(2_000_000)
    rules, asking = rules_of(ads=2_000_000, vertical=0.01), asking_of(ads=2_000_000)
    found = Pool(ExactIndex(ads), rules.allowed, method, seed=0).search(queries, 200, rules, asking)
    assert (found >= 0).all() and rules.allowed[found].all()


@pytest.mark.slow
def test_an_audience_that_one_in_a_hundred_of_two_million_address_gets_its_full_list():
    pytest.importorskip("faiss")
    ads, queries = vectors(2_000_000)
    rules, asking = rules_of(ads=2_000_000, audience=0.01), asking_of(ads=2_000_000)
    found = Pool(ExactIndex(ads), rules.allowed, "ivfpq", seed=0).search(queries, 200, rules, asking)
    assert (found >= 0).all()
    assert rules.admits[0][asking.audience[0][:, None], found].all()
