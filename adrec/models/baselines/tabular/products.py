"""What each feature of a user and of the moment makes of the vectors of an ad: products, which trees and linear models lack.

"The young like red pictures" is a product of an age and a direction of the pictures' space. Splits have to build it out of
steps, and a sum of columns cannot say it at all. z = u' W a + b'u, with u the user's and the moment's features (a column for
each value, and the user's own vectors) and a the ad's reduced vectors: logistic regression with a weight for every pair,
shrunk by a ridge: a factorisation machine between those fields without its low rank (Rendle 2010), and convex. What u' W a
holds of each modality is a column. A training row's column comes from the rows of other requests, or who reads it would find
the row's label there. Costs six solutions of up to 200,000 rows: 2 to 5 s for 42,000 rows and one modality.

Shapes: N rows, P columns of users and moments (the first is 1), K reduced dimensions of all modalities.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adrec.data.examples import Catalog
from adrec.models.baselines.base import Floats, Inputs, folds_of, load_state, save_state
from adrec.models.baselines.tabular.design import Design, Scaler

_FOLDS = 5
_MOST_ROWS = 200_000
_MOST_VALUES = 64
"""A feature of more values has no weight for each."""
_RIDGE = 300.0
"""Inverse variance of a weight, where reduced dimensions have a mean square of 1."""
_STEPS = 40


@dataclass(frozen=True)
class Products:
    """Fitted `weights` (P, K). `ads`, `users`: each column of vectors, with what its reduced dimensions are divided by."""

    scaler: Scaler
    ads: dict[str, float]
    users: dict[str, float]
    weights: Floats

    @classmethod
    def fit(cls, inputs: Inputs, *, seed: int) -> tuple["Products | None", dict[str, Floats]]:
        """From rows with a known click; and the columns that these rows may read.

        None where ads have no vectors, or users and moments no vectors and no features of few values.
        """
        table, examples = _features(inputs), inputs.examples
        largest = table.codes.max(axis=0, initial=0)
        many = [name for name, most in zip(table.code_names, largest, strict=True) if most >= _MOST_VALUES]
        scaler = Scaler.fit(table, leave_out=many, weights=inputs.weights)
        if not inputs.ads.modalities or not (scaler.width or inputs.users.modalities):
            return None, {}
        scales = _scales(inputs.ads, examples.ad_index), _scales(inputs.users, examples.user_index)
        made = cls(scaler, *scales, np.zeros((0, 0), np.float32))
        people, vectors = made._people(inputs), made._vectors(inputs)
        fold, learned = _folds(inputs, seed)
        own: dict[str, Floats] = {name: np.zeros(len(inputs), np.float32) for name in made._columns_of(inputs)}
        for number in np.unique(fold):
            rest, rows = np.flatnonzero(learned & (fold != number)), np.flatnonzero(fold == number)
            of_rest = replace(made, weights=_solve(people[rest], vectors[rest], inputs, rest))
            for name, column in of_rest.columns(inputs.take(rows)).items():
                own[name][rows] = column
        every = np.flatnonzero(learned)
        return replace(made, weights=_solve(people[every], vectors[every], inputs, every)), own

    def columns(self, inputs: Inputs) -> dict[str, Floats]:
        """(N,) of other rows, by column; 0 where the ad has no such vector."""
        # In double precision: in single the last bits depend on what is multiplied beside them, and a tree may split there.
        products = (self._people(inputs).astype(np.float64) @ self.weights.astype(np.float64)) * self._vectors(inputs)
        return {name: products[:, place].sum(axis=1).astype(np.float32) for name, place in self._columns_of(inputs).items()}

    def save(self, folder: Path) -> None:
        """What features and vectors are scaled by, and the weights."""
        values = {"scaler": self.scaler.values(), "ads": self.ads, "users": self.users}
        save_state(folder, values, {"weights": self.weights})

    @classmethod
    def load(cls, folder: Path) -> "Products | None":
        """What was saved; None where the folder does not exist."""
        if not folder.exists():
            return None
        values, arrays = load_state(folder)
        return cls(Scaler.from_values(values["scaler"]), values["ads"], values["users"], arrays["weights"])

    def _people(self, inputs: Inputs) -> sparse.csr_matrix:
        """(N, P)"""
        scaled = self.scaler.transform(_features(inputs))
        reduced = _reduced(inputs.users, inputs.examples.user_index, self.users)
        ones = np.ones((len(inputs), 1), np.float32)
        return sparse.hstack([ones, scaled, sparse.csr_matrix(reduced)], format="csr", dtype=np.float32)

    def _vectors(self, inputs: Inputs) -> Floats:
        """(N, K)"""
        return _reduced(inputs.ads, inputs.examples.ad_index, self.ads)

    def _columns_of(self, inputs: Inputs) -> dict[str, slice]:
        """Which of the K dimensions make each column."""
        sizes = [len(inputs.ads.modalities[name].fitted.components) for name in self.ads]
        ends = np.cumsum(sizes)
        return {f"{name}_for_user": slice(end - size, end) for name, size, end in zip(self.ads, sizes, ends, strict=True)}


def _scales(catalog: Catalog, rows: NDArray[np.integer]) -> dict[str, float]:
    """Root mean square of each modality's reduced dimensions; 1 where it is 0."""
    reduced = {name: held.reduced(rows) for name, held in catalog.modalities.items()}
    return {name: float(np.sqrt(np.square(part).mean(dtype=np.float64))) or 1.0 for name, part in reduced.items()}


