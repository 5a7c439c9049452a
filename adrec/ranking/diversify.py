"""Diversify: what a candidate loses, at a slot, for being like what already stands above it.

A slot takes the feasible candidate of largest gain = weight x log(value) + offset. The logarithm makes the trade
independent of the currency and keeps the auction honest: raising a bid changes only one's own gain, and only upwards.
Both methods below are greedy and give the offset before each slot.
"""

from typing import Protocol

import numpy as np

from adrec.ranking.arrays import Bools, Floats, Ints

TINY = 1e-300
"""Values of zero are ordered last without becoming minus infinity."""


class Diversifier(Protocol):
    """State over the slots of a block of requests."""

    weight: float
    """Weight of log(value) in the gain, in [0, 1]."""

    def offset(self) -> Floats:
        """(R, C) what is added to the weighted log value at the next slot."""

    def chosen(self, column: Ints, taken: Bools) -> None:
        """Record the slot's choice: column (R,) int, taken (R,) bool (False where nothing could be shown)."""


class ByValue:
    """No diversification."""

    weight = 1.0

    def __init__(self, shape: tuple[int, int]) -> None:
        self._zero = np.zeros(shape)

    def offset(self) -> Floats:
        """Zeros."""
        return self._zero

    def chosen(self, column: Ints, taken: Bools) -> None:
        """Nothing to record."""


class MaximalMarginalRelevance:
    """Offset = -strength x the largest cosine to an ad above (Carbonell and Goldstein, SIGIR 1998).

    vectors: (R, C, D) float32 of the candidates, each of length 1 or 0. O(R C D) a slot.
    """

    def __init__(self, vectors: Floats, *, strength: float) -> None:
        self.weight = 1.0 - strength
        self._strength = strength
        self._vectors = vectors
        self._nearest = np.full(vectors.shape[:2], -np.inf)
        self._any = np.zeros(len(vectors), dtype=bool)

    def offset(self) -> Floats:
        """Zero at the first slot, then minus the weighted largest cosine."""
        return np.where(self._any[:, None], -self._strength * self._nearest, 0.0)

    def chosen(self, column: Ints, taken: Bools) -> None:
        """Cosines to the new ad raise the largest so far."""
        new = self._vectors[np.arange(len(column)), column]  # (R, D)
        cosine = np.matmul(self._vectors, new[:, :, None])[:, :, 0]
        np.maximum(self._nearest, cosine, out=self._nearest, where=taken[:, None])
        self._any |= taken


class CalibratedCategories:
    """Offset = -strength x KL(p || q~) of the list with the candidate added (Steck, "Calibrated recommendations", 2018).

    p: shares of the categories in the user's history; q: in the list; q~ = (1 - a) q + a p with a = 0.01. A request
    without history (a zero row of `shares`), and candidates without category (-1), get a zero divergence or the
    divergence of a list with one more ad of no category.

    category: (R, C) int codes, -1 none; shares: (R, G) rows summing to 1, or to 0.
    """

    SMOOTHING = 0.01

    def __init__(self, category: Ints, shares: Floats, *, strength: float) -> None:
        self.weight = 1.0 - strength
        self._strength = strength
        self._category = category
        self._shares = np.asarray(shares, dtype=np.float64)  # (R, G)
        self._counts = np.zeros_like(self._shares)
        self._length = np.zeros((len(shares), 1))

    def offset(self) -> Floats:
        """Minus the weighted divergence that each candidate would leave."""
        p = self._shares
        after = self._length + 1
        without = self._smoothed(self._counts / after)
        with_one = self._smoothed((self._counts + 1) / after)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0, p * np.log(p / without), 0.0)
            change = np.where(p > 0, p * (np.log(without) - np.log(with_one)), 0.0)
        base = terms.sum(axis=1, keepdims=True)  # (R, 1) divergence if the new ad had no category of p
        known = self._category >= 0
        gain = np.take_along_axis(change, np.where(known, self._category, 0), axis=1)
        divergence: Floats = base + np.where(known, gain, 0.0)
        return -self._strength * divergence

    def chosen(self, column: Ints, taken: Bools) -> None:
        """Count the new ad's category."""
        rows = np.flatnonzero(taken)
        category = self._category[rows, column[rows]]
        known = category >= 0
        self._counts[rows[known], category[known]] += 1
        self._length[rows] += 1

    def _smoothed(self, q: Floats) -> Floats:
        return (1 - self.SMOOTHING) * q + self.SMOOTHING * self._shares
