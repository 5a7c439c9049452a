"""One scorer from the network, the trees and the conditional logit, fitted on validation rows that neither was trained on.

On real logs counters read by trees and text read by a network each see what the other misses. Four ways to join them, from the
simplest: none (the network alone), average (mean of standardised scores, brought to log-odds by one line), weighted (stacked
regression with non-negative weights, Breiman 1996) and stack (boosted trees that start from the weighted logit and read it
beside every feature, after Wolpert 1992). `auto` compares them by cross-fitting over whole requests, so no row is judged by
a fit that saw it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from adrec.models.baselines.base import Baseline, Floats, Inputs, folds_of, load_state, save_state
from adrec.models.baselines.choice import ConditionalLogit
from adrec.models.baselines.design import Design, design
from adrec.models.baselines.trees import LightGbm, TreeModel, quality

Kind = Literal["none", "average", "weighted", "stack"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NETWORK = "network"
COLLABORATIVE = frozenset({"user_cf", "item_cf", "matrix_factorisation", "ease", "item_transitions"})
"""Members of hybrids for clicks alone (`by_request`)."""

_CORRECTION = {"num_leaves": 7, "min_data_in_leaf": 200, "learning_rate": 0.05, "lambda_l2": 10.0}
_CORRECTION_ROUNDS = 60


@dataclass(frozen=True)
class Hybrid:
    """What joins the scores. `names` are the members: the network first, then baselines of the bundle.

    `mean`, `deviation` and `weights` belong to the members; `trees` are there only where `kind` is stack. `quality` holds
    the cross-fitted metric of every kind compared (`metric` of `fit_hybrid`; more is better).
    """

    kind: Kind = "none"
    names: tuple[str, ...] = (NETWORK,)
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    weights: tuple[float, ...] = (1.0,)
    intercept: float = 0.0
    trees: TreeModel | None = None
    quality: Mapping[str, float] = field(default_factory=dict)

    def logit(self, network: Floats, baselines: Mapping[str, Floats], inputs: Inputs) -> Floats:
        """(N,) the joined logit, not yet calibrated.

        `network` (N,) raw logits, `baselines` name → (N,) scores of at least the members. A row depends on itself alone.
        """
        if self.kind == "none":
            return network.copy()
        return self.joined(members_of(network, baselines, self.names), inputs).astype(np.float32)

    def joined(self, members: NDArray[np.float64], inputs: Inputs) -> NDArray[np.float64]:
        """(N,) from the members' log-odds or margins (N, M), columns as in `names`."""
        if self.kind == "none":
            return members[:, 0]
        base = self.weighted(members)
        if self.trees is None:
            return base
        return base + self.trees.predict(_table(inputs, base, members))

    def weighted(self, members: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) weighted sum of the standardised members."""
        scaled = (members - np.asarray(self.mean)) / np.asarray(self.deviation)
        return np.asarray(scaled @ np.asarray(self.weights) + self.intercept, dtype=np.float64)

    def save(self, folder: Path) -> None:
        """`state.json`, and the trees of a stack in LightGBM's text format."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: getattr(self, name) for name in ("kind", "names", "mean", "deviation", "weights", "intercept")}
        save_state(folder, {**values, "quality": dict(self.quality)})
        if self.trees is not None:
            (folder / "trees").mkdir()
            self.trees.save(folder / "trees")

    @classmethod
    def load(cls, folder: Path) -> "Hybrid":
        """What `save` wrote; the network alone where the folder does not exist. Raises BundleError."""
        if not folder.exists():
            return cls()
        values, _ = load_state(folder)
        lists = {name: tuple(values[name]) for name in ("names", "mean", "deviation", "weights")}
        trees = TreeModel.load(folder / "trees") if (folder / "trees").exists() else None
        return cls(kind=values["kind"], **lists, intercept=values["intercept"], trees=trees, quality=values["quality"])


def fit_hybrid(
    kind: Literal["none", "average", "weighted", "stack", "auto"],
    network: Floats,
    baselines: Mapping[str, Baseline],
    scores: Mapping[str, Floats],
    valid: Inputs,
    *,
    metric: str = "auc_request",
    folds: int = 5,
    seed: int = 0,
) -> tuple[Hybrid, Floats]:
    """Fit on validation rows: `network` (N,) raw logits, `baselines` fitted on training rows, `scores` name → (N,) theirs.

    The members beside the network are the trees and the conditional logit among `baselines`; without any the network stays
    alone. `metric` (auc, auc_request or log_loss) decides between the kinds. Returns the hybrid fitted on all rows, and (N,)
    logits in which each row is scored by a fit on other requests: what calibration and validation metrics must use, as the
    hybrid has seen these rows.
    """
    names = (
        NETWORK,
        *(name for name, model in baselines.items() if isinstance(model, LightGbm | ConditionalLogit) and name in scores),
    )
    known = np.flatnonzero(~np.isnan(valid.clicks))
    rows = valid.take(known)
    if kind == "none" or len(names) == 1 or not 0 < rows.clicks.mean() < 1:
        return Hybrid(), network
    members = members_of(network, scores, names)
    tried: tuple[Kind, ...] = KINDS if kind == "auto" else (kind,)
    fold = folds_of(rows.examples.request, folds, seed)
    held_out = {name: _cross_fitted(name, names, members[known], rows, fold, seed) for name in tried}
    reached: dict[str, float] = {name: quality(metric, rows, logits) for name, logits in held_out.items()}
    best = max(tried, key=lambda name: reached[name])
    hybrid = replace(_fit_kind(best, names, members[known], rows, seed), quality=reached)
    logits = hybrid.logit(network, scores, valid)
    logits[known] = held_out[best]
    return hybrid, logits


