"""The hybrid of logs that hold clicks alone: network and baselines joined by what was clicked among what was drawn beside it.

Scores of neighbours, factors, EASE and transitions are members too: they know which ads go together, where the network knows
texts and counters. Weights are non-negative and maximise the softmax of each click against the negatives of its request
(a conditional logit), so that only the order within a request counts: no level, which drawn negatives would make up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from adrec.metrics.ranking import mrr
from adrec.models.baselines.base import Floats, Inputs, folds_of
from adrec.models.blend.hybrid import NETWORK, Hybrid, members_of

_RIDGE = 1e-3


def fit_by_request(
    network: Floats, scores: Mapping[str, Floats], valid: Inputs, *, may_join: Sequence[str], folds: int = 5, seed: int = 0
) -> tuple[Hybrid, Floats]:
    """Fit on validation rows: `network` (N,) raw logits, `scores` name → (N,) of baselines fitted on training rows.

    may_join: names in the order of the weights, those that `scores` lack left out. Returns the hybrid fitted on all rows, and
    (N,) logits in which each row is scored by weights fitted on other requests.
    The network alone where there is nothing to join or nothing to learn from.
    """
    names = (NETWORK, *(name for name in may_join if name in scores))
    known = np.flatnonzero(~np.isnan(valid.clicks))
    rows = valid.take(known)
    if len(names) == 1 or not len(known) or not 0 < rows.clicks.mean() < 1:
        return Hybrid(), network
    members, request = members_of(network, scores, names)[known], rows.examples.request
    hybrid = _fitted(names, members, rows.clicks, request)
    held_out = np.zeros(len(known))
    fold = folds_of(request, folds, seed)
    for number in np.unique(fold):
        held, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        held_out[held] = _fitted(names, members[rest], rows.clicks[rest], request[rest]).weighted(members[held])
    clicks = rows.clicks
    reached = {"none": mrr(clicks, members[:, 0], request), "weighted": mrr(clicks, held_out, request)}
    logits = hybrid.logit(network, scores, valid)
    logits[known] = held_out
    return replace(hybrid, quality=reached), logits


def _fitted(names: tuple[str, ...], members: NDArray[np.float64], clicks: Floats, request: NDArray[np.integer]) -> Hybrid:
    deviation = members.std(axis=0)
    even = Hybrid(
        "weighted", names, mean=tuple(members.mean(axis=0).tolist()),
        deviation=tuple(np.where(deviation > 1e-9, deviation, 1.0).tolist()), weights=(0.0,) * len(names),
    )  # fmt: skip
    weights = _weights((members - even.mean) / np.asarray(even.deviation), clicks, request)
    return replace(even, weights=tuple(weights.tolist()))


def _weights(x: NDArray[np.float64], clicks: Floats, request: NDArray[np.integer]) -> NDArray[np.float64]:
    """(M,) weights >= 0 of standardised columns (N, M), rows of a request together: minimise the mean over clicks of
    log(1 + sum over the request's negatives of exp(z_n - z_p)), plus a small ridge."""
    from scipy.optimize import minimize

    _, group = np.unique(request, return_inverse=True)
    groups = int(group.max()) + 1
    negative, positive = np.flatnonzero(clicks == 0), np.flatnonzero(clicks > 0)
    positive = positive[np.bincount(group[negative], minlength=groups)[group[positive]] > 0]
    if not len(positive):
        return np.full(x.shape[1], 1 / x.shape[1])
    of_negative, of_positive = group[negative], group[positive]

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = x @ w
        highest = np.full(groups, -np.inf)
        np.maximum.at(highest, of_negative, z[negative])
        shift = np.where(np.isfinite(highest), highest, 0.0)
        share = np.exp(z[negative] - shift[of_negative])
        total = np.bincount(of_negative, share, groups)
        gap = np.log(np.maximum(total, 1e-300))[of_positive] + shift[of_positive] - z[positive]  # (P,)
        pull = 1 / (1 + np.exp(-gap)) / len(positive)
        of_group = np.bincount(of_positive, pull, groups) / np.maximum(total, 1e-300)
        gradient = x[negative].T @ (share * of_group[of_negative]) - x[positive].T @ pull
        return float(np.logaddexp(0.0, gap).mean() + 0.5 * _RIDGE * w @ w), gradient + _RIDGE * w

    start = np.full(x.shape[1], 1 / x.shape[1])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * x.shape[1])
    return np.asarray(found.x, np.float64)
