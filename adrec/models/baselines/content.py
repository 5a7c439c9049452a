"""Baselines that compare the ad with what the user clicked before: by category, words, vectors, or a weighted sum of all."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adrec.data.arrays import unit_rows
from adrec.models.baselines.base import Floats, Inputs, LacksNothing, Unfitted, load_state, save_state
from adrec.models.baselines.text import TfIdf
from adrec.models.match.histories import (
    category_shares,
    history_matrix,
    list_indicator,
    list_shares,
    mean_history,
    row_products,
    sparse_unit_rows,
)


class CategoryAffinity(Unfitted):
    """Share of the user's history that lies in the ad's category (for list categories: shared values, see `list_shares`)."""

    name: ClassVar[str] = "category_affinity"
    is_probability: ClassVar[bool] = False

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """A category."""
        has_one = "category" in inputs.columns.ad_categorical or bool(inputs.ads.lists)
        return "" if has_one else "an ad feature 'category', or a list feature of ads"

    def score(self, inputs: Inputs) -> Floats:
        """(N,) share in [0, 1]; 0 for an empty history."""
        if "category" in inputs.columns.ad_categorical:
            return category_shares(inputs.examples, inputs.ads, inputs.columns.ad_categorical.index("category"))
        return list_shares(inputs.examples, inputs.ads, next(iter(inputs.ads.lists)))


class TfIdfCosine(LacksNothing):
    """Cosine of the ad's TF-IDF vector and the mean of those in the history and of the user's interests text."""

    name: ClassVar[str] = "tfidf"
    is_probability: ClassVar[bool] = False

    def __init__(self, tfidf: TfIdf | None = None) -> None:
        self.tfidf = tfidf or TfIdf(np.zeros(0, np.str_), np.zeros(0, np.float32))

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Weigh the terms of all ads in the training catalog."""
        self.tfidf = TfIdf.fit(inputs.ads.texts)

    def score(self, inputs: Inputs) -> Floats:
        """(N,) cosine in [0, 1]; 0 where the user has neither history nor interests."""
        ads = self.tfidf.transform(inputs.ads.texts)
        return cosine_to_interest(inputs, ads, self.tfidf.transform(inputs.users.texts))

    def save(self, folder: Path) -> None:
        """Terms and weights."""
        save_state(folder, {}, self.tfidf.arrays())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        arrays = load_state(folder)[1]
        return cls(TfIdf(arrays["vocabulary"], arrays["idf"]))


class EncoderCosine(Unfitted):
    """Cosine of the ad's text vector and the mean of the history's unit vectors: the text encoder with no training at all."""

    name: ClassVar[str] = "encoder_cosine"
    is_probability: ClassVar[bool] = False

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """Vectors."""
        return "" if inputs.ads.vectors is not None else "text vectors of the ads"

    def score(self, inputs: Inputs) -> Floats:
        """(N,) cosine in [-1, 1]; 0 for an empty history."""
        vectors = unit_rows(_vectors(inputs))
        interest = unit_rows(mean_history(inputs.examples, vectors))
        return row_products(interest, vectors, inputs.examples.history_of_row, inputs.examples.ad_index)


