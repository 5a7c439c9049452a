"""Packing: every text once, no row overfull, few rows, and a layout that gives each text back as it was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.data.text.packing import lay_out, pack

LENGTHS = st.lists(st.integers(1, 32), min_size=1, max_size=300).map(np.array)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(0, 5))
def test_every_text_lies_in_one_pack_and_no_pack_is_overfull(lengths, seed):
    packs = pack(lengths, 32, seed=seed)
    assert np.array_equal(np.sort(packs.rows), np.arange(len(lengths)))
    totals = np.add.reduceat(lengths[packs.rows], packs.offsets[:-1])
    assert totals.max() <= 32
    assert (np.diff(packs.offsets) > 0).all()


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_packs_are_close_to_the_fewest_possible(lengths):
    """Best-fit decreasing needs at most 11/9 of the optimum and a little; the optimum is at least the total over the room."""
    fewest = max(int(np.ceil(lengths.sum() / 32)), int((lengths > 16).sum()))
    assert len(pack(lengths, 32, seed=0)) <= fewest * 11 / 9 + 2


def test_short_texts_leave_almost_no_padding():
    lengths = np.random.default_rng(0).integers(6, 30, 20_000)
    assert lengths.sum() / (len(pack(lengths, 128, seed=0)) * 128) > 0.98


def test_the_seed_decides_which_texts_meet():
    lengths = np.full(100, 8)
    assert not np.array_equal(pack(lengths, 32, seed=0).rows, pack(lengths, 32, seed=1).rows)
    assert np.array_equal(pack(lengths, 32, seed=0).rows, pack(lengths, 32, seed=0).rows)


def test_texts_longer_than_a_pack_are_refused():
    with pytest.raises(ValueError, match=r"1\.\.32"):
        pack(np.array([5, 40]), 32, seed=0)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(0, 5))
def test_the_layout_gives_every_text_back(lengths, seed):
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, 1000, length) for length in lengths]
    words = [np.sort(rng.integers(0, length, length)) for length in lengths]
    packs = pack(lengths, 32, seed=seed)
    flat = np.concatenate([texts[row] for row in packs.rows])
    flat_words = np.concatenate([words[row] for row in packs.rows])
    laid = lay_out((flat, flat_words, lengths[packs.rows]), np.diff(packs.offsets), capacity=32, pad_id=0)
    seen_words = set()
    for number in range(len(packs)):
        for place, row in enumerate(packs.rows[packs.offsets[number] : packs.offsets[number + 1]]):
            here = laid.texts[number] == place
            assert np.array_equal(laid.tokens[number][here], texts[row])
            assert np.array_equal(laid.positions[number][here], np.arange(lengths[row]))
            found = laid.words[number][here]
            assert np.array_equal(found - found.min(), words[row] - words[row].min())
            assert not seen_words & set(found.tolist()), "words of different texts share a number"
            seen_words |= set(found.tolist())
    assert (laid.tokens[laid.texts < 0] == 0).all()
