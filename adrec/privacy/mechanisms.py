"""Sums and counts with discrete Gaussian noise, and what is made of them: vocabularies, scales, rates, calibration.

Every release is a vector of whole numbers of which one unit changes at most `sensitivity` (L2). All share one budget:
`noise` deviations a unit of sensitivity each, those on which every score rests, how many click, `FINER` times fewer.
What is computed from a release costs nothing more.
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
LINE_SENSITIVITY = (1.0 + 1.0 + 3.0 / 16.0) ** 0.5
"""Of y - p, that times a place in [-1, 1], and p (1 - p) times the place to the powers 0, 1 and 2."""
LEVEL_SENSITIVITY = (1.0 + 0.25) ** 0.5
"""Of a lack in [-1, 1] and predicted clicks in [0, 1 / 2]."""
FINER = 2.0
"""Releases of levels cost four times what others do: where each is off by half, all scores are."""
_DROWNED = 0.05
"""A column's mean must be known better than this share of its range."""


@dataclass
class Releases:
    """Draws the noise, and keeps a line of each release."""

    randomness: Noise
    noise: float
    """deviations over the sensitivity, of each release"""
    delta: float
    """what one vocabulary may spend on a value that a single unit has"""
    lines: list[Line] = field(default_factory=list)

    def counts(
        self,
        artefact: str,
        values: Longs,
        *,
        sensitivity: float,
        files: tuple[str, ...],
        delta: float = 0.0,
        finer: float = 1.0,
    ) -> Longs:
        """(K,) whole numbers with noise; `finer` times less of it than others have."""
        noise = self.noise / finer
        deviation = noise * sensitivity
        why = f"discrete Gaussian noise of deviation {deviation:.4g}"
        self.lines.append(Line(artefact, "noised", why, files, "discrete Gaussian", float(sensitivity), Event(noise), delta))
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

    def scales(self, artefact: str, values: Floats, *, files: tuple[str, ...]) -> tuple[Floats, Floats]:
        """Means and deviations (K,) of K columns of numbers in [-1, 1], over one row of each unit: values (U, K), NaN where
        a unit has none.

        One release for all columns. (0, 1) for a column where the noise would drown them.
        """
        known = ~np.isnan(values)
        shares = np.clip(np.where(known, values, 0.0), -1.0, 1.0)
        columns = values.shape[1]
        sums = np.round(np.stack([known * 1.0, shares, shares**2]) * FIXED_POINT).astype(np.int64).sum(axis=1)  # (3, K)
        sensitivity = FIXED_POINT * (3.0 * columns) ** 0.5
        noised = self.counts(artefact, sums.reshape(-1), sensitivity=sensitivity, files=files) / FIXED_POINT
        count, total, squares = noised.reshape(3, columns)
        count = np.maximum(count, 1.0)
        error = self.noise * (3.0 * columns) ** 0.5 / count
        mean = np.clip(total / count, -1.0, 1.0)
        variance = squares / count - mean**2
        drowned = (error > _DROWNED) | (variance < 2.0 * error)
        return np.where(drowned, 0.0, mean), np.where(drowned, 1.0, np.sqrt(np.maximum(variance, 1e-12)))

    def sums(self, artefact: str, total: Floats, *, sensitivity: float, files: tuple[str, ...]) -> Floats:
        """(K,) sums with noise, of which one unit changes `sensitivity` (L2) at most."""
        fixed = np.round(np.asarray(total, np.float64) * FIXED_POINT).astype(np.int64)
        rounded = sensitivity + len(fixed) ** 0.5 / FIXED_POINT  # two sums that are near may round apart
        return np.asarray(self.counts(artefact, fixed, sensitivity=FIXED_POINT * rounded, files=files) / FIXED_POINT)

    def line_sums(self, artefact: str, sums: Floats, *, files: tuple[str, ...]) -> Floats:
        """The five sums of `models.blend.calibration_sums.line_sums`, with noise. `sums` (U, 5) of each unit, whose weights
        come to 1 or less."""
        fixed = np.round(sums * FIXED_POINT).astype(np.int64).sum(axis=0)
        sensitivity = FIXED_POINT * LINE_SENSITIVITY
        return np.asarray(self.counts(artefact, fixed, sensitivity=sensitivity, files=files) / FIXED_POINT)

    def level(
        self, artefact: str, lacks: Floats, clicks: Floats, *, most: float, files: tuple[str, ...]
    ) -> tuple[float, float, float]:
        """What scores lack of the labels, and the clicks they predict, each summed over units, with noise of `noise / FINER`;
        and the deviation of the first. `lacks` and `clicks` (U,) of each unit count as far as `most` and twice that.
        """
        cut = np.stack([np.clip(lacks, -most, most) / most, np.clip(clicks, 0.0, 2.0 * most) / (4.0 * most)])
        fixed = np.round(cut * FIXED_POINT).astype(np.int64).sum(axis=1)
        noised = self.counts(artefact, fixed, sensitivity=FIXED_POINT * LEVEL_SENSITIVITY, files=files, finer=FINER)
        lack, predicted = (noised * np.array([most, 4.0 * most]) / FIXED_POINT).tolist()
        return lack, predicted, self.noise / FINER * LEVEL_SENSITIVITY * most

    def rate(self, artefact: str, labels: Floats, *, files: tuple[str, ...], prior: float = 0.05) -> float:
        """Share of ones among one label of each unit, between a tenth of a percent and its complement."""
        known = labels[~np.isnan(labels)] > 0
        sums = np.array([len(known), int(known.sum())], np.int64)
        rows, ones = self.counts(artefact, sums, sensitivity=2**0.5, files=files, finer=FINER)
        strength = 2.0 * self.noise / FINER  # as many rows at the usual rate as the noise could feign
        return float(np.clip((ones + strength * prior) / max(rows + strength, 1.0), 0.001, 0.999))


def one_of_each(unit: Longs, randomness: Noise) -> Longs:
    """A row of each unit, drawn evenly; `unit` (N,) with -1 for rows that take no part."""
    return some_of_each(unit, 1, randomness)


def some_of_each(unit: Longs, most: int, randomness: Noise) -> Longs:
    """So many rows of each unit, or all it has, drawn evenly; sorted by unit. `unit` as `one_of_each` has it."""
    order = randomness.order(len(unit))
    order = order[unit[order] >= 0]
    order = order[np.argsort(unit[order], kind="stable")]
    first = np.searchsorted(unit[order], unit[order])
    return order[np.arange(len(order)) - first < most]