class ContentScore(LacksNothing):
    """sum over features f of w_f cos(interest_f, ad_f): one weighted cosine of category, words and vector.

    Weights are given, or learned as the non-negative coefficients of a logistic regression of clicks on the cosines.
    Pazzani and Billsus 2007, "Content-based recommendation systems".
    """

    name: ClassVar[str] = "content"
    is_probability: ClassVar[bool] = False

    def __init__(self, *, weights: Mapping[str, float] | None = None, tfidf: TfIdf | None = None) -> None:
        self.given = dict(weights) if weights else None
        self.weights = dict(weights or {})
        self.tfidf = tfidf or TfIdf(np.zeros(0, np.str_), np.zeros(0, np.float32))

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Weigh terms, then features."""
        self.tfidf = TfIdf.fit(inputs.ads.texts)
        if self.given is None:
            known = inputs.labelled()
            self.weights = learned_weights(self.cosines(known), known.clicks, known.weights)

    def cosines(self, inputs: Inputs) -> dict[str, Floats]:
        """feature → (N,) cosine of interest and ad."""
        ads, columns = inputs.ads, inputs.columns
        cosines = {
            "text": cosine_to_interest(inputs, self.tfidf.transform(ads.texts), self.tfidf.transform(inputs.users.texts))
        }
        for place, name in enumerate(columns.ad_categorical):
            cosines[name] = cosine_to_interest(inputs, _one_hot(ads.categorical[:, place]))
        for name in ads.lists:
            cosines[name] = cosine_to_interest(inputs, list_indicator(ads, name))
        if ads.vectors is not None:
            cosines["vector"] = EncoderCosine().score(inputs)
        return cosines

    def score(self, inputs: Inputs) -> Floats:
        """(N,) weighted sum; features without a weight count nothing."""
        cosines = self.cosines(inputs)
        total = np.zeros(len(inputs), np.float32)
        for name, weight in self.weights.items():
            if name in cosines:
                total += np.float32(weight) * cosines[name]
        return total

    def save(self, folder: Path) -> None:
        """Weights and terms."""
        save_state(folder, {"weights": self.weights, "given": self.given}, self.tfidf.arrays())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        values, arrays = load_state(folder)
        loaded = cls(weights=values["given"], tfidf=TfIdf(arrays["vocabulary"], arrays["idf"]))
        loaded.weights = values["weights"]
        return loaded


def cosine_to_interest(inputs: Inputs, ads: sparse.csr_matrix, users: sparse.csr_matrix | None = None) -> Floats:
    """(N,) cosine of the candidate's row of `ads` (A, T) with the sum of the history's unit rows.

    `users` (U, T) adds the user's own row (declared interests), which counts like one more click.
    """
    unit = sparse_unit_rows(ads)
    interest = history_matrix(inputs.examples, np.arange(unit.shape[0]), unit.shape[0]) @ unit
    if users is not None and users.nnz:
        interest = interest + sparse_unit_rows(users)[inputs.user_of_history]
    profile = sparse_unit_rows(sparse.csr_matrix(interest))
    return row_products(profile, unit, inputs.examples.history_of_row, inputs.examples.ad_index)


def learned_weights(cosines: Mapping[str, Floats], clicks: Floats, rows: NDArray[np.float64] | None = None) -> dict[str, float]:
    """Non-negative logistic regression of clicks on cosines (free intercept, L2 of 1e-4 a row); weights sum to 1.

    `rows` (N,): impressions that each row stands for.
    """
    from scipy.optimize import minimize

    names = list(cosines)
    x = np.stack([cosines[name] for name in names] + [np.ones(len(clicks), np.float32)], axis=1).astype(np.float64)
    y = clicks.astype(np.float64)
    share = None if rows is None else rows / rows.sum()

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = x @ w
        p = np.exp(-np.logaddexp(0.0, -z))
        penalty = 1e-4 * w
        penalty[-1] = 0.0
        losses = np.logaddexp(0.0, z) - y * z
        if share is not None:
            return float(share @ losses + 0.5 * penalty @ w), x.T @ (share * (p - y)) + penalty
        return float(np.mean(losses) + 0.5 * penalty @ w), x.T @ (p - y) / len(y) + penalty

    start = np.zeros(x.shape[1])
    bounds = [(0.0, None)] * len(names) + [(None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x[:-1]
    total = float(found.sum())
    even = 1 / len(names)
    return {name: float(w / total) if total > 0 else even for name, w in zip(names, found, strict=True)}


def _one_hot(codes: NDArray[np.int32]) -> sparse.csr_matrix:
    """(A, K); the unknown code 0 is a zero row."""
    known = np.flatnonzero(codes > 0)
    shape = (len(codes), int(codes.max(initial=0)) + 1)
    return sparse.csr_matrix((np.ones(len(known), np.float32), (known, codes[known])), shape=shape)


def _vectors(inputs: Inputs) -> Floats:
    if inputs.ads.vectors is None:
        raise ValueError("the catalog carries no text vectors")
    return inputs.ads.vectors
