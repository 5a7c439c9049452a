"""One scorer from the network and the strong simple models, fitted on validation rows that none of them was trained on.

On real logs counters read by trees and text read by a network each see what the other misses. Five ways to join them, from the
simplest: none (the network alone), single (the best simple model alone), average (of standardised scores: half the network's,
half the mean of the others that are not clearly worse than the best of them, brought to log-odds by one line), weighted
(stacked regression with non-negative weights, Breiman 1996, shrunk towards the average), stack (boosted trees that start from
the weighted logit and read it beside every feature, after Wolpert 1992). `auto` takes the weighted one, or the average where
clicks are few, unless another is better by more than chance would have it; what is fitted with many weights is judged by
cross-fitting over whole requests.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from adrec.metrics.intervals.paired import paired_difference
from adrec.models.baselines.base import Baseline, Floats, Inputs, folds_of, load_state, log_odds, save_state
from adrec.models.baselines.tabular.choice import ConditionalLogit
from adrec.models.baselines.tabular.design import Design, design
from adrec.models.baselines.tabular.linear import LogisticRegression
from adrec.models.baselines.tabular.mlp import ClassicMlp
from adrec.models.baselines.tabular.trees import LightGbm, TreeModel, quality

Kind = Literal["none", "single", "average", "weighted", "stack"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NETWORK = "network"
STRONG = (LightGbm, ConditionalLogit, LogisticRegression, ClassicMlp)
"""Baselines that may score beside the network."""

_WEIGHED_CLICKS, _STACKED_CLICKS = 50, 500
"""Clicks (and misses) in the validation rows below which `auto` fits no weights, and no trees."""
_SHRINKAGE = 10.0
"""How many rows the weights' shrinkage towards the average counts for, about."""
_CLEARLY = 2.0
"""Standard errors by which a member must be worse than the best to be left out of the average."""
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
    kind: Literal["none", "single", "average", "weighted", "stack", "auto"],
    network: Floats,
    baselines: Mapping[str, Baseline],
    scores: Mapping[str, Floats],
    valid: Inputs,
    *,
    metric: str = "auc_request",
    folds: int = 5,
    seed: int = 0,
    also: Collection[str] = (),
) -> tuple[Hybrid, Floats]:
    """Fit on validation rows: `network` (N,) raw logits, `baselines` fitted on training rows, `scores` name → (N,) theirs.

    The members beside the network are the strong ones among `baselines` (STRONG), and those named in `also`; without any the
    network stays alone.
    `metric` (auc, auc_request or log_loss) decides between the kinds. Returns the hybrid fitted on all rows, and (N,)
    logits in which each row is scored by weights fitted on other requests: what calibration and validation metrics must use,
    as the hybrid has seen these rows.
    """
    strong = [name for name, model in baselines.items() if isinstance(model, STRONG) or name in also]
    names = (NETWORK, *(name for name in strong if name in scores))
    known = np.flatnonzero(~np.isnan(valid.clicks))
    rows = valid.take(known)
    if kind == "none" or len(names) == 1 or not len(known) or not 0 < rows.clicks.mean() < 1:
        return Hybrid(), network
    members = members_of(network, scores, names)
    weight = np.ones(len(rows)) if rows.weights is None else rows.weights
    few = min(weight @ rows.clicks, weight @ (1 - rows.clicks))
    tried: tuple[Kind, ...] = (kind,) if kind != "auto" else KINDS
    if kind == "auto" and few < _STACKED_CLICKS:
        tried = KINDS[:4] if few >= _WEIGHED_CLICKS else KINDS[:3]
    problem = _Problem(names, members[known], rows, metric, seed, folds_of(rows.examples.request, folds, seed))
    fitted = {name: problem.fit(name) for name in tried}
    held_out = {name: problem.held_out(fitted[name]) for name in tried}
    reached: dict[str, float] = {name: quality(metric, rows, logits) for name, logits in held_out.items()}
    best = problem.chosen(tried, held_out, reached)
    hybrid = replace(fitted[best], quality=reached)
    logits = hybrid.logit(network, scores, valid)
    logits[known] = held_out[best]
    return hybrid, logits


