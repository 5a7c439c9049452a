"""Sums under masks are exact whoever falls out, and what goes over the wire looks like noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adrec.errors import AdrecError
from adrec.privacy.aggregation import Client, fixed, joined_secret, loose, split_secret, unmasked


def secure_sum(vectors, *, threshold, gone_before=(), gone_after=(), silent=()):
    """The protocol with everything that leaves a client. `gone_before` fall out before they send their vector; `gone_after`
    send it and answer no more; `silent` never share keys."""
    clients = {number: Client(number, threshold) for number in range(len(vectors)) if number not in silent}
    keys = {number: client.keys() for number, client in clients.items()}
    sent = {number: client.shares(keys) for number, client in clients.items()}
    masked = {
        number: client.masked(fixed(vectors[number]), {peer: sent[peer][number] for peer in sent if peer != number})
        for number, client in clients.items()
        if number not in gone_before
    }
    revealed = {
        number: client.revealed(list(masked))
        for number, client in clients.items()
        if number not in gone_before and number not in gone_after
    }
    return loose(unmasked(masked, list(clients), keys, revealed, threshold)), sent, masked


@settings(deadline=None, max_examples=15)
@given(st.integers(3, 8), st.data())
def test_is_exact_whoever_falls_out(count, data):
    threshold = data.draw(st.integers(2, count))
    most = count - threshold
    gone = data.draw(st.lists(st.integers(0, count - 1), max_size=most, unique=True))
    cut = data.draw(st.integers(0, len(gone)))
    vectors = np.random.default_rng(count).normal(size=(count, 50)) * 1000
    total, _, _ = secure_sum(vectors, threshold=threshold, gone_before=gone[:cut], gone_after=gone[cut:])
    exact = sum(np.rint(vectors[number] * 2**24) for number in range(count) if number not in gone[:cut]) / 2**24
    assert np.array_equal(total, exact)


def test_a_fifth_may_fall_out():
    vectors = np.random.default_rng(0).normal(size=(20, 300))
    total, _, _ = secure_sum(vectors, threshold=12, gone_before=[1, 7], gone_after=[3, 19])
    answered = [number for number in range(20) if number not in (1, 7)]
    assert np.array_equal(total, np.rint(vectors[answered] * 2**24).sum(0) / 2**24)


def test_too_few_undo_nothing():
    with pytest.raises(AdrecError, match="2 of 5 clients answered, and 3 are needed"):
        secure_sum(np.ones((5, 4)), threshold=3, gone_after=[0, 1, 2])


def test_what_leaves_a_client_is_noise():
    """A vector of zeros and one of a secret look alike: bytes are uniform, and no two sums of the same are."""
    secret = np.full((3, 4000), 7.25)
    _, sent, masked = secure_sum(secret, threshold=2)
    for words in masked.values():
        counts = np.bincount(words.view(np.uint8), minlength=256)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 255 + 6 * np.sqrt(2 * 255)
        assert not np.isin(fixed(secret[0])[0], words)
    again = secure_sum(secret, threshold=2)[2]
    assert not any(np.array_equal(masked[number], again[number]) for number in masked)
    lengths = {len(message) for messages in sent.values() for message in messages.values()}
    assert lengths == {12 + 2 * 66 + 16}  # a nonce, two sealed shares, a tag
    assert len({message for messages in sent.values() for message in messages.values()}) == 6


def test_two_of_three_masks_still_hide():
    """What is left when the pairs' masks are undone is under the client's own mask."""
    vectors = np.zeros((3, 1000))
    _, _, masked = secure_sum(vectors, threshold=2)
    assert np.abs(loose(masked[0] + masked[1] + masked[2])).mean() > 2**30


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.integers(0, 4))
def test_shamirs_shares(secret, threshold, more):
    shares = split_secret(secret, list(range(threshold + more)), threshold)
    some = dict(list(shares.items())[more:])
    assert joined_secret(some, threshold) == secret
    if threshold > 1:
        with pytest.raises(ValueError, match="different secrets"):
            joined_secret(dict(list(some.items())[:-1]), threshold - 1)


def test_numbers_that_do_not_fit_are_refused():
    assert loose(fixed(np.array([-1.5, 2.0**-24, 2e11]))).tolist() == [-1.5, 2.0**-24, 2e11]
    for wrong in (1e12, np.inf, np.nan):
        with pytest.raises(AdrecError, match="too large"):
            fixed(np.array([wrong]))
