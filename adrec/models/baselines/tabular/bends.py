"""Numbers as piecewise linear functions of their quantile, so that a linear model may bend: an additive model, still convex.

A counter's first clicks say much and its hundredth little, and a cosine of .3 is worth what it is among others. Costs five
columns a number.
"""

import numpy as np
from numpy.typing import NDArray

from adrec.models.baselines.base import Floats
from adrec.models.baselines.tabular.design import Design

_INTERVALS = 64
"""Of the quantiles that are kept: ranks to a hundredth."""
_KNOTS = (0.2, 0.4, 0.6, 0.8)


class Bends:
    """F columns by name, their quantiles among the rows it was fitted on: `landmarks` (F, 65)."""

    def __init__(self, names: tuple[str, ...], landmarks: Floats) -> None:
        self.names, self.landmarks = names, landmarks

    @classmethod
    def fit(cls, table: Design, *, weights: NDArray[np.float64] | None = None) -> "Bends":
        """Of the columns with more values than there are knots. `weights` (N,): impressions that each row stands for."""
        order = np.argsort(table.dense, axis=0, kind="stable")
        share = np.ones(len(order)) if weights is None else weights
        landmarks = []
        for column, rows in zip(table.dense.T, order.T, strict=True):
            reached = np.cumsum(share[rows])  # rows that weigh two are two rows
            at = np.linspace(0, reached[-1], _INTERVALS + 1)
            landmarks.append(column[rows[np.minimum(np.searchsorted(reached, at), len(rows) - 1)]])
        told = [place for place, marks in enumerate(landmarks) if len(np.unique(marks)) > len(_KNOTS) + 1]
        marks = np.asarray([landmarks[place] for place in told], np.float32).reshape(len(told), _INTERVALS + 1)
        return cls(tuple(table.names[place] for place in told), marks)

    @property
    def width(self) -> int:
        """Columns of `dense`."""
        return len(self.names) * (1 + len(_KNOTS))

    def dense(self, table: Design) -> Floats:
        """(N, width) quantiles from -.5 to .5, and how far they lie above each knot. Tied values share their middle rank."""
        numbers = table.picked(self.names, ()).dense
        ranks = np.zeros(numbers.shape, np.float32)
        at = np.linspace(0.0, 1.0, _INTERVALS + 1)
        for place, marks in enumerate(self.landmarks):
            column = numbers[:, place]
            ranks[:, place] = (np.interp(column, marks, at) - np.interp(-column, -marks[::-1], -at[::-1])) / 2
        return np.concatenate([ranks - 0.5, *(np.maximum(ranks - np.float32(knot), 0) for knot in _KNOTS)], axis=1)
