"""The block ranking equals serving requests one by one, on random small worlds with every constraint on."""

import math

import numpy as np
import pytest
from brute_force import serve_all
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.ranking.auction import budget_in_micros
from adrec.ranking.diversify import ByValue, CalibratedCategories, MaximalMarginalRelevance
from adrec.ranking.ledger import UNLIMITED, Ledger
from adrec.ranking.policy import Candidates, ListPolicy, rank_block

ADS, CATEGORIES, CAMPAIGNS, WIDTH = 12, 3, 5, 8


def random_world(seed, requests, diversity, budget_scale):
    rng = np.random.default_rng(seed)
    ad = np.stack([rng.permutation(ADS)[:WIDTH] for _ in range(requests)])
    ad[rng.random(ad.shape) < 0.1] = -1
    score = rng.choice([0.0, 0.05, 0.1, 0.2, 0.2, 0.5, 0.9], size=ad.shape)  # ties on purpose
    bid_of = np.where(rng.random(ADS) < 0.1, np.nan, rng.choice([0.5, 1.0, 1.0, 2.0, 3.3], ADS))
    campaign_of = rng.integers(-1, CAMPAIGNS, ADS)
    advertiser_of = rng.integers(-1, 4, ADS)
    category_of = rng.integers(-1, CATEGORIES, ADS)
    share = rng.dirichlet(np.ones(CATEGORIES), requests)
    share[rng.random(requests) < 0.2] = 0.0
    at = np.maximum(ad, 0)
    bid = np.where(ad >= 0, bid_of[at], np.nan)
    return {
        "user": rng.integers(0, 4, requests),
        "policy": rng.integers(0, 2, requests),
        "ad": ad,
        "score": score,
        "value": score * np.nan_to_num(bid),
        "bid": bid,
        "advertiser": np.where(ad >= 0, advertiser_of[at], -1),
        "category": np.where(ad >= 0, category_of[at], -1),
        "campaign": np.where(ad >= 0, campaign_of[at], -1),
        "budget": np.where(rng.random(ADS) < 0.2, np.nan, rng.random(ADS) * budget_scale),
        "day": 20_000 + np.sort(rng.integers(0, 3, requests)),
        "share": share,
        "vector": rng.standard_normal((ADS, 4)).astype(np.float32),
        "diversity": diversity,
    }


def rank_world(world, policies, block, *, daily=False):
    requests = len(world["user"])
    ledger = Ledger(budget_in_micros(world["budget"]), CAMPAIGNS, daily=daily)
    ads, prices = [], []
    for start in range(0, requests, block):
        rows = slice(start, min(start + block, requests))
        candidates = Candidates(
            np.arange(requests)[rows],
            *(world[name][rows] for name in Candidates._fields[1:-1]),
            np.full(world["ad"][rows].shape, 0.3),
        )  # fmt: skip
        ad, category, share = world["ad"][rows], world["category"][rows], world["share"][rows]
        method, strength = world["diversity"]
        vector = world["vector"].astype(np.float64)
        vector /= np.linalg.norm(vector, axis=1, keepdims=True)
        make = {
            "none": lambda mine: ByValue(ad[mine].shape),
            "mmr": lambda mine, ad=ad, vector=vector: MaximalMarginalRelevance(vector[ad[mine]], strength=strength),
            "calibrated": lambda mine: CalibratedCategories(category[mine], share[mine], strength=strength),
        }[method]
        how = {"released": rows.stop / requests, "seed": 7, "day": world["day"][rows]}
        ranked = rank_block(candidates, policies, [make] * len(policies), ledger, **how)
        assert ((ranked.propensity > 0) == (ranked.ad >= 0)).all()
        ads.extend(ranked.ad)
        prices.extend(ranked.price)
    return ads, prices, ledger


caps = st.sampled_from([1, 2, 3, UNLIMITED])
policies = st.builds(
    ListPolicy,
    top_n=st.integers(1, 6),
    auctioned=st.booleans(),
    reserve=st.just(0.0),
    minimum_value=st.sampled_from([0.0, 0.1]),
    per_advertiser=caps,
    per_category=caps,
    user_ad=caps,
    user_campaign=caps,
    campaign=st.sampled_from([1, 3, 7, UNLIMITED]),
    user_lists=caps,
    budget=st.booleans(),
    even_pacing=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    requests=st.integers(1, 25),
    block=st.sampled_from([1, 4, 25]),
    pair=st.tuples(policies, policies),
    diversity=st.sampled_from([("none", 0.0), ("mmr", 0.4), ("calibrated", 0.5)]),
    budget_scale=st.sampled_from([0.3, 2.0, 20.0]),
    daily=st.booleans(),
)
def test_block_ranking_is_serving_one_by_one(seed, requests, block, pair, diversity, budget_scale, daily):
    world = random_world(seed, requests, diversity, budget_scale)
    if not daily:
        world["day"][:] = 0
    ads, prices, ledger = rank_world(world, list(pair), block, daily=daily)
    expected, spent = serve_all(world, pair, lambda index: min((index + 1) * block, requests) / requests, block)
    for r, wanted in enumerate(expected):
        assert [ad for ad in ads[r] if ad >= 0] == [ad for ad, _ in wanted]
        got = [price for ad, price in zip(ads[r], prices[r], strict=True) if ad >= 0]
        assert np.allclose(got, [price for _, price in wanted], equal_nan=True, rtol=1e-12)
    if daily:
        keys = np.array([day * ledger._ads + ad for day, ad in spent], np.int64)
        assert ledger.spent_on_day.get(keys).tolist() == list(spent.values())
        return
    assert all(ledger.spent[ad] == amount for (_, ad), amount in spent.items())
    if all(policy.budget for policy in pair):
        bounded = ~np.isnan(world["budget"])
        assert (ledger.spent[bounded] <= world["budget"][bounded] * 1_000_000).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), diversity=st.sampled_from([("none", 0.0), ("mmr", 0.4), ("calibrated", 0.5)]))
def test_raising_a_bid_never_lowers_a_rank(seed, diversity):
    world = random_world(seed, 6, diversity, 1e9)
    # Each request is another user's, and nothing is capped across requests: only this list's competition counts.
    world["user"] = np.arange(6)
    policy = [ListPolicy(top_n=WIDTH, auctioned=True, per_advertiser=2)] * 2
    before, _, _ = rank_world(world, policy, 6)
    raised = int(np.random.default_rng(seed).integers(ADS))
    world["bid"] = np.where(world["ad"] == raised, np.nan_to_num(world["bid"]) * 1.7 + 0.1, world["bid"])
    world["value"] = world["score"] * np.nan_to_num(world["bid"])
    after, _, _ = rank_world(world, policy, 6)
    for old, new in zip(before, after, strict=True):
        place = {ad: rank for rank, ad in enumerate(old)}
        now = {ad: rank for rank, ad in enumerate(new)}
        assert now.get(raised, math.inf) <= place.get(raised, math.inf)


@pytest.mark.parametrize("policy", [{"epsilon": 0.3}, {"thompson": True}])
def test_exploring_does_not_depend_on_blocks(policy):
    world = random_world(3, 24, ("mmr", 0.3), 1.0)
    policies = [ListPolicy(top_n=4, auctioned=True, user_ad=1, **policy)] * 2
    one, _, _ = rank_world(world, policies, 24)
    again, _, _ = rank_world(world, policies, 5)
    assert np.array_equal(one, again)