@dataclass(frozen=True)
class _Problem:
    """The validation rows with a known click: `members` (N, M), columns as in `names`; `fold` (N,) for cross-fitting."""

    names: tuple[str, ...]
    members: NDArray[np.float64]
    rows: Inputs
    metric: str
    seed: int
    fold: NDArray[np.int64]

    def fit(self, kind: Kind) -> Hybrid:
        """On all rows."""
        if kind == "none":
            return Hybrid()
        if kind == "single":
            reached = [quality(self.metric, self.rows, column) for column in self.members[:, 1:].T]
            return self._line("single", np.eye(len(self.names))[1 + int(np.argmax(reached))])
        if kind == "average":
            return self._line("average", _average(self._worthy()))
        return self._weighted(kind, np.arange(len(self.rows)), _average(self._worthy()))

    def held_out(self, fitted: Hybrid) -> NDArray[np.float64]:
        """(N,) logits of rows that are each scored by weights fitted on the other folds.

        A line changes no order and is fitted with two numbers: it need not be fitted again. Folds share the intercept of all
        rows: one of their own would be low where the fold's rows were clicked most, and turn the order between folds.
        """
        if fitted.kind in {"none", "single", "average"}:
            return fitted.joined(self.members, self.rows)
        joined, average = np.zeros(len(self.rows)), _average(self._worthy())
        for number in np.unique(self.fold):
            held, rest = np.flatnonzero(self.fold == number), np.flatnonzero(self.fold != number)
            of_rest = replace(self._weighted(fitted.kind, rest, average), intercept=fitted.intercept)
            joined[held] = of_rest.joined(self.members[held], self.rows.take(held))
        return joined

    def chosen(
        self, tried: tuple[Kind, ...], held_out: Mapping[Kind, NDArray[np.float64]], reached: Mapping[str, float]
    ) -> Kind:
        """The usual kind, unless the best of the others is better by more than a standard error of the difference."""
        usual: Kind = "weighted" if "weighted" in tried else "average" if "average" in tried else tried[0]
        best = max(tried, key=lambda name: reached[name])
        value, error = self._difference(held_out[best], held_out[usual])
        return best if value > error else usual

    def _worthy(self) -> NDArray[np.bool_]:
        """(M,) the network, which may see what no other does, and the others that are not clearly worse than their best."""
        others = self.members[:, 1:].T
        best = others[int(np.argmax([quality(self.metric, self.rows, column) for column in others]))]
        gaps = [self._difference(best, column) for column in others]
        return np.array([True, *(not value > _CLEARLY * error for value, error in gaps)])

    def _difference(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
        """By how much `first` is better, and the standard error of that; (0, 0) where they are the same or nothing is told."""
        own = self.rows
        if own.weights is not None:  # rows of counts: no error in closed form, so nothing is clear
            return quality(self.metric, own, first) - quality(self.metric, own, second), np.inf
        value, error = paired_difference(self.metric, own.clicks, first, second, own.examples.request, own.clusters)
        return (0.0, 0.0) if np.isnan(value) or np.isnan(error) else (value, error)

    def _impressions(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """How many each of the rows stands for; None where each is one."""
        return None if self.rows.weights is None else self.rows.weights[rows]

    def _scaling(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        members, w = self.members[rows], self._impressions(rows)
        mean = members.mean(axis=0) if w is None else w @ members / w.sum()
        deviation = members.std(axis=0) if w is None else np.sqrt(w @ (members - mean) ** 2 / w.sum())
        return {
            "names": self.names,
            "mean": tuple(mean.tolist()),
            "deviation": tuple(np.where(deviation > 1e-9, deviation, 1.0).tolist()),
        }

    def _line(self, kind: Kind, weights: NDArray[np.float64]) -> Hybrid:
        """These weights, brought to log-odds by an increasing line: one worse than chance keeps its order all the same."""
        mean = Hybrid(kind, weights=tuple(weights.tolist()), **self._scaling(np.arange(len(self.rows))))
        x = mean.weighted(self.members)[:, None]
        slope, intercept = _non_negative_logistic(
            x, self.rows.clicks, np.array([float(self.members[:, 0].std())]), self.rows.weights
        )
        scale = max(float(slope[0]), 1e-3)
        return replace(mean, weights=tuple((scale * weights).tolist()), intercept=intercept)

    def _weighted(self, kind: Kind, rows: NDArray[np.int64], average: NDArray[np.float64]) -> Hybrid:
        """Stacked on the given rows, with trees above it where `kind` is stack."""
        even = Hybrid("weighted", weights=(0.0,) * len(self.names), **self._scaling(rows))
        members, clicks = self.members[rows], self.rows.clicks[rows]
        x = (members - even.mean) / np.asarray(even.deviation)
        weights, intercept = _non_negative_logistic(x, clicks, average * float(members[:, 0].std()), self._impressions(rows))
        weighted = replace(even, weights=tuple(weights.tolist()), intercept=intercept)
        if kind == "weighted":
            return weighted
        own, base = self.rows.take(rows), weighted.weighted(members)
        trees = TreeModel(objective="binary", parameters=_CORRECTION, rounds=_CORRECTION_ROUNDS)
        trees.fit(_table(own, base, members), own, None, seed=self.seed, start=base)
        return replace(weighted, kind="stack", trees=trees)


def _average(worthy: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(M,) weights: the network counts as much as all others together."""
    return np.asarray(np.append(0.5, 0.5 * worthy[1:] / worthy[1:].sum()))


def members_of(network: Floats, baselines: Mapping[str, Floats], names: tuple[str, ...]) -> NDArray[np.float64]:
    """(N, M) scores of the members, probabilities as logits, so that all are on a log-odds or margin scale."""
    columns = [network.astype(np.float64)]
    for name in names[1:]:
        values = baselines[name].astype(np.float64)
        if any(name == model.name and model.is_probability for model in STRONG):
            values = log_odds(values)
        if name in COLLABORATIVE:  # a few large values among many near 0
            values = np.log(np.maximum(values, 0.0) + 1e-3)
        columns.append(values)
    return np.stack(columns, axis=1)


def _table(inputs: Inputs, base: NDArray[np.float64], members: NDArray[np.float64]) -> Design:
    extra = {"hybrid": base.astype(np.float32), NETWORK: members[:, 0].astype(np.float32)}
    return design(inputs.compact(), extra=extra)


def _non_negative_logistic(
    x: NDArray[np.float64],
    clicks: Floats,
    towards: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], float]:
    """Weights >= 0 and a free intercept that minimise the log loss of standardised columns (N, M), plus a ridge around
    `towards` (M,) that counts for as much as _SHRINKAGE rows.

    `weights` (N,): impressions that each row stands for.
    """
    from scipy.optimize import minimize

    y = clicks.astype(np.float64)
    wide = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    share = np.full(len(y), 1 / len(y)) if weights is None else weights / weights.sum()
    rows = len(y) if weights is None else float(weights.sum())
    centre, penalty = np.append(towards, 0.0), np.append(np.full(x.shape[1], _SHRINKAGE / rows), 0.0)

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = wide @ w
        p = np.exp(-np.logaddexp(0.0, -z))
        off = penalty * (w - centre)
        losses = np.logaddexp(0.0, z) - y * z
        return float(share @ losses + 0.5 * off @ (w - centre)), wide.T @ (share * (p - y)) + off

    rate = np.clip(float(share @ y), 0.5 / rows, 1 - 0.5 / rows)  # half a fold of a rare label may have none
    start = np.append(towards, np.log(rate / (1 - rate)))
    bounds = [(0.0, None)] * x.shape[1] + [(None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found[:-1], float(found[-1])
