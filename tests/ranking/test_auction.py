"""Second prices by hand, and their invariants."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.ranking.auction import budget_in_micros, expected_spend, revenue, second_prices, weighted


def test_second_price_by_hand():
    score = np.array([[0.1, 0.2, 0.05]])
    bid = np.array([[4.0, 1.0, 3.0]])
    value = revenue(score, bid)  # 0.4, 0.2, 0.15
    everyone = np.ones((1, 3), bool)
    prices = second_prices(value, score, bid, everyone, np.arange(3)[None], reserve=0.5)
    assert np.allclose(prices, [[0.2 / 0.1, 0.15 / 0.2, 0.5]])


def test_who_does_not_take_part_sets_no_price():
    score = np.full((1, 3), 0.1)
    bid = np.array([[3.0, 2.0, 1.0]])
    present = np.array([[True, False, True]])
    prices = second_prices(revenue(score, bid), score, bid, present, np.arange(3)[None], reserve=0.0)
    assert np.allclose(prices, [[1.0, np.nan, 0.0]], equal_nan=True)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31), width=st.integers(1, 12), reserve=st.sampled_from([0.0, 0.3]))
def test_price_keeps_the_place_and_never_exceeds_the_bid(seed, width, reserve):
    rng = np.random.default_rng(seed)
    score = rng.choice([0.0, 0.01, 0.1, 0.1, 0.5], (3, width))
    bid = reserve + rng.choice([0.0, 0.5, 1.0, 7.7], (3, width))
    ad = rng.permuted(np.tile(np.arange(width), (3, 1)), axis=1)
    value = revenue(score, bid)
    prices = second_prices(value, score, bid, np.ones_like(score, bool), ad, reserve=reserve)
    assert (prices <= bid + 1e-12).all()
    assert (prices >= reserve).all()
    # Paying its price as a bid, an ad still reaches the value of the next in order.
    for r in range(3):
        order = sorted(range(width), key=lambda c: (-value[r, c], ad[r, c]))
        for one, other in zip(order, order[1:], strict=False):
            assert prices[r, one] * score[r, one] >= value[r, other] - 1e-9
    assert (expected_spend(prices, score) <= expected_spend(bid, score)).all()


def test_money_is_whole_millionths():
    assert budget_in_micros(np.array([1.5, 0.0, np.nan, 1e30])).tolist() == [1_500_000, 0, 2**63 - 1, 2**62]
    assert expected_spend(np.array([0.1, np.nan]), np.array([0.33333, 0.5])).tolist() == [33_333, 0]


def test_weighted_sum_of_tasks():
    outputs = {"click": np.array([0.1, 0.2]), "conversion": np.array([0.01, 0.0])}
    assert np.allclose(weighted(outputs, {"click": 1.0, "conversion": 20.0}), [0.1 + 0.2, 0.2])
