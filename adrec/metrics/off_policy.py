"""Off-policy estimates: what another policy would have earned, from logs whose choices had known probabilities.

For each of N logged choices: `reward` r, the weight w = (judged policy's probability of the logged action) / (logging
policy's), the model's prediction q of the logged action's reward, and v, the model's expected reward under the judged
policy in that context. Every estimate is a function of sums over rows, so that `estimates` gives point values and
bootstrap draws from the same code. `total` is what the judged policy shows: N for one action a choice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adrec.metrics.bootstrap import Measure, Values, divide, of_sums
from adrec.metrics.ties import ArrayLike, Floats, Ints, totals

ESTIMATORS = ("ips", "clipped_ips", "snips", "direct_method", "doubly_robust", "sn_doubly_robust", "switch_doubly_robust")


def importance_weights(policy: ArrayLike, propensity: ArrayLike) -> Floats:
    """policy / propensity (N,). Raises ValueError where a propensity is outside (0, 1] or a policy outside [0, 1]."""
    p, target = np.asarray(propensity, dtype=np.float64), np.asarray(policy, dtype=np.float64)
    if not bool(((p > 0) & (p <= 1)).all()):
        raise ValueError("propensities must lie in (0, 1]")
    if not bool(((target >= 0) & (target <= 1)).all()):
        raise ValueError("policy probabilities must lie in [0, 1]")
    return np.asarray(target / p, dtype=np.float64)


def ips(reward: ArrayLike, weight: ArrayLike) -> float:
    """Inverse propensity scoring: mean of w r (Horvitz & Thompson 1952; Strehl et al. 2010). Unbiased, wide tails.

    >>> ips([1, 0], [0.5, 2.0])
    0.25
    """
    r, w = _floats(reward, weight)
    return _mean(w * r)


def clipped_ips(reward: ArrayLike, weight: ArrayLike, clip: float) -> float:
    """IPS with weights cut at `clip` (Bottou et al. 2013): less variance, biased low for rewards >= 0.

    >>> clipped_ips([1, 1], [0.5, 8.0], clip=2.0)  # (1/2 + 2) / 2
    1.25
    """
    r, w = _floats(reward, weight)
    return _mean(np.minimum(w, clip) * r)


def snips(reward: ArrayLike, weight: ArrayLike) -> float:
    """Self-normalised IPS: sum of w r / sum of w (Swaminathan & Joachims 2015). NaN where no weight is positive.

    >>> snips([1, 0], [0.5, 1.5])
    0.25
    """
    r, w = _floats(reward, weight)
    return float(w @ r / w.sum()) if w.sum() > 0 else float("nan")


def direct_method(expected: ArrayLike) -> float:
    """Mean of v: trusts the model alone (Beygelzimer & Langford 2009). As wrong as the model is."""
    return _mean(np.asarray(expected, dtype=np.float64))


def doubly_robust(reward: ArrayLike, weight: ArrayLike, predicted: ArrayLike, expected: ArrayLike) -> float:
    """Mean of v + w (r - q) (Dudik et al. 2014): right where either the weights or the model are.

    >>> doubly_robust([1], [2.0], [0.5], [0.25])  # 1/4 + 2 x (1 - 1/2)
    1.25
    """
    r, w, q, v = _floats(reward, weight, predicted, expected)
    return _mean(v + w * (r - q))


def sn_doubly_robust(reward: ArrayLike, weight: ArrayLike, predicted: ArrayLike, expected: ArrayLike) -> float:
    """Mean of v + sum of w (r - q) / sum of w: doubly robust, self-normalised (Thomas & Brunskill 2016)."""
    r, w, q, v = _floats(reward, weight, predicted, expected)
    return _mean(v) + float(w @ (r - q) / w.sum()) if w.sum() > 0 else float("nan")


def switch_doubly_robust(
    reward: ArrayLike, weight: ArrayLike, predicted: ArrayLike, expected: ArrayLike, threshold: float
) -> float:
    """Doubly robust where w <= threshold, the model alone above it (Wang et al. 2017)."""
    r, w, q, v = _floats(reward, weight, predicted, expected)
    return _mean(v + np.where(w <= threshold, w, 0.0) * (r - q))


def effective_sample_size(weight: ArrayLike) -> float:
    """(sum of w)^2 / sum of w^2 (Kish 1965), in [0, N]: how many equally weighted rows say as much.

    >>> effective_sample_size([1.0, 1.0, 0.0, 0.0])
    2.0
    """
    w = np.asarray(weight, dtype=np.float64)
    square = float(w @ w)
    return float(w.sum() ** 2 / square) if square > 0 else 0.0


class Logs(NamedTuple):
    """N logged choices, and what the judged policy does in the same contexts."""

    reward: Floats
    weight: Floats
    users: Ints
    """(N,) codes in [0, user_count)."""
    user_count: int
    shown_by_user: Floats
    """(U,) how much the judged policy shows each user: the rows, where it takes one action a choice."""
    predicted: Floats | None = None
    expected_by_user: Floats | None = None
    """(U,) sum of v over the user's contexts."""


