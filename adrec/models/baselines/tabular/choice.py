"""Which ad of a request is clicked, as a conditional logit: additive in features, linear in products of user and ad vectors.

z = w . (u * a) + v . a + c . x + sum f_j(x_j), softmax over the request (McFadden 1974, "Conditional logit analysis of
qualitative choice behavior"); u is the mean of the history's unit text vectors, a the ad's, x the scaled features, counters and
cosines, each of which may bend (`bends`; Hastie and Tibshirani 1990, "Generalized additive models"). The plain cosine is among
x and all but free, so strong shrinkage of w and v leads back to the untrained encoder, and weak shrinkage learns which
directions of the text space matter for clicks. Convex, so the solution does not depend on a seed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from adrec.data.arrays import unit_rows
from adrec.models.baselines.base import Floats, Inputs, load_state, sampled_requests, save_state
from adrec.models.baselines.tabular.bends import Bends
from adrec.models.baselines.tabular.design import Scaler, design
from adrec.models.baselines.tabular.products import Products
from adrec.models.match.histories import mean_history, row_products

_FEATURE_PENALTY = 1e-3
"""L2 strength of the other weights; that of one row in all where rows are fewer than a thousand."""
_BEND_PENALTY = 1e-2
_PRODUCT_SCALE = 20.0


class ConditionalLogit:
    """The score is z, a logit up to a constant of the request. Where hardly any request holds a click and a miss, rows are
    taken one by one (logistic regression) instead, as are rows of counts: they are no choice of one request.
    `penalty` is the L2 strength of the text weights. `max_rows` bounds the
    training rows, drawn as whole requests.
    """

    name: ClassVar[str] = "conditional_logit"
    is_probability: ClassVar[bool] = False

    def __init__(
        self,
        *,
        max_rows: int = 150_000,
        penalty: float = 0.01,
        scaler: Scaler | None = None,
        bends: Bends | None = None,
        products: Floats | None = None,
        ads: Floats | None = None,
        features: Floats | None = None,
        intercept: float = 0.0,
        of_users: Products | None = None,
    ) -> None:
        self.max_rows = max_rows
        self.penalty = penalty
        self.scaler = scaler
        self.bends = bends or Bends((), np.zeros((0, 0), np.float32))
        self.products = np.zeros(0, np.float32) if products is None else products
        self.ads = np.zeros(0, np.float32) if ads is None else ads
        self.features = np.zeros(0, np.float32) if features is None else features
        self.intercept = intercept
        self.of_users = of_users
        """what users' features make of the ads' vectors, columns of x"""

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """Both labels."""
        return "" if 0 < np.nanmean(inputs.clicks) < 1 else "both clicked and unclicked training rows"

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Solve; nothing is chosen on validation rows."""
        rows = sampled_requests(inputs.labelled(), self.max_rows, np.random.default_rng(seed)).compact()
        self.of_users, own = Products.fit(rows, seed=seed)
        table = design(rows, extra=own)
        self.scaler = Scaler.fit(table, weights=rows.weights)
        self.bends = Bends.fit(table, weights=rows.weights)
        first = self.bends.width
        numbers = np.concatenate([self.bends.dense(table), self.scaler.dense(table)], axis=1)
        problem = _Problem.of(rows, numbers, self.scaler.places(table) + first, self.scaler.width + first)
        solution = problem.solve(self.penalty, first)
        weights, width = solution[:-1].astype(np.float32), problem.width
        self.products, self.ads, self.features = weights[:width], weights[width : 2 * width], weights[2 * width :]
        self.intercept = float(solution[-1])

    def score(self, inputs: Inputs) -> Floats:
        """(N,) logits."""
        own = inputs.compact()
        if self.scaler is None:
            raise ValueError("the conditional logit is not fitted")
        extra = {} if self.of_users is None else self.of_users.columns(own)
        table, first = design(own, extra=extra), self.bends.width
        total = self.scaler.product(table, self.features[first:]) + np.float32(self.intercept)
        total = total + self.bends.dense(table) @ self.features[:first]
        if len(self.ads) and own.ads.vectors is not None:
            vectors, examples = unit_rows(own.ads.vectors), own.examples
            interest = unit_rows(mean_history(own.examples, vectors)) * (_PRODUCT_SCALE * self.products)
            total = total + row_products(interest, vectors, examples.history_of_row, examples.ad_index)
            total = total + (vectors @ self.ads)[examples.ad_index]
        return np.asarray(total, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Scaling and weights."""
        if self.scaler is None:
            raise ValueError("the conditional logit is not fitted")
        values = {"penalty": self.penalty, "intercept": self.intercept, "scaler": self.scaler.values()}
        values["bends"] = list(self.bends.names)
        weights = {"products": self.products, "ads": self.ads, "features": self.features}
        save_state(folder, values, {**weights, "landmarks": self.bends.landmarks})
        if self.of_users is not None:
            (folder / "products").mkdir()
            self.of_users.save(folder / "products")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        values, arrays = load_state(folder)
        scaler = Scaler.from_values(values["scaler"])
        return cls(
            penalty=values["penalty"],
            scaler=scaler,
            bends=Bends(tuple(values["bends"]), arrays["landmarks"]) if "bends" in values else None,
            products=arrays["products"],
            ads=arrays["ads"],
            features=arrays["features"],
            intercept=values["intercept"],
            of_users=Products.load(folder / "products"),
        )


@dataclass(frozen=True)
class _Problem:
    """The training rows: `wide` (N, 2 D + F) holds the scaled products u * a, the vectors a and the scaled numbers; `coded`
    (N, C) says which of the columns that follow those is 1, one a value of a code, so that they need not be laid out.
    """

    wide: Floats
    width: int
    coded: NDArray[np.int64]
    columns: int
    """all of them, those of the codes included"""
    clicks: Floats
    starts: NDArray[np.int64]
    group: NDArray[np.int64]
    """(N,) which of the requests"""
    by_request: bool
    size: float
    """impressions: rows, or what they weigh"""
    share: Floats | None = None
    """(N,) of each row among what is weighed, 1 together; None where rows are impressions"""

    @classmethod
    def of(cls, rows: Inputs, features: Floats, places: NDArray[np.int64], columns: int) -> "_Problem":
        """Lay the numbers side by side. `places` (N, C) count from the first of `features`, and there are `columns` of both."""
        examples, parts, width = rows.examples, [features], 0
        if rows.ads.vectors is not None and rows.ads.vectors.shape[1]:
            vectors = unit_rows(rows.ads.vectors)
            width = vectors.shape[1]
            interest = unit_rows(mean_history(examples, vectors))
            shown = vectors[examples.ad_index]
            parts = [interest[examples.history_of_row] * shown * np.float32(_PRODUCT_SCALE), shown, features]
        starts = examples.request_starts[:-1]
        mixed = np.maximum.reduceat(rows.clicks, starts) > np.minimum.reduceat(rows.clicks, starts)
        by_request = rows.weights is None and bool(mixed.sum() >= 30 and mixed.mean() > 0.1)
        share = None if rows.weights is None else (rows.weights / rows.weights.sum()).astype(np.float32)
        size = float(len(rows) if rows.weights is None else rows.weights.sum())
        wide = np.concatenate(parts, axis=1).astype(np.float32, copy=False)
        group = np.repeat(np.arange(len(starts)), np.diff(examples.request_starts))
        return cls(wide, width, places + 2 * width, columns + 2 * width, rows.clicks, starts, group, by_request, size, share)

    def solve(self, strength: float, bends: int) -> NDArray[np.float64]:
        """Weights (2 D + F + values + 1,), the intercept last; it stays 0 in a softmax, which it cannot change.

        The first `bends` of the F numbers have a penalty of their own.
        """
        from scipy.optimize import minimize

        start = np.zeros(self.columns + 1)
        penalty = np.full(len(start), strength)
        penalty[2 * self.width :] = max(_FEATURE_PENALTY, 1 / self.size)
        penalty[2 * self.width : 2 * self.width + bends] = max(_BEND_PENALTY, 1 / self.size)
        penalty[-1] = 0.0

        def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            z = self.product(weights)
            value, slope = self._softmax(z) if self.by_request else self._logistic(z)
            gradient = self.slopes(slope)
            gradient[-1] = 0.0 if self.by_request else slope.sum()
            return value + 0.5 * float(penalty @ weights**2), gradient + penalty * weights

        return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 60}).x, dtype=np.float64)

    def product(self, weights: NDArray[np.float64]) -> Floats:
        """(N,) z of weights (2 D + F + values + 1,)."""
        short = weights.astype(np.float32)
        total: Floats = self.wide @ short[: self.wide.shape[1]] + short[self.coded].sum(axis=1) + short[-1]
        return total

    def slopes(self, slope: Floats) -> NDArray[np.float64]:
        """The derivative in every weight from that in z (N,); 0 for the intercept."""
        gradient = np.zeros(self.columns + 1)
        for column in self.coded.T:
            gradient += np.bincount(column, weights=slope, minlength=len(gradient))
        gradient[: self.wide.shape[1]] = self.wide.T @ slope
        return gradient

    def _softmax(self, z: Floats) -> tuple[float, Floats]:
        """Mean over clicks of -log softmax, and its slope in z."""
        clicks = np.add.reduceat(self.clicks, self.starts)
        code = self.group
        top = np.maximum.reduceat(z, self.starts)
        mass = np.exp(z - top[code])
        total = np.add.reduceat(mass, self.starts)
        count = float(self.clicks.sum())
        value = float((clicks * (np.log(total) + top)).sum(dtype=np.float64) - (self.clicks * z).sum(dtype=np.float64)) / count
        return value, np.asarray(((clicks / total)[code] * mass - self.clicks) / count, dtype=np.float32)

    def _logistic(self, z: Floats) -> tuple[float, Floats]:
        """Mean log loss, and its slope in z."""
        p = np.exp(-np.logaddexp(0.0, -z))
        losses = np.logaddexp(0.0, z) - self.clicks * z
        if self.share is not None:
            return float((self.share * losses).sum(dtype=np.float64)), np.asarray(self.share * (p - self.clicks), np.float32)
        return float(np.mean(losses, dtype=np.float64)), np.asarray((p - self.clicks) / len(z), dtype=np.float32)
