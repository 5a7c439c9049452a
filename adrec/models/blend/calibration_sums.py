"""A calibration from sums over rows that nobody sees: counts between the marks of a grid, or what each row says of a line.

What clients of a federation add up, and what a private training reads under noise. Shapes: N rows.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from adrec.models.blend.calibration import Calibration, Floats, fit, sigmoid

GRID = np.linspace(-8.0, 4.0, 17)
"""Edges of the logits between which `cells_of` counts: the same for everybody, so that counts can be added up."""
LINE_STEPS = 3
"""Steps of `LineFit.step` that a calibration takes."""
LEVEL_STEPS = 2
"""Steps of `LineFit.level`, where the intercept alone is fitted."""
_CENTRE, _REACH = -2.0, 6.0
"""A logit's place: so far from the centre, in reaches."""
_LONGEST_STEP = 1.5


def cells_of(logits: npt.ArrayLike, labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """(32,) misses and clicks, in turn, between the marks of a fixed grid; rows with a NaN label are left out."""
    y = np.asarray(labels, dtype=np.float64)
    known = ~np.isnan(y)
    bins = np.clip(np.searchsorted(GRID, np.asarray(logits, dtype=np.float64)[known]) - 1, 0, len(GRID) - 2)
    return np.bincount(bins * 2 + (y[known] > 0), minlength=2 * (len(GRID) - 1))


def calibration_of(cells: npt.ArrayLike, *, doubt: float = 1.0) -> Calibration:
    """Platt's line through counts of `cells_of`, or noised ones. `doubt`: so many rows in each cell speak for the logits as
    they are, so that counts which say less than their noise change nothing.
    """
    centres = (GRID[1:] + GRID[:-1]) / 2
    chances = sigmoid(centres)
    counts = np.maximum(np.asarray(cells, dtype=np.float64).reshape(-1, 2), 0.0)
    counts = counts + doubt * np.stack([1.0 - chances, chances], axis=1)
    labels = np.tile([0.0, 1.0], len(centres))
    return replace(fit(np.repeat(centres, 2), labels, weights=counts.reshape(-1), method="platt"), log_loss={})


def line_sums(logits: npt.ArrayLike, labels: npt.ArrayLike, line: tuple[float, float]) -> Floats:
    """(N, 5), what each row says of a line `slope * x + intercept`: its part of the gradient and of the curvature of log loss.

    A place is (logit + 2) / 6, cut to [-1, 1]; with p what the line answers the five are y - p, that times the place, and
    p (1 - p) times the place to the powers 0, 1 and 2. Their sums over any rows, noised or not, take `LineFit` a step on.
    """
    place, y = _places(logits), np.asarray(labels, dtype=np.float64)
    p = sigmoid(line[0] * (place * _REACH + _CENTRE) + line[1])
    spread = p * (1.0 - p)
    return np.stack([y - p, (y - p) * place, spread, spread * place, spread * place**2], axis=1)


@dataclass
class LineFit:
    """Newton's steps towards Platt's line, from sums of `line_sums`, each of them off by `deviation` (noise).

    Shrunk as Bayes would: changes of the level by 1 and of the slope by a third are taken to be usual, so that sums which say
    less than their noise change little. A later step knows half of what those before it knew, since they saw another line: what
    is left is nearly the noise of all steps' mean, and not that of the last.
    """

    deviation: float = 0.0
    line: tuple[float, float] = (1.0, 0.0)
    """slope and intercept"""
    _known: Floats = field(default_factory=lambda: np.diag([1.0, (3.0 / _REACH) ** 2]))
    """precision of the line, in places"""

    def step(self, sums: npt.ArrayLike) -> None:
        """Take in sums that were made at `line`."""
        values = np.asarray(sums, dtype=np.float64)
        curvature = np.array([[values[2], values[3]], [values[3], values[4]]])
        strength, directions = np.linalg.eigh(curvature)
        curvature = (directions * np.maximum(strength, 0.0)) @ directions.T
        weighed = curvature @ np.linalg.inv(curvature + (self.deviation**2 + 1e-9) * np.eye(2))
        told = weighed @ curvature
        change = np.linalg.solve(told + self._known, weighed @ values[:2])
        change = change * min(1.0, _LONGEST_STEP / max(float(np.abs(change).max()), 1e-12))
        if self.deviation:
            self._known = self._known + told / 2.0
        # In places the line is (slope * 6) place + (intercept - 2 slope).
        slope = max(self.line[0] + float(change[1]) / _REACH, 0.1)
        level = self.line[1] + self.line[0] * _CENTRE + float(change[0])
        self.line = slope, level - slope * _CENTRE

    def level(self, lack: float, predicted: float, rate: float, deviation: float) -> None:
        """Move the intercept alone, by what scores lack of the labels in all, known to `deviation`, beside the clicks they
        `predicted`; `rate`: of clicks, roughly. What is taken to be usual is as in `step`.

        Scores whose odds lie near each other move from as much more or less than the rate as they promise to the rate: exact
        where all are alike, where a step of Newton's that must double them goes half as far again.
        """
        predicted = max(predicted, deviation, 1.0)
        promised = float(np.clip(rate / np.clip(1.0 + lack / predicted, 0.1, 10.0), 1e-4, 0.9))
        moved = np.log(rate / (1.0 - rate)) - np.log(promised / (1.0 - promised))
        information = predicted * (1.0 - rate)
        precision = information**2 / (information + deviation**2)
        change = moved * precision / (precision + self._known[0, 0])
        self.line = self.line[0], self.line[1] + float(np.clip(change, -_LONGEST_STEP, _LONGEST_STEP))
        self._known = self._known + np.diag([precision / 2.0, 0.0])

    def calibration(self) -> Calibration:
        """The line so far."""
        return Calibration(method="platt", slope=self.line[0], intercept=self.line[1])


def _places(logits: npt.ArrayLike) -> Floats:
    return np.clip((np.asarray(logits, dtype=np.float64) - _CENTRE) / _REACH, -1.0, 1.0)
