"""Click rates of the values of codes that have many: what a tree can read of thousands of values at once.

Micci-Barreca 2001, "A preprocessing scheme for high-cardinality categorical attributes". A training row's own part of the
rows is left out of its rates, or the tree would read its label there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrec.models.baselines.base import Floats, Inputs, folds_of, load_state, save_state
from adrec.models.baselines.tabular.design import Design

_FOLDS = 5
_PRIOR_ROWS = 20.0


@dataclass(frozen=True)
class Rates:
    """For each code of `names`, the smoothed click rate of its values (`values[i]` has the rate of code i, 0 the unknown)."""

    names: tuple[str, ...] = ()
    values: tuple[Floats, ...] = ()

    @classmethod
    def fit(cls, table: Design, inputs: Inputs, *, beyond: int, seed: int) -> tuple["Rates", dict[str, Floats]]:
        """Of codes with more than `beyond` values, from rows with a known click; and the columns that these rows may read, in
        which the rows of other requests alone count.
        """
        clicks, mean, weights = inputs.clicks.astype(np.float64), float(inputs.clicks.mean()), inputs.weights
        if weights is not None:
            clicks = weights * clicks
            mean = float(clicks.sum() / weights.sum())
        fold = folds_of(inputs.examples.request, _FOLDS, seed)
        names, values, own = [], [], {}
        for name, codes in zip(table.code_names, table.codes.T, strict=True):
            width = int(codes.max(initial=0)) + 1
            if width <= beyond:
                continue
            cell = fold * width + codes
            shown = np.bincount(cell, weights, _FOLDS * width).reshape(_FOLDS, width)
            clicked = np.bincount(cell, clicks, minlength=_FOLDS * width).reshape(_FOLDS, width)
            names.append(name)
            values.append(_smoothed(clicked.sum(0), shown.sum(0), mean))
            own[_column(name)] = _smoothed(clicked.sum(0) - clicked, shown.sum(0) - shown, mean)[fold, codes]
        return cls(tuple(names), tuple(values)), own

    def columns(self, table: Design) -> dict[str, Floats]:
        """(N,) rates of other rows, by column; a value that was not there counts as the unknown one."""
        codes = table.picked((), self.names).codes
        return {
            _column(name): rates[np.where(codes[:, place] < len(rates), codes[:, place], 0)]
            for place, (name, rates) in enumerate(zip(self.names, self.values, strict=True))
        }

    def save(self, folder: Path) -> None:
        """Names, and one array a code."""
        save_state(folder, {"names": list(self.names)}, {f"rates_{place}": rates for place, rates in enumerate(self.values)})

    @classmethod
    def load(cls, folder: Path) -> "Rates":
        """From `save`."""
        values, arrays = load_state(folder)
        return cls(tuple(values["names"]), tuple(arrays[f"rates_{place}"] for place in range(len(values["names"]))))


def _smoothed(clicked: NDArray[np.float64], shown: NDArray[Any], mean: float) -> Floats:
    return ((clicked + _PRIOR_ROWS * mean) / (shown + _PRIOR_ROWS)).astype(np.float32)


def _column(name: str) -> str:
    return f"rate_{name}"
