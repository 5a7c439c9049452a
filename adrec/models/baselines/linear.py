"""Logistic regression on features, counters and similarities: scikit-learn's, kept as plain numbers."""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from adrec.models.baselines.base import Floats, Inputs, load_state, save_state
from adrec.models.baselines.design import Scaler, design

_MAX_VALUES = 1000


class LogisticRegression:
    """P(click) = sigmoid(w . x + b), L2 regularised with strength 1 / C over all rows (Richardson et al. 2007 for clicks)."""

    name: ClassVar[str] = "logistic"
    is_probability: ClassVar[bool] = True

    def __init__(
        self,
        *,
        c: float = 0.1,
        scaler: Scaler | None = None,
        weights: NDArray[np.float64] | None = None,
        intercept: float = 0.0,
    ) -> None:
        self.c = c
        self.scaler = scaler
        self.weights = np.zeros(0) if weights is None else weights
        self.intercept = intercept

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """Both labels."""
        return "" if 0 < np.nanmean(inputs.clicks) < 1 else "both clicked and unclicked training rows"

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Scale, then maximise the penalised likelihood."""
        from sklearn.linear_model import LogisticRegression as Sklearn

        known = inputs.labelled()
        table = design(known)
        self.scaler = Scaler.fit(table, max_values=_MAX_VALUES)
        model = Sklearn(C=self.c, max_iter=300, random_state=seed).fit(self.scaler.transform(table), known.clicks.astype(int))
        self.weights = model.coef_[0].astype(np.float64)
        self.intercept = float(model.intercept_[0])

    def score(self, inputs: Inputs) -> Floats:
        """(N,) probabilities."""
        if self.scaler is None:
            raise ValueError("logistic regression is not fitted")
        z = self.scaler.transform(design(inputs)) @ self.weights + self.intercept
        return np.asarray(np.exp(-np.logaddexp(0.0, -z)), dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Scaling, weights, intercept."""
        if self.scaler is None:
            raise ValueError("logistic regression is not fitted")
        values = {"c": self.c, "intercept": self.intercept, "scaler": self.scaler.values()}
        save_state(folder, values, {"weights": self.weights})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        values, arrays = load_state(folder)
        scaler = Scaler.from_values(values["scaler"])
        return cls(c=values["c"], scaler=scaler, weights=arrays["weights"], intercept=values["intercept"])
