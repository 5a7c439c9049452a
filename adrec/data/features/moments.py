"""Mean and spread of values that come batch by batch, in constant memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Moments:
    """Batches merge by Chan, Golub and LeVeque (1979): exact to rounding for any batch sizes."""

    count: float = 0
    """values, or what they weigh together"""
    mean: float = 0.0
    squares: float = 0.0
    """sum of squared deviations from the mean"""
    total: float = 0.0
    """plain sum: exact for whole numbers, where the merged mean is rounded at each batch"""

    def add(self, values: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> None:
        """Take one batch, float64 (N,), each value as often as its weight (N,) says; NaN is left out."""
        kept = ~np.isnan(values)
        known = values[kept]
        if not len(known):
            return
        if weights is None:
            count: float = len(known)
            mean, total = float(known.mean()), float(known.sum())
            squares = float(np.square(known - mean).sum())
        else:
            w = weights[kept]
            count, total = float(w.sum()), float(w @ known)
            mean = total / count
            squares = float(w @ np.square(known - mean))
        both = self.count + count
        gap = mean - self.mean
        self.squares += squares + gap * gap * self.count * count / both
        self.mean += gap * count / both
        self.count = both
        self.total += total
