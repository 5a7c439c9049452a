"""Columns of vectors as models read them: each dimension standardised on training rows, and a few principal components.

A vector that is missing, or holds anything but finite numbers, becomes zeros: no model may take zeros for a vector, and each
has a value for what is missing. Fitting reads at most `SAMPLE_ROWS` vectors, so that it costs the same for any catalogue.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adrec.data.vectors import Vectors

Floats = NDArray[np.float32]

SAMPLE_ROWS = 50_000
_PIECE_ROWS = 4_096
_LEAST_SPREAD = 0.1
"""Of the root mean square of the spreads: a dimension that hardly moves is not blown up to the size of the others."""
_FARTHEST = 10.0
"""Deviations: a number further from the mean counts as so far."""


@dataclass(frozen=True)
class FittedVector:
    """One fitted column of vectors."""

    name: str
    space: str
    """vectors of ads and users of one space may be compared"""
    mean: Floats
    """(D,)"""
    scale: Floats
    """(D,)"""
    components: Floats
    """(K, D) orthonormal rows, by falling variance of the standardised vectors"""

    @property
    def width(self) -> int:
        """D."""
        return len(self.mean)

    @classmethod
    def fit(
        cls, name: str, vectors: Vectors, rows: NDArray[np.integer], *, space: str, components: int, seed: int
    ) -> "FittedVector":
        """From the `rows` that training shows."""
        if len(rows) > SAMPLE_ROWS:
            rows = np.sort(np.random.default_rng(seed).choice(rows, SAMPLE_ROWS, replace=False))
        width = vectors.width
        count, total, products = 0, np.zeros(width), np.zeros((width, width))
        for start in range(0, len(rows), _PIECE_ROWS):
            piece = vectors.rows(rows[start : start + _PIECE_ROWS]).astype(np.float64)
            piece = piece[np.isfinite(piece).all(axis=1)]
            count, total, products = count + len(piece), total + piece.sum(axis=0), products + piece.T @ piece
        mean = total / max(count, 1)
        covariance = products / max(count, 1) - np.outer(mean, mean)
        variance = np.maximum(np.diag(covariance), 0.0)
        spread = np.sqrt(variance)
        scale = np.maximum(spread, _LEAST_SPREAD * np.sqrt(variance.mean()))
        scale = np.where(scale > 1e-12, scale, 1.0)
        _, directions = np.linalg.eigh(covariance / np.outer(scale, scale))
        axes = directions[:, ::-1][:, : min(components, width)].T
        axes = axes * np.where(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]
        return cls(name, space, mean.astype(np.float32), scale.astype(np.float32), axes.astype(np.float32))

    def apply(self, raw: NDArray[np.floating]) -> Floats:
        """(N, D) standardised; zeros where a number is missing or infinite."""
        scaled = (raw.astype(np.float32) - self.mean) / self.scale
        there = np.isfinite(scaled).all(axis=1, keepdims=True)
        return np.where(there, np.clip(scaled, -_FARTHEST, _FARTHEST), np.float32(0.0))

    def to_json(self) -> dict[str, Any]:
        """Plain data: every number in the digits that give the same float32 again."""
        return {
            "name": self.name,
            "space": self.space,
            "mean": _digits(self.mean),
            "scale": _digits(self.scale),
            "components": [_digits(row) for row in self.components],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FittedVector":
        """What `to_json` gave. Raises ValueError or TypeError for anything else."""
        mean, scale = (np.asarray(data[name], np.float32) for name in ("mean", "scale"))
        components = np.asarray(data["components"], np.float32).reshape(-1, len(mean))
        if mean.ndim != 1 or mean.shape != scale.shape or not len(mean) or not (scale > 0).all():
            raise ValueError(f"vectors '{data['name']}' have no mean and scale of one width")
        return cls(str(data["name"]), str(data["space"]), mean, scale, components)


class Modality(NamedTuple):
    """The vectors of one column, and how models read them."""

    vectors: Vectors
    fitted: FittedVector

    def rows(self, rows: NDArray[np.integer]) -> Floats:
        """(n, D) standardised, zeros where missing."""
        return self.fitted.apply(self.vectors.rows(rows))

    def reduced(self, rows: NDArray[np.integer]) -> Floats:
        """(n, K) principal components, zeros where missing. Equal rows are made once."""
        used, place = np.unique(rows, return_inverse=True)
        made = np.empty((len(used), len(self.fitted.components)), np.float32)
        for start in range(0, len(used), _PIECE_ROWS):
            piece = slice(start, start + _PIECE_ROWS)
            # In double precision: in single the last bits depend on what is multiplied beside them, and a tree may split there.
            made[piece] = self.rows(used[piece]).astype(np.float64) @ self.fitted.components.T.astype(np.float64)
        found: Floats = made[place.reshape(-1)]
        return found

    def known(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """(n,) which of the rows have a vector."""
        found = np.zeros(len(rows), bool)
        for start in range(0, len(rows), _PIECE_ROWS):
            found[start : start + _PIECE_ROWS] = self.rows(rows[start : start + _PIECE_ROWS]).any(axis=1)
        return found

    def is_comparable(self, other: "Modality") -> bool:
        """Whether both are vectors of one space."""
        return (self.fitted.space, self.fitted.width) == (other.fitted.space, other.fitted.width)

    def take(self, rows: NDArray[np.integer]) -> "Modality":
        """The given rows."""
        return Modality(self.vectors.take(rows), self.fitted)

    def with_row(self, row: int, own: "Modality") -> "Modality":
        """The same with the one vector of `own` at `row`, or behind the last."""
        return Modality(self.vectors.with_row(row, own.vectors), self.fitted)


def _digits(values: Floats) -> list[float]:
    return [float(str(value)) for value in values]
