"""The table that trees, logistic regression and the classic MLP learn from: features, counters, matches."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adrec.models.baselines.base import Floats, Inputs
from adrec.schema import COUNTER_PREFIX


@dataclass(frozen=True)
class Design:
    """N rows. `dense` (N, F) float32, `codes` (N, C) int32 with 0 for unknown, and the names of their columns."""

    dense: Floats
    names: tuple[str, ...]
    codes: NDArray[np.int32]
    code_names: tuple[str, ...]

    def picked(self, names: tuple[str, ...], code_names: tuple[str, ...]) -> "Design":
        """The named columns in that order; a column that is missing here becomes 0."""
        dense = np.zeros((len(self.dense), len(names)), np.float32)
        codes = np.zeros((len(self.dense), len(code_names)), np.int32)
        for place, name in enumerate(names):
            if name in self.names:
                dense[:, place] = self.dense[:, self.names.index(name)]
        for place, name in enumerate(code_names):
            if name in self.code_names:
                codes[:, place] = self.codes[:, self.code_names.index(name)]
        return Design(dense, names, codes, code_names)

    def with_columns(self, columns: Mapping[str, Floats]) -> "Design":
        """The same rows with further dense columns, (N,) each."""
        if not columns:
            return self
        dense = np.concatenate([self.dense, *(values[:, None] for values in columns.values())], axis=1, dtype=np.float32)
        return replace(self, dense=dense, names=(*self.names, *columns))


def design(
    inputs: Inputs,
    *,
    counters: bool = True,
    extra: Mapping[str, Floats] | None = None,
) -> Design:
    """Impression, ad and user features, log history length, the table of matches, and `extra` columns (N,) each."""
    examples, columns = inputs.examples, inputs.columns
    kept = [place for place, name in enumerate(columns.numeric) if counters or not name.startswith(COUNTER_PREFIX)]
    parts: list[Floats] = [
        examples.numeric[:, kept],
        inputs.ads.numeric[examples.ad_index],
        inputs.users.numeric[examples.user_index],
        np.log1p(examples.history_length.astype(np.float32))[:, None],
    ]
    names = [columns.numeric[place] for place in kept]
    names += [f"ad_{name}" for name in columns.ad_numeric] + [f"user_{name}" for name in columns.user_numeric]
    names.append("history_length")
    for prefix, catalog, index in (
        ("ad", inputs.ads, examples.ad_index), ("user", inputs.users, examples.user_index),
    ):  # fmt: skip
        for name, held in catalog.modalities.items():
            reduced = held.reduced(index)
            parts.append(reduced)
            names += [f"{prefix}_{name}_{place}" for place in range(1, reduced.shape[1] + 1)]
    match_names, matches = inputs.matches()
    parts.append(matches)
    names += match_names
    for name, values in (extra or {}).items():
        parts.append(values.astype(np.float32)[:, None])
        names.append(name)
    codes = [
        examples.categorical,
        inputs.ads.categorical[examples.ad_index],
        inputs.users.categorical[examples.user_index],
    ]
    code_names = [
        *columns.categorical,
        *(f"ad_{name}" for name in columns.ad_categorical),
        *(f"user_{name}" for name in columns.user_categorical),
    ]
    return Design(
        np.concatenate(parts, axis=1).astype(np.float32, copy=False),
        tuple(names),
        np.concatenate(codes, axis=1).astype(np.int32, copy=False),
        tuple(code_names),
    )


LARGEST = 5.0
"""Deviations: a number further from the mean counts as so far, or one row would outweigh a hundred."""


class Scaler:
    """Standard scaling of dense columns beside one-hot columns of the codes, every value of them."""

    def __init__(
        self,
        names: tuple[str, ...],
        code_names: tuple[str, ...],
        mean: NDArray[np.float64],
        deviation: NDArray[np.float64],
        widths: NDArray[np.int64],
    ) -> None:
        self.names = names
        self.code_names = code_names
        self.mean = mean
        self.deviation = deviation
        self.widths = widths

    @classmethod
    def fit(cls, table: Design, *, leave_out: Collection[str] = (), weights: NDArray[np.float64] | None = None) -> "Scaler":
        """Means and deviations, and how many values each code has; a code that is always unknown is left out.

        `weights` (N,): impressions that each row stands for.
        """
        widths = table.codes.max(axis=0, initial=0).astype(np.int64) + 1
        told = [place for place, name in enumerate(table.code_names) if widths[place] > 1 and name not in leave_out]
        if weights is None:
            mean, deviation = table.dense.mean(axis=0, dtype=np.float64), table.dense.std(axis=0, dtype=np.float64)
        else:
            share = weights / weights.sum()
            mean = share @ table.dense.astype(np.float64)
            deviation = np.sqrt(share @ (table.dense - mean) ** 2)
        return cls(
            table.names,
            tuple(table.code_names[place] for place in told),
            mean,
            np.where(deviation > 1e-9, deviation, 1.0),
            widths[told],
        )

    @property
    def width(self) -> int:
        """Columns laid out: numbers, and one for each value of each code."""
        return len(self.names) + int(self.widths.sum())

    def dense(self, table: Design) -> Floats:
        """(N, F) numbers in deviations from the mean, at most LARGEST of them."""
        scaled = (table.picked(self.names, ()).dense - self.mean) / self.deviation
        return np.clip(scaled, -LARGEST, LARGEST).astype(np.float32)

    def places(self, table: Design) -> NDArray[np.int64]:
        """(N, C) which of the laid out columns is 1, for each code; a value that was not there when fitting is unknown."""
        codes = table.picked((), self.code_names).codes
        first = len(self.names) + np.cumsum(self.widths) - self.widths
        return np.asarray(first + np.where(codes < self.widths, codes, 0), dtype=np.int64)

    def transform(self, table: Design) -> sparse.csr_matrix:
        """(N, width) float32."""
        dense, places = self.dense(table), self.places(table)
        rows, count = len(dense), len(self.widths)
        ones = np.ones(places.size, np.float32)
        starts = np.arange(rows + 1) * count
        coded = sparse.csr_matrix((ones, places.ravel() - dense.shape[1], starts), (rows, int(self.widths.sum())))
        return sparse.hstack([sparse.csr_matrix(dense), coded], format="csr", dtype=np.float32)

    def product(self, table: Design, weights: Floats) -> Floats:
        """(N,) `transform(table)` times `weights`, without laying out its many zeros."""
        total: Floats = self.dense(table) @ weights[: len(self.names)] + weights[self.places(table)].sum(axis=1)
        return total

    def values(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "names": list(self.names),
            "code_names": list(self.code_names),
            "mean": self.mean.tolist(),
            "deviation": self.deviation.tolist(),
            "widths": self.widths.tolist(),
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Scaler":
        """From `values`."""
        return cls(
            tuple(values["names"]),
            tuple(values["code_names"]),
            np.asarray(values["mean"], np.float64),
            np.asarray(values["deviation"], np.float64),
            np.asarray(values["widths"], np.int64),
        )