def estimates(logs: Logs, *, clip: float) -> Measure:
    """All estimators as one bootstrap measure, per action of the judged policy; also `supported`, the mean weight.

    `supported` is 1 where the logs reach everything the judged policy does, and below 1 by the share they never show.
    """
    return of_sums(_sums_by_user(logs, clip), np.arange(logs.user_count), logs.user_count, _combine)


def left_out(logs: Logs, *, clip: float) -> Values:
    """The same estimates (U,) of the logs without each user in turn: the jackknife."""
    return _combine({name: values.sum() - values for name, values in _sums_by_user(logs, clip).items()})


def _sums_by_user(logs: Logs, clip: float) -> Values:
    r, w, users = logs.reward, logs.weight, logs.users
    columns = {"wr": w * r, "cr": np.minimum(w, clip) * r, "w": w}
    if logs.predicted is not None and logs.expected_by_user is not None:
        gap = r - logs.predicted
        columns |= {"wg": w * gap, "sg": np.where(w <= clip, w, 0.0) * gap}
    by_user = {name: totals(users, values, logs.user_count) for name, values in columns.items()}
    by_user["total"] = logs.shown_by_user
    if logs.expected_by_user is not None:
        by_user["v"] = logs.expected_by_user
    return by_user


def _combine(sums: Values) -> Values:
    total = sums["total"]
    values = {
        "ips": divide(sums["wr"], total),
        "clipped_ips": divide(sums["cr"], total),
        "snips": divide(sums["wr"], sums["w"]),
        "supported": divide(sums["w"], total),
    }
    if "wg" in sums:
        direct = divide(sums["v"], total)
        values |= {
            "direct_method": direct,
            "doubly_robust": direct + divide(sums["wg"], total),
            "sn_doubly_robust": direct + divide(sums["wg"], sums["w"]),
            "switch_doubly_robust": direct + divide(sums["sg"], total),
        }
    return values


def refusal(
    weight: ArrayLike, supported: Sequence[float], *, least_effective: float, least_share: float, least_supported: float
) -> str:
    """Why the logs cannot answer, in one sentence; empty where they can.

    `supported` is (value, low, high) of the mean weight.
    """
    w = np.asarray(weight, dtype=np.float64)
    effective = effective_sample_size(w)
    if effective == 0:
        return "no logged row shows what the policy would show."
    if effective < least_effective:
        return f"the {len(w):,} logged rows weigh as much as {effective:.1f}; at least {least_effective:g} are needed."
    if effective < least_share * len(w):
        return f"the logged rows weigh as much as {effective / len(w):.2%} of them; at least {least_share:.2%} are needed."
    if supported[2] < least_supported:
        return f"the logs reach only {supported[0]:.0%} of what the policy shows; at least {least_supported:.0%} are needed."
    return ""


def _floats(*arrays: ArrayLike) -> list[Floats]:
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")
