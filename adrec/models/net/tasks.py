"""What one task learns: the scale its label is learned on, and the way back from a raw output to the user's units."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adrec.data.features.moments import Moments


@dataclass(frozen=True)
class Task:
    """A label of the impressions. Binary: the raw output is a logit. Otherwise it is the standardised (log1p) value."""

    name: str
    is_binary: bool = True
    weight: float = 1.0
    after: int | None = None
    """ESMM: number of the task that must happen first; then the output is about both."""
    log1p: bool = False
    mean: float = 0.0
    """of the training labels; of a binary task 0 stands for unknown"""
    deviation: float = 1.0

    def scaled(self, labels: ArrayLike) -> NDArray[np.float64]:
        """Labels on the scale that is standardised: their log1p where the task says so. NaN stays NaN."""
        values = np.asarray(labels, np.float64)
        return np.log1p(values) if self.log1p else values

    def fitted(self, moments: Moments) -> "Task":
        """The same task with mean and deviation (of a binary one, the mean) of the known training labels, `scaled`."""
        if not moments.count:
            return self
        deviation = 1.0 if self.is_binary else math.sqrt(moments.squares / moments.count) or 1.0
        return Task(**{**asdict(self), "mean": moments.total / moments.count, "deviation": deviation})

    def start(self, parent: "Task | None" = None) -> float:
        """Raw output that gives every row the mean of the training labels; given that `parent` happened, where there is one.

        The intercept starts there, so that no weight of a feature that most rows have is spent on the base rate
        (Lin et al. 2017, Focal loss, section 3.3).
        """
        if not self.is_binary:
            return 0.0
        rate = self.mean / parent.mean if parent is not None and parent.mean > 0 else self.mean
        return math.log(rate) - math.log1p(-rate) if 0 < rate < 1 else 0.0

    def target(self, labels: ArrayLike) -> NDArray[np.float32]:
        """What the network is trained towards; NaN stays NaN."""
        values = np.asarray(labels, np.float32)
        if self.is_binary:
            return values
        return np.asarray(((np.log1p(values) if self.log1p else values) - self.mean) / self.deviation, np.float32)

    def output(self, raw: ArrayLike) -> NDArray[np.float32]:
        """Raw outputs in the units of the label: a probability, or the value itself."""
        values = np.asarray(raw, np.float64)
        if self.is_binary:
            return np.exp(-np.logaddexp(0.0, -values)).astype(np.float32)
        values = values * self.deviation + self.mean
        return (np.expm1(values) if self.log1p else values).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """JSON-safe values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Task":
        """The task that `to_json` wrote."""
        return cls(**values)