def _reduced(catalog: Catalog, rows: NDArray[np.integer], scales: Mapping[str, float]) -> Floats:
    """(N, dimensions of these modalities)"""
    parts = [catalog.modalities[name].reduced(rows) / np.float32(scale) for name, scale in scales.items()]
    return np.concatenate([np.zeros((len(rows), 0), np.float32), *parts], axis=1)


def _features(inputs: Inputs) -> Design:
    """Numbers and codes of users, codes of moments. Counters say how often, not what somebody likes."""
    examples, columns, users = inputs.examples, inputs.columns, inputs.users
    names = tuple(f"user_{name}" for name in columns.user_numeric)
    code_names = (*columns.categorical, *(f"user_{name}" for name in columns.user_categorical))
    codes = np.concatenate([examples.categorical, users.categorical[examples.user_index]], axis=1, dtype=np.int32)
    return Design(users.numeric[examples.user_index], names, codes, code_names)


def _folds(inputs: Inputs, seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(N,) the fold of each row, and whether it is learned from: whole requests, about `_MOST_ROWS` rows."""
    request = inputs.examples.request
    fold = folds_of(request, _FOLDS, seed)
    drawn = np.random.default_rng(seed).random(int(request.max(initial=0)) + 1) < _MOST_ROWS / max(len(inputs), 1)
    return fold, drawn[request]


def _solve(people: sparse.csr_matrix, vectors: Floats, inputs: Inputs, rows: NDArray[np.int64]) -> Floats:
    """W (P, K) of these rows of the inputs; b, which users and moments are worth by themselves, is let go."""
    from scipy.optimize import minimize

    clicks = inputs.clicks[rows].astype(np.float64)
    weights = np.ones(len(rows)) if inputs.weights is None else inputs.weights[rows]
    rate = np.clip(weights @ clicks / max(float(weights.sum()), 1e-12), 1e-6, 1 - 1e-6)
    wide = np.concatenate([np.ones((len(rows), 1), np.float32), vectors], axis=1)  # the first is for b
    shape, across = (people.shape[1], wide.shape[1]), people.T.tocsr()
    start, penalty = np.zeros(shape), np.full(shape, _RIDGE)
    start[0, 0], penalty[0, 0] = np.log(rate / (1 - rate)), 0.0

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = flat.reshape(shape)
        z = np.einsum("nk,nk->n", people @ w.astype(np.float32), wide).astype(np.float64)
        gap = weights * (np.exp(-np.logaddexp(0.0, -z)) - clicks)
        slope = across @ (gap.astype(np.float32)[:, None] * wide) + penalty * w
        value = weights @ (np.logaddexp(0.0, z) - clicks * z) + 0.5 * float((penalty * w**2).sum())
        return float(value), np.asarray(slope, np.float64).ravel()

    solution = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
    return np.asarray(solution.reshape(shape)[:, 1:], dtype=np.float32)
