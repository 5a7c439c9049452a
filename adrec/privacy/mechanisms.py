"""Sums and counts with discrete Gaussian noise, and what is made of them: vocabularies, moments, rates, calibration.

Every release is a vector of whole numbers of which one unit changes at most `sensitivity` (L2). All share one budget in equal
parts: `noise` deviations a unit of sensitivity each. What is computed from a release costs nothing more.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import norm

from adrec.privacy.accounting import Event
from adrec.privacy.ledger import Line
from adrec.privacy.noise import Longs, Noise

Floats = NDArray[np.float64]
FIXED_POINT = 1024
"""Steps of one: numbers are summed as whole multiples of its inverse."""
FARTHEST = float(np.log1p(1e6))
"""Numbers are looked at as sign(x) log(1 + |x|), and no further out than this."""


@dataclass
class Releases:
    """Draws the noise, and keeps a line of each release."""

    randomness: Noise
    noise: float
    """deviations over the sensitivity, of each release"""
    delta: float
    """what one vocabulary may spend on a value that a single unit has"""
    lines: list[Line] = field(default_factory=list)

    def counts(self, artefact: str, values: Longs, *, sensitivity: float, files: tuple[str, ...], delta: float = 0.0) -> Longs:
        """(K,) whole numbers with noise."""
        deviation = self.noise * sensitivity
        why = f"discrete Gaussian noise of deviation {deviation:.4g}"
        self.lines.append(
            Line(artefact, "noised", why, files, "discrete Gaussian", float(sensitivity), Event(self.noise), delta)
        )
        return np.asarray(values, np.int64) + self.randomness.discrete_gaussian(len(values), deviation)

    def vocabulary(self, artefact: str, values: pa.Array, *, min_count: int, files: tuple[str, ...]) -> pa.Array:
        """The values that many units have, commonest first; `values` holds one of each unit, null where it has none.

        A value must pass a threshold that one unit's own value passes, by its noise, with probability `delta` at most
        (Korolova et al. 2009, with Gaussian noise: Wilson et al. 2020).
        """
        counted = values.drop_null().value_counts()
        noised = self.counts(
            artefact, counted.field("counts").to_numpy(), sensitivity=1.0, files=files, delta=self.delta
        )  # fmt: skip
        threshold = max(float(min_count), 1.0 + self.noise * float(norm.isf(self.delta)))
        table = pa.table({"value": counted.field("values"), "count": noised})
        table = table.filter(pc.greater_equal(table["count"], threshold))
        return table.sort_by([("count", "descending"), ("value", "ascending")])["value"].combine_chunks().cast(pa.string())

    def moments(self, artefact: str, values: Floats, *, files: tuple[str, ...]) -> tuple[float, float]:
        """Mean and deviation of sign(x) log(1 + |x|) over one value of each unit, NaN where it has none.

        (0, 1) where the noise would drown them.
        """
        known = values[~np.isnan(values)]
        shares = np.clip(np.sign(known) * np.log1p(np.abs(known)) / FARTHEST, -1.0, 1.0)
        fixed = np.stack([np.ones_like(shares), shares, shares**2]) * FIXED_POINT
        sums = np.round(fixed).astype(np.int64).sum(axis=1)
        count, total, squares = self.counts(artefact, sums, sensitivity=FIXED_POINT * 3**0.5, files=files) / FIXED_POINT
        error = 3**0.5 * self.noise * FARTHEST / max(count, 1.0)
        mean = float(total / max(count, 1.0)) * FARTHEST
        variance = float(squares / max(count, 1.0)) * FARTHEST**2 - mean**2
        if error > 0.25 or variance < 2.0 * error * FARTHEST:
            return 0.0, 1.0
        return float(np.clip(mean, -FARTHEST, FARTHEST)), float(np.sqrt(variance))

    def rate(self, artefact: str, labels: Floats, *, files: tuple[str, ...], prior: float = 0.05) -> float:
        """Share of ones among one label of each unit, between a tenth of a percent and its complement."""
        known = labels[~np.isnan(labels)] > 0
        sums = np.array([len(known), int(known.sum())], np.int64)
        rows, ones = self.counts(artefact, sums, sensitivity=2**0.5, files=files)
        strength = 2.0 * self.noise  # as many rows at the usual rate as the noise could feign
        return float(np.clip((ones + strength * prior) / max(rows + strength, 1.0), 0.001, 0.999))


def one_of_each(unit: Longs, randomness: Noise) -> Longs:
    """A row of each unit, drawn evenly; `unit` (N,) with -1 for rows that take no part."""
    order = randomness.order(len(unit))
    order = order[unit[order] >= 0]
    return order[np.unique(unit[order], return_index=True)[1]]
