"""Eligibility block by block equals asking rule by rule."""

import numpy as np
from scipy import sparse

from adrec.ranking.constraints import Asking, Rules
from adrec.ranking.diversify import CalibratedCategories, MaximalMarginalRelevance
from adrec.ranking.ledger import Counts, earlier_sum


def world(seed=0, requests=7, ads=40):
    rng = np.random.default_rng(seed)
    rules = Rules(
        allowed=rng.random(ads) < 0.8,
        starts=rng.integers(0, 50, ads),
        ends=rng.integers(40, 120, ads),
        admits=[rng.random((4, ads)) < 0.7],
    )
    lengths = rng.integers(0, 6, requests)
    asking = Asking(
        shown_at=rng.integers(0, 120, requests),
        audience=[rng.integers(0, 4, requests)],
        clicked_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        clicked=rng.integers(0, ads, lengths.sum()),
        matched=sparse.csr_array((rng.random((requests, ads)) < 0.6).astype(np.int8)),
    )
    return rules, asking


def test_mask_agrees_with_the_spoken_reasons():
    rules, asking = world()
    whole = rules.eligible(asking, slice(0, 7), slice(0, 40))
    for r in range(7):
        for a in range(40):
            assert whole[r, a] == (not rules.why_not(asking, r, a))
    request, ad = np.divmod(np.arange(7 * 40), 40)
    assert np.array_equal(rules.pairs(asking, request, ad), whole.ravel())


def test_blocks_agree_with_the_whole():
    rules, asking = world(seed=1)
    whole = rules.eligible(asking, slice(0, 7), slice(0, 40))
    for rows in (slice(0, 3), slice(3, 7)):
        for ads in (slice(0, 15), slice(15, 40), slice(0, 40, 3), slice(5, 37, 4)):
            assert np.array_equal(rules.eligible(asking, rows, ads), whole[rows, ads])


def test_an_ad_ends_before_its_end():
    rules = Rules(allowed=np.ones(1, bool), starts=np.array([10]), ends=np.array([20]))
    asking = Asking(np.array([9, 10, 19, 20]), (), np.zeros(5, int), np.zeros(0, int))
    assert rules.eligible(asking, slice(0, 4), slice(0, 1))[:, 0].tolist() == [False, True, True, False]


def test_calibrated_lists_approach_the_history():
    category = np.array([[0] * 6 + [1] * 6])
    state = CalibratedCategories(category, np.array([[0.5, 0.5]]), strength=0.9)
    log_value = np.log(np.linspace(0.9, 0.7, 12))[None]
    free, counts = np.ones(12, bool), [0, 0]
    for _ in range(6):
        gain = np.where(free, state.weight * log_value[0] + state.offset()[0], -np.inf)
        pick = int(gain.argmax())
        free[pick] = False
        counts[category[0, pick]] += 1
        state.chosen(np.array([pick]), np.array([True]))
    assert counts == [3, 3]


def test_relevance_alone_shows_twins_and_mmr_does_not():
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    state = MaximalMarginalRelevance(vectors[None], strength=0.5)
    state.chosen(np.array([0]), np.array([True]))
    log_value = np.log([0.9, 0.8, 0.5])
    gain = state.weight * log_value + state.offset()[0]
    assert gain[2] > gain[1]


def test_counts_and_earlier_sums():
    rng = np.random.default_rng(2)
    counts, plain = Counts(), np.zeros(500, int)
    for _ in range(40):
        keys = rng.integers(0, 500, 700)
        counts.add(keys)
        np.add.at(plain, keys, 1)
    assert np.array_equal(counts.get(np.arange(500)), plain)
    held = counts.state()
    assert np.array_equal(Counts(held["key"], held["count"]).get(np.arange(500)), plain)

    key, row, weight = rng.integers(0, 6, 50), rng.integers(0, 10, 50), rng.integers(1, 9, 50)
    wanted = rng.integers(0, 6, (10, 3))
    brute = [[weight[(key == k) & (row < r)].sum() for k in wanted[r]] for r in range(10)]
    assert np.array_equal(earlier_sum(key, row, weight, wanted), brute)
