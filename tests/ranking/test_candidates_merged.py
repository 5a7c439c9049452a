"""Merging channels by their shares, the figures of candidate recall, and what single clicks propose, against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.ranking.channels import merge_channels
from adrec.ranking.neighbours import NEIGHBOURS, Neighbours, best_of_each
from adrec.ranking.recall import best_of, best_shares, shares_of
from adrec.ranking.retrieve import ExactIndex


def in_turn(channels, k, shares):
    """One request: entries by (place + 1) / share, equals by channel."""
    due = sorted(
        ((place + 1) / share if share else np.inf, place, number, ad)
        for number, (channel, share) in enumerate(zip(channels, shares, strict=True))
        for place, ad in enumerate(channel)
    )
    return list(dict.fromkeys(ad for _, _, _, ad in due if ad >= 0))[:k]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 30))
def test_channels_have_their_turns_in_proportion_to_their_shares(seed, count, k):
    rng = np.random.default_rng(seed)
    channels = []
    for _ in range(count):
        width = int(rng.integers(1, 12))
        lists = np.stack([rng.permutation(20)[:width] for _ in range(3)])
        lists[np.arange(width) >= rng.integers(0, width + 1, 3)[:, None]] = -1
        channels.append(lists)
    for shares in (None, rng.integers(0, 3, count) + np.eye(count, dtype=int)[0]):
        merged = merge_channels(channels, k, shares)
        for row in range(3):
            expected = in_turn([channel[row] for channel in channels], k, [1] * count if shares is None else shares)
            assert merged[row].tolist() == expected + [-1] * (k - len(expected))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 15), st.integers(1, 6))
def test_the_best_and_their_share_are_those_of_sorting(seed, ads, k):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 4, (5, ads)).astype(float)
    score[rng.random(score.shape) < 0.4] = -np.inf
    best = best_of(score, k)
    candidates = np.stack([rng.permutation(ads)[: max(1, ads // 2)] for _ in range(5)])
    for row in range(5):
        order = sorted((ad for ad in range(ads) if score[row, ad] > -np.inf), key=lambda ad: (-score[row, ad], ad))[:k]
        assert [ad for ad in best[row].tolist() if ad >= 0] == order
        share = shares_of(best, candidates)[row]
        if order:
            assert share == sum(ad in candidates[row] for ad in order) / len(order)
        else:
            assert np.isnan(share)


def test_the_channel_that_finds_the_best_has_the_turns():
    rng = np.random.default_rng(0)
    best = np.stack([rng.permutation(300)[:10] for _ in range(20)])
    good = np.concatenate([rng.integers(300, 900, (20, 5)), best, rng.integers(300, 900, (20, 5))], axis=1)
    noise = rng.integers(1_000, 2_000, (20, 20))
    shares = best_shares({"noise": noise, "good": good}, best, 15)
    assert shares["good"] == 1.0 and sum(shares.values()) == 1.0
    even = best_shares({"one": good, "same": good}, best, 20)
    assert even == {"one": 0.5, "same": 0.5}, "nothing to choose: even"


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_clicks_propose_their_neighbours_among_the_allowed(share, monkeypatch):
    monkeypatch.setattr("adrec.ranking.neighbours.MOST_KEPT", 12)  # lists are dropped and searched again
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((700, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    allowed = rng.random(700) < share
    neighbours = Neighbours(ExactIndex(vectors), allowed)
    for clicks in ([[3, 3, 7], [], [9]], [[5, 7], [11, 12, 13, 14, 15], [600]], [list(range(30)), [1], [2]]):
        offsets = np.cumsum([0, *map(len, clicks)])
        request, ad, near = neighbours.proposed(offsets, np.array([one for some in clicks for one in some], np.int64))
        for row, some in enumerate(clicks):
            expected = {}
            for clicked in some:
                cosine = np.where(allowed, vectors @ vectors[clicked], -np.inf)
                for other in np.argsort(-cosine, kind="stable")[:NEIGHBOURS]:
                    if allowed[other]:
                        expected[int(other)] = expected.get(int(other), 0) + np.exp((cosine[other] - 1) / neighbours.spread)
            mine = dict(zip(ad[request == row].tolist(), near[request == row].tolist(), strict=True))
            assert mine.keys() == expected.keys()
            assert all(mine[key] == pytest.approx(np.log(total / len(some)), abs=1e-4) for key, total in expected.items())
        entry, place = best_of_each(request, near, 3, 4)
        for row in range(3):
            mine = np.sort(near[request == row])[::-1][:4]
            assert np.array_equal(near[entry[request[entry] == row]], mine)
            assert place[request[entry] == row].tolist() == list(range(len(mine)))