def members_of(network: Floats, baselines: Mapping[str, Floats], names: tuple[str, ...]) -> NDArray[np.float64]:
    """(N, M) scores of the members, probabilities as logits, so that all are on a log-odds or margin scale."""
    columns = [network.astype(np.float64)]
    for name in names[1:]:
        values = baselines[name].astype(np.float64)
        if name == LightGbm.name:
            clipped = np.clip(values, 1e-6, 1 - 1e-6)
            values = np.log(clipped / (1 - clipped))
        if name in COLLABORATIVE:  # a few large values among many near 0
            values = np.log(np.maximum(values, 0.0) + 1e-3)
        columns.append(values)
    return np.stack(columns, axis=1)


def _cross_fitted(
    kind: Kind, names: tuple[str, ...], members: NDArray[np.float64], rows: Inputs, fold: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    """(N,) logits of rows that are each scored by a fit on the other folds."""
    joined = np.zeros(len(rows))
    for number in np.unique(fold):
        held, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        fitted = _fit_kind(kind, names, members[rest], rows.take(rest), seed)
        joined[held] = fitted.joined(members[held], rows.take(held))
    return joined


def _fit_kind(kind: Kind, names: tuple[str, ...], members: NDArray[np.float64], rows: Inputs, seed: int) -> Hybrid:
    if kind == "none":
        return Hybrid()
    w = rows.weights
    mean, deviation = members.mean(axis=0), members.std(axis=0)
    if w is not None:
        mean = w @ members / w.sum()
        deviation = np.sqrt(w @ (members - mean) ** 2 / w.sum())
    scaling: dict[str, Any] = {
        "names": names,
        "mean": tuple(mean.tolist()),
        "deviation": tuple(np.where(deviation > 1e-9, deviation, 1.0).tolist()),
    }
    if kind == "average":
        others = len(names) - 1  # the network counts as much as all others together
        even = Hybrid("average", weights=(0.5, *((0.5 / others,) * others)), **scaling)
        slope, intercept = _non_negative_logistic(even.weighted(members)[:, None], rows.clicks, w)
        # An increasing line brings the mean to log-odds; a mean worse than chance keeps its order all the same.
        scale = max(float(slope[0]), 1e-3)
        return replace(even, weights=tuple(scale * weight for weight in even.weights), intercept=intercept)
    even = Hybrid("weighted", weights=(0.0,) * len(names), **scaling)
    weights, intercept = _non_negative_logistic((members - even.mean) / np.asarray(even.deviation), rows.clicks, w)
    weighted = replace(even, weights=tuple(weights.tolist()), intercept=intercept)
    if kind == "weighted":
        return weighted
    base = weighted.weighted(members)
    trees = TreeModel(objective="binary", parameters=_CORRECTION, rounds=_CORRECTION_ROUNDS)
    trees.fit(_table(rows, base, members), rows, None, seed=seed, start=base)
    return replace(weighted, kind="stack", trees=trees)


def _table(inputs: Inputs, base: NDArray[np.float64], members: NDArray[np.float64]) -> Design:
    return design(inputs.compact(), extra={"hybrid": base.astype(np.float32), NETWORK: members[:, 0].astype(np.float32)})


def _non_negative_logistic(
    x: NDArray[np.float64], clicks: Floats, weights: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], float]:
    """Weights >= 0 and a free intercept that minimise log loss + 0.5e-3 |w|^2, for standardised columns.

    `weights` (N,): impressions that each row stands for.
    """
    from scipy.optimize import minimize

    y = clicks.astype(np.float64)
    wide = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    share = None if weights is None else weights / weights.sum()
    rate = y.mean() if share is None else share @ y

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = wide @ w
        p = np.exp(-np.logaddexp(0.0, -z))
        penalty = 1e-3 * np.append(w[:-1], 0.0)
        losses = np.logaddexp(0.0, z) - y * z
        if share is not None:
            return float(share @ losses + 0.5 * penalty @ w), wide.T @ (share * (p - y)) + penalty
        return float(np.mean(losses) + 0.5 * penalty @ w), wide.T @ (p - y) / len(y) + penalty

    start = np.append(np.full(x.shape[1], 0.1), np.log(rate / (1 - rate)))
    bounds = [(0.0, None)] * x.shape[1] + [(None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found[:-1], float(found[-1])
