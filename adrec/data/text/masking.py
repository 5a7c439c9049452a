"""Masked language modelling: which tokens to predict, and what the model sees in their place.

Devlin et al., "BERT" (2019): 15 % of tokens are predicted; of these 80 % become the mask token, 10 % a random token, 10 % stay.
Whole words are masked whole (Cui et al., "Pre-Training with Whole Word Masking for Chinese BERT", 2021).
"""

from typing import NamedTuple

import numpy as np


class Masked(NamedTuple):
    """What the model sees, and what it must say where."""

    tokens: np.ndarray  # same shape as the input, int64
    places: np.ndarray  # (M,) int64: flat positions to predict
    labels: np.ndarray  # (M,) int64: the tokens that stood there


def mask_tokens(
    tokens: np.ndarray,
    words: np.ndarray,
    *,
    mask_id: int,
    ordinary_ids: np.ndarray,
    generator: np.random.Generator,
    rate: float = 0.15,
    whole_words: bool = True,
) -> Masked:
    """Choose `rate` of the maskable tokens and corrupt them 80/10/10.

    `words` has the shape of `tokens`: tokens of one word share a number, special tokens and padding have -1 and are never
    touched. Words are drawn in random order until the batch's budget of tokens is full, so the share is exact up to one word;
    where that word ends is decided by chance, in proportion, so the share is right on average too. `ordinary_ids` are the
    tokens that a random replacement may be.
    """
    flat, units = tokens.reshape(-1), words.reshape(-1)
    maskable = np.flatnonzero(units >= 0)
    if not len(maskable):
        return Masked(tokens.copy(), np.empty(0, np.int64), np.empty(0, np.int64))
    units = units[maskable] if whole_words else np.arange(len(maskable))
    _, unit_of, sizes = np.unique(units, return_inverse=True, return_counts=True)
    order = generator.permutation(len(sizes))
    filled = np.cumsum(sizes[order])
    budget = rate * len(maskable)
    last = int(np.searchsorted(filled, budget))
    before = filled[last - 1] if last else 0
    take_last = generator.random() * sizes[order[last]] < budget - before
    chosen = np.zeros(len(sizes), bool)
    chosen[order[: last + int(take_last)]] = True
    places = maskable[chosen[unit_of]]

    labels = flat[places]
    dice = generator.random(len(places))
    replacement = np.where(dice < 0.8, mask_id, labels)
    replacement = np.where(dice >= 0.9, generator.choice(ordinary_ids, len(places)), replacement)
    seen = flat.copy()
    seen[places] = replacement
    return Masked(seen.reshape(tokens.shape), places, labels)
