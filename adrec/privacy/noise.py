"""Randomness that privacy rests on: from the operating system, never from a generator whose state could be guessed.

Who knows the noise, or which units were drawn, can take the protection away again; so nothing here is seeded but in tests.
A megabyte of it takes about 3 ms, a million Gaussian numbers 0.1 s.
"""

import math
import os
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]
_TAIL = 40.0
"""Deviations to which a table of the discrete Gaussian reaches: further out is less than a float can hold."""


class Noise:
    """Draws of the system's randomness; `seed` makes them repeatable, and worthless as protection."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._generator = None if seed is None else np.random.default_rng(seed)

    @property
    def is_secure(self) -> bool:
        """Whether nobody can repeat it."""
        return self._generator is None

    def uniform(self, *shape: int) -> Floats:
        """In [0, 1), 53 bits each."""
        count = math.prod(shape)
        bits = os.urandom(8 * count) if self._generator is None else self._generator.bytes(8 * count)
        return ((np.frombuffer(bits, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)

    def gaussian(self, count: int) -> Floats:
        """(count,) standard normal numbers, each the sum of four over two.

        One float of Box and Muller's tells by its last bits which others are possible (Mironov 2012); a sum of four has too
        many ways to come about (Holohan and Braghin 2021, the method of Opacus' secure mode).
        """
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(2, count)))
        angle = 2.0 * math.pi * self.uniform(2, count)
        return np.asarray((radius * np.cos(angle) + radius * np.sin(angle)).sum(axis=0) / 2.0)

    def discrete_gaussian(self, count: int, deviation: float) -> Longs:
        """(count,) whole numbers k with probability proportional to exp(-k^2 / (2 deviation^2)) (Canonne et al. 2020).

        By inversion of a table: off by less than 2^-50 in total variation a draw, and no float leaves it.
        """
        cumulative = _cumulative(deviation)
        drawn = np.searchsorted(cumulative, self.uniform(count) * cumulative[-1], side="right")
        return np.asarray(np.minimum(drawn, len(cumulative) - 1) - len(cumulative) // 2, np.int64)

    def chosen(self, rates: Floats) -> NDArray[np.bool_]:
        """(N,) each True with its own probability, independently: Poisson sampling."""
        return self.uniform(len(rates)) < rates

    def order(self, count: int) -> Longs:
        """A uniform permutation."""
        return np.argsort(self.uniform(count), kind="stable").astype(np.int64)


@lru_cache(maxsize=2)
def _cumulative(deviation: float) -> Floats:
    """(2 reach + 1,) sums of exp(-k^2 / (2 deviation^2)) from -reach up to each k. Kept for the next draw, for there may be
    millions.
    """
    reach = max(1, math.ceil(_TAIL * deviation))
    return np.asarray(np.cumsum(np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2.0 * deviation**2))))
