"""Mean and spread of values that come batch by batch, in constant memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Moments:
    """Batches merge by Chan, Golub and LeVeque (1979): exact to rounding for any batch sizes."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """sum of squared deviations from the mean"""
    total: float = 0.0
    """plain sum: exact for whole numbers, where the merged mean is rounded at each batch"""

    def add(self, values: NDArray[np.float64]) -> None:
        """Take one batch, float64 (N,); NaN is left out."""
        known = values[~np.isnan(values)]
        if not len(known):
            return
        mean = float(known.mean())
        squares = float(np.square(known - mean).sum())
        total = self.count + len(known)
        gap = mean - self.mean
        self.squares += squares + gap * gap * self.count * len(known) / total
        self.mean += gap * len(known) / total
        self.count = total
        self.total += float(known.sum())
