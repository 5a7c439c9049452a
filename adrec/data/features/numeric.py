"""Numeric columns: means and variances by streaming, quantiles from a bounded uniform sample.

Missing values are null, NaN and infinities; they take no part in fitting and become the neutral value.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.data.features.moments import Moments
from adrec.errors import DataError
from adrec.specs import NumericSpec

LANDMARKS = 1000
"""Kept by `quantile` and `normal`, as scikit-learn does: ranks to 0.001."""

SAMPLE_ROWS = 200_000
"""Quantiles are exact up to so many training rows, and taken from a uniform sample of that size beyond."""

Floats = NDArray[np.float64]


def to_floats(column: pa.Array, name: str) -> Floats:
    """A numeric, boolean or decimal column as float64 with NaN where missing or infinite. Raises DataError."""
    kind = column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)
    if not numeric and not pa.types.is_null(kind):
        raise DataError(f"features: column '{name}' is {kind}, expected numbers. Declare it as categorical or hashed.")
    values = column.cast(pa.float64()) if not pa.types.is_boolean(kind) else column.cast(pa.int8()).cast(pa.float64())
    floats = np.array(values.to_numpy(zero_copy_only=False), dtype=np.float64)
    floats[~np.isfinite(floats)] = np.nan
    return floats


def signed_log1p(values: Floats) -> Floats:
    """sign(x) log(1 + |x|): log1p for what is never negative, odd and finite for what is."""
    return np.sign(values) * np.log1p(np.abs(values))


@dataclass
class NumericFitter:
    """Sees training batches, ends as a FittedNumeric.

    The quantile sample is the `SAMPLE_ROWS` rows of smallest random priority (one draw a row, so batch sizes do not matter).
    """

    spec: NumericSpec
    name: str
    seed: int
    moments: Moments = field(default_factory=Moments)
    _sample: Floats = field(default_factory=lambda: np.zeros(0))
    _priority: Floats = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def add(self, values: Floats) -> None:
        """Take one batch, float64 (N,) with NaN where missing."""
        if self.spec.transform in {"quantile", "normal"}:
            self._add_to_sample(values)
            return
        self.moments.add(self.placed(values))

    def placed(self, values: Floats) -> Floats:
        """The values whose mean and spread, or ranks, are fitted."""
        return signed_log1p(values) if self.spec.transform == "log1p" else values

    def _add_to_sample(self, values: Floats) -> None:
        priority = self._random.random(len(values))
        known = ~np.isnan(values)
        values = np.concatenate([self._sample, values[known]])
        priority = np.concatenate([self._priority, priority[known]])
        if len(values) > SAMPLE_ROWS:
            kept = np.argpartition(priority, SAMPLE_ROWS - 1)[:SAMPLE_ROWS]
            values, priority = values[kept], priority[kept]
        self._sample, self._priority = values, priority

    def fitted(self) -> "FittedNumeric":
        """The statistics so far."""
        landmarks: list[float] = []
        scale = 1.0
        if self.spec.transform in {"quantile", "normal"}:
            if len(self._sample):
                landmarks = [float(value) for value in np.quantile(self._sample, _places(len(self._sample)))]
        elif count := self.moments.count:
            variance = self.moments.squares / count
            # scikit-learn's rule: a spread that is only rounding noise counts as none, and none is scaled by one.
            precision = float(np.finfo(np.float64).eps)
            noise = count * precision * variance + (count * self.moments.mean * precision) ** 2
            scale = 1.0 if variance <= noise else float(np.sqrt(variance))
        return FittedNumeric(
            name=self.name,
            transform=self.spec.transform,
            missing_indicator=self.spec.missing_indicator,
            mean=self.moments.mean if self.spec.transform != "none" else 0.0,
            scale=scale if self.spec.transform != "none" else 1.0,
            landmarks=landmarks,
        )


def landmarks_of_cells(means: Floats, counts: NDArray[np.int64]) -> list[float]:
    """The landmarks of values that are told by cells, in order: the mean of each, and how many it holds."""
    if not len(means):
        return []
    below, at = np.cumsum(counts), _places(int(counts.sum())) * (int(counts.sum()) - 1)
    left = np.floor(at)
    lower, upper = (means[np.searchsorted(below, place, side="right")] for place in (left, np.ceil(at)))
    return [float(value) for value in lower + (upper - lower) * (at - left)]


def _places(count: int) -> Floats:
    """Ranks of the landmarks of so many values."""
    return np.linspace(0.0, 1.0, min(LANDMARKS, max(2, count)))


@dataclass(frozen=True)
class FittedNumeric:
    """One fitted numeric column."""

    name: str
    transform: str
    missing_indicator: bool
    mean: float
    scale: float
    landmarks: list[float]

    def apply(self, values: Floats) -> Floats:
        """Transform float64 (N,) with NaN where missing; missing values become 0 (0.5 for `quantile`)."""
        missing = np.isnan(values)
        neutral = 0.0
        if self.transform in {"quantile", "normal"}:
            ranked = self._ranks(values)
            neutral = 0.5
            if self.transform == "normal":
                from scipy.special import ndtri

                ranked, neutral = ndtri(np.clip(ranked, 1e-7, 1 - 1e-7)), 0.0
            result = ranked
        elif self.transform == "none":
            result = values.copy()
        else:
            result = ((signed_log1p(values) if self.transform == "log1p" else values) - self.mean) / self.scale
        result[missing] = neutral
        return result

    def _ranks(self, values: Floats) -> Floats:
        if not self.landmarks:
            return np.full(len(values), 0.5)
        marks = np.asarray(self.landmarks)
        at = np.linspace(0.0, 1.0, len(marks))
        # The middle of both directions puts tied values at the middle of the ranks they share.
        upward = np.interp(values, marks, at)
        downward = -np.interp(-values, -marks[::-1], -at[::-1])
        ranks: Floats = (upward + downward) / 2
        return ranks

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "transform": self.transform,
            "missing_indicator": self.missing_indicator,
            "mean": self.mean,
            "scale": self.scale,
            "landmarks": self.landmarks,
        }
