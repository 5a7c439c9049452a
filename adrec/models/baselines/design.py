"""The table that trees, logistic regression and the classic MLP learn from: features, counters, similarities."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adrec.models.baselines.base import Floats, Inputs
from adrec.models.baselines.preference import preference_columns
from adrec.models.baselines.similarity import STATISTICS, category_shares, history_similarities, list_shares
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


def design(
    inputs: Inputs, *, counters: bool = True, similarities: bool = True, extra: Mapping[str, Floats] | None = None
) -> Design:
    """Impression, ad and user features, log history length, category shares, similarities, and `extra` columns (N,) each."""
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
    if similarities:
        if "nearness" not in inputs.made:
            inputs.made["nearness"] = {**similarity_columns(inputs), **preference_columns(inputs)}
        for name, values in {**inputs.made["nearness"], **inputs.declared}.items():
            parts.append(values[:, None])
            names.append(name)
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


def similarity_columns(inputs: Inputs) -> dict[str, Floats]:
    """Category and list shares of the history, and cosines where the ads carry vectors."""
    found = {f"share_{name}": category_shares(inputs, inputs.ads, i) for i, name in enumerate(inputs.columns.ad_categorical)}
    found.update({f"share_{name}": list_shares(inputs, inputs.ads, name) for name in inputs.ads.lists})
    if inputs.ads.vectors is not None:
        cosines = history_similarities(inputs, inputs.ads.vectors)
        found.update({f"cosine_{name}": cosines[:, place] for place, name in enumerate(STATISTICS)})
    return found


class Scaler:
    """Standard scaling of dense columns beside one-hot columns of the codes that have few values."""

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
    def fit(cls, table: Design, *, max_values: int) -> "Scaler":
        """Means and deviations; codes with more than `max_values` values are left out (an identity is not a feature here)."""
        widths = table.codes.max(axis=0, initial=0).astype(np.int64) + 1
        few = [place for place, width in enumerate(widths) if 1 < width <= max_values]
        deviation = table.dense.std(axis=0, dtype=np.float64)
        return cls(
            table.names,
            tuple(table.code_names[place] for place in few),
            table.dense.mean(axis=0, dtype=np.float64),
            np.where(deviation > 1e-9, deviation, 1.0),
            widths[few],
        )

    def transform(self, table: Design) -> sparse.csr_matrix:
        """(N, F + sum of widths) float32."""
        own = table.picked(self.names, self.code_names)
        scaled = ((own.dense - self.mean) / self.deviation).astype(np.float32)
        rows = np.arange(len(scaled))
        parts: list[Any] = [sparse.csr_matrix(scaled)]
        for place, width in enumerate(self.widths):
            codes = np.where(own.codes[:, place] < width, own.codes[:, place], 0)
            parts.append(sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, codes)), shape=(len(rows), int(width))))
        return sparse.hstack(parts, format="csr", dtype=np.float32)

    def product(self, table: Design, weights: Floats, *, largest: float) -> Floats:
        """(N,) `transform(table)`, cut at +-`largest` (1 or more), times `weights`: without laying out its many zeros."""
        own = table.picked(self.names, self.code_names)
        scaled = np.clip((own.dense - self.mean) / self.deviation, -largest, largest).astype(np.float32)
        first = scaled.shape[1] + np.cumsum(self.widths) - self.widths
        coded = weights[first + np.where(own.codes < self.widths, own.codes, 0)].sum(axis=1)
        total: Floats = scaled @ weights[: scaled.shape[1]] + coded
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
