"""Logistic regression on features, counters, similarities, products and the values of the ads' lists: scikit-learn's, kept as
numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adrec.models.baselines.base import Floats, Inputs, folds_of, load_state, save_state
from adrec.models.baselines.tabular.design import Scaler, design
from adrec.models.baselines.tabular.products import Products
from adrec.models.blend.calibration import log_loss
from adrec.models.match.histories import list_indicator

_STRENGTHS = (0.02, 0.2, 2.0)
"""Values of C tried by cross-validation where rows are few; the first, which suits many rows, elsewhere."""
_FEW_ROWS = 20_000
_FOLDS = 5


class LogisticRegression:
    """P(click) = sigmoid(w . x + b), L2 regularised with strength 1 / C over all rows (Richardson et al. 2007 for clicks).

    `c` None: chosen by cross-validation over whole requests where rows are few, else 0.02.
    """

    name: ClassVar[str] = "logistic"
    is_probability: ClassVar[bool] = True

    def __init__(
        self,
        *,
        c: float | None = None,
        scaler: Scaler | None = None,
        weights: NDArray[np.float64] | None = None,
        intercept: float = 0.0,
        lists: Mapping[str, int] | None = None,
        products: Products | None = None,
    ) -> None:
        self.c = c
        self.scaler = scaler
        self.weights = np.zeros(0) if weights is None else weights
        self.intercept = intercept
        self.lists = dict(lists or {})
        """codes of each list column of ads, the unknown one included"""
        self.products = products
        self.own: dict[str, Floats] = {}
        """columns of the products that the rows it was fitted on may read"""

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """Both labels."""
        return "" if 0 < np.nanmean(inputs.clicks) < 1 else "both clicked and unclicked training rows"

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Scale, then maximise the penalised likelihood."""
        known = inputs.labelled()
        self.products, self.own = Products.fit(known, seed=seed)
        self.scaler = Scaler.fit(design(known, extra=self.own), weights=known.weights)
        self.lists = {name: int(values.values.max(initial=0)) + 1 for name, values in known.ads.lists.items()}
        columns, clicks = self._columns(known, self.own), known.clicks.astype(int)
        if self.c is None:
            few = len(known) <= _FEW_ROWS
            self.c = _strength(columns, clicks, known.weights, known.examples.request, seed) if few else _STRENGTHS[0]
        self.weights, self.intercept = _solve(columns, clicks, known.weights, self.c)

    def score(self, inputs: Inputs) -> Floats:
        """(N,) probabilities."""
        z = self._columns(inputs, self.of_products(inputs)) @ self.weights + self.intercept
        return np.asarray(np.exp(-np.logaddexp(0.0, -z)), dtype=np.float32)

    def of_products(self, inputs: Inputs) -> dict[str, Floats]:
        """The products' columns of other rows."""
        return {} if self.products is None else self.products.columns(inputs)

    def list_margin(self, inputs: Inputs) -> Floats:
        """(N,) what the values of the ad's lists add to the log-odds: all their weights in one number."""
        first = len(self.weights) - sum(self.lists.values())
        return np.asarray(self._lists(inputs) @ self.weights[first:], dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Scaling, weights, intercept, and below `products` theirs."""
        if self.scaler is None:
            raise ValueError("logistic regression is not fitted")
        values = {"c": self.c, "intercept": self.intercept, "scaler": self.scaler.values(), "lists": self.lists}
        save_state(folder, values, {"weights": self.weights})
        if self.products is not None:
            (folder / "products").mkdir()
            self.products.save(folder / "products")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        values, arrays = load_state(folder)
        scaler = Scaler.from_values(values["scaler"])
        return cls(
            c=values["c"], scaler=scaler, weights=arrays["weights"], intercept=values["intercept"], lists=values["lists"],
            products=Products.load(folder / "products"),
        )  # fmt: skip

    def _columns(self, inputs: Inputs, products: Mapping[str, Floats]) -> sparse.csr_matrix:
        """(N, F + K) scaled features beside 1 for each value of the ad's lists."""
        if self.scaler is None:
            raise ValueError("logistic regression is not fitted")
        scaled = self.scaler.transform(design(inputs, extra=products))
        return sparse.hstack([scaled, self._lists(inputs)], format="csr", dtype=np.float32)

    def _lists(self, inputs: Inputs) -> sparse.csr_matrix:
        """(N, K)"""
        parts: list[Any] = [sparse.csr_matrix((len(inputs.ads), 0), dtype=np.float32)]
        for name, width in self.lists.items():
            known = list_indicator(inputs.ads, name)
            known.resize((known.shape[0], width))  # these ads may hold fewer values, or (hashed) others
            parts.append(known)
        return sparse.hstack(parts, format="csr", dtype=np.float32)[inputs.examples.ad_index]


def _solve(
    columns: sparse.csr_matrix, clicks: NDArray[np.int64], rows: NDArray[np.float64] | None, c: float
) -> tuple[NDArray[np.float64], float]:
    """Weights and intercept. `rows` (N,): impressions that each row stands for."""
    from sklearn.linear_model import LogisticRegression as Sklearn

    model = Sklearn(C=c, max_iter=300).fit(columns, clicks, sample_weight=rows)
    return model.coef_[0].astype(np.float64), float(model.intercept_[0])


def _strength(
    columns: sparse.csr_matrix,
    clicks: NDArray[np.int64],
    rows: NDArray[np.float64] | None,
    request: NDArray[Any],
    seed: int,
) -> float:
    """The C with the least cross-validated log loss; the smallest where a fold would lack a label."""
    fold = folds_of(request, _FOLDS, seed)
    if any(len(np.unique(clicks[fold != number])) < 2 for number in range(_FOLDS)):
        return _STRENGTHS[0]
    losses = {}
    for c in _STRENGTHS:
        margin = np.zeros(len(clicks))
        for number in range(_FOLDS):
            rest = fold != number
            weights, intercept = _solve(columns[rest], clicks[rest], None if rows is None else rows[rest], c)
            margin[fold == number] = columns[fold == number] @ weights + intercept
        losses[c] = log_loss(margin, clicks, rows)
    return min(losses, key=lambda c: losses[c])
