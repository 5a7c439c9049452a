"""Off-policy estimates: what another policy would have earned, from logs whose choices had known probabilities.

For each of N logged choices: `reward` r, the weight w = (judged policy's probability of the logged action) / (logging
policy's), the model's prediction q of the logged action's reward, and v, the model's expected reward under the judged
policy in that context. Every estimate is a function of sums over rows, so that `estimates` gives point values and
bootstrap draws from the same code. Time and memory: O(N), and a few sums by user and slot.

A list is several choices, one below the other. Where the logs know each choice's probability given the slots above, w is
the product of the ratios from slot 1 down (`sequential_weights`): the chance that the whole upper list is logged is part
of the chance that this row is. Self-normalised slot by slot, that is RIPS (McInerney et al., KDD 2020).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adrec.metrics.intervals.bootstrap import Measure, Values, divide, of_sums
from adrec.metrics.ties import ArrayLike, Floats, Ints, totals

ESTIMATORS = ("ips", "clipped_ips", "snips", "direct_method", "doubly_robust", "sn_doubly_robust", "switch_doubly_robust")
BIASED = {"clipped_ips": "ips", "direct_method": "doubly_robust", "switch_doubly_robust": "doubly_robust"}
"""Estimators that trade bias for variance, and the unbiased one that each approximates."""


def importance_weights(policy: ArrayLike, propensity: ArrayLike) -> Floats:
    """policy / propensity (N,). Raises ValueError where a propensity is outside (0, 1] or a policy outside [0, 1]."""
    p, target = np.asarray(propensity, dtype=np.float64), np.asarray(policy, dtype=np.float64)
    if not bool(((p > 0) & (p <= 1)).all()):
        raise ValueError("propensities must lie in (0, 1]")
    if not bool(((target >= 0) & (target <= 1)).all()):
        raise ValueError("policy probabilities must lie in [0, 1]")
    return np.asarray(target / p, dtype=np.float64)


def whole_requests(request: Ints, position: ArrayLike) -> NDArray[np.bool_]:
    """(N,) whether the row's request has each slot from 1 to its last exactly once.

    >>> whole_requests(np.array([0, 0, 1, 1]), [2, 1, 1, 3]).tolist()
    [True, True, False, False]
    """
    slot = np.asarray(position, dtype=np.float64)
    rows = np.bincount(request)
    order = np.lexsort((slot, request))
    expected = np.arange(len(order)) - (np.cumsum(rows) - rows)[request[order]] + 1
    wrong = np.bincount(request[order], slot[order] != expected, len(rows)) > 0
    return np.asarray(~wrong[request])


def sequential_weights(ratio: ArrayLike, request: Ints, position: Ints) -> Floats:
    """(N,) product of the ratios (judged / logged, given the slots above) of a request's slots from 1 down to the row's own.

    Requests are `whole_requests`. The weight of slot k has mean 1 where the logs reach all that the judged policy shows
    down to k, and makes the row stand for the judged policy's slot k if a click depends on nothing below it (the cascade
    assumption of McInerney et al. 2020).

    >>> sequential_weights([2.0, 3.0, 0.5], np.array([0, 0, 1]), np.array([1, 2, 1])).tolist()
    [2.0, 6.0, 0.5]
    """
    values, weight = np.asarray(ratio, dtype=np.float64), np.empty(len(request))
    running = np.ones(int(request.max(initial=-1)) + 1)
    order = np.argsort(position, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(position[order])) + 1):  # slot by slot
        running[request[rows]] *= values[rows]
        weight[rows] = running[request[rows]]
    return weight


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
    """N logged choices, and what the judged policy does in the same places."""

    reward: Floats
    weight: Floats
    users: Ints
    """(N,) codes in [0, user_count)."""
    user_count: int
    slots: Ints | None = None
    """(N,) codes of slots whose mean weight is 1 each, if the logs reach all: self-normalised estimates go slot by slot."""
    shown: Floats | None = None
    """(N,) how much the judged policy shows in the row's place; None: one ad."""
    predicted: Floats | None = None
    expected: Floats | None = None
    """(N,) v, for as much as is shown."""


def estimates(logs: Logs, *, clip: float) -> Measure:
    """All estimators as one bootstrap measure, per action of the judged policy; also `supported`, the mean weight.

    `supported` is 1 where the logs reach everything the judged policy does, and below 1 by the share they never show.
    """
    return of_sums(_sums_by_user(logs, clip), np.arange(logs.user_count), logs.user_count, _combine)


def left_out(logs: Logs, *, clip: float) -> Values:
    """The same estimates (U,) of the logs without each user in turn: the jackknife."""
    return _combine({name: values.sum() - values for name, values in _sums_by_user(logs, clip).items()})


def _sums_by_user(logs: Logs, clip: float) -> Values:
    r, w = logs.reward, logs.weight
    shown = np.ones(len(r)) if logs.shown is None else logs.shown
    slot = np.zeros(len(r), dtype=np.int64) if logs.slots is None else logs.slots
    columns = {"cr": np.minimum(w, clip) * r}
    by_slot = {"shown": shown, "w": w, "wr": w * r}
    if logs.predicted is not None and logs.expected is not None:
        gap = r - logs.predicted
        columns |= {"v": logs.expected, "sg": np.where(w <= clip, w, 0.0) * gap}
        by_slot["wg"] = w * gap
    slots = int(slot.max(initial=0)) + 1
    cell = logs.users.astype(np.int64) * slots + slot
    sums = {name: totals(logs.users, values, logs.user_count) for name, values in columns.items()}
    for name, values in by_slot.items():
        cells = totals(cell, values, logs.user_count * slots).reshape(logs.user_count, slots)
        sums |= {f"{name}/{number}": cells[:, number] for number in range(slots)}
    return sums


def _combine(sums: Values) -> Values:
    shown, w, wr = (_by_slot(sums, name) for name in ("shown", "w", "wr"))
    total = shown.sum(axis=0)

    def normalised(weighted: Floats) -> Floats:
        """Mean over the slots, as often as each is shown, of sum of w x / sum of w."""
        sums_of_means = np.where(shown > 0, divide(weighted, w) * shown, 0.0).sum(axis=0)
        return divide(sums_of_means, total)

    values = {
        "ips": divide(wr.sum(axis=0), total),
        "clipped_ips": divide(sums["cr"], total),
        "snips": normalised(wr),
        "supported": divide(w.sum(axis=0), total),
    }
    if "v" in sums:
        direct, wg = divide(sums["v"], total), _by_slot(sums, "wg")
        values |= {
            "direct_method": direct,
            "doubly_robust": direct + divide(wg.sum(axis=0), total),
            "sn_doubly_robust": direct + normalised(wg),
            "switch_doubly_robust": direct + divide(sums["sg"], total),
        }
    return values


def _by_slot(sums: Values, name: str) -> Floats:
    """(slots, b) the sums of a quantity that is kept slot by slot."""
    slots = sum(key.startswith(f"{name}/") for key in sums)
    return np.stack([sums[f"{name}/{number}"] for number in range(slots)])


LEAST_EFFECTIVE = 30.0
"""Users' worth of weight in each slot: a mean of fewer has no normal interval."""
MOST_OF_ONE = 0.05
"""Of a slot's weight on one user: where rare rows carry much, those that chance left out of the log would have, too."""
LEAST_OUTCOMES = 5.0
"""Weighted clicks, and non-clicks: below, an interval of what was seen does not reach what might have been."""
LEAST_SUPPORTED = 0.95
"""Of what the policy shows: what the logs cannot show they cannot tell."""


def refusal(logs: Logs, supported: Sequence[float]) -> str:
    """Why the logs cannot answer, in one line; empty where they can. `supported` is (value, low, high) of the mean weight."""
    if not (logs.weight > 0).any():
        return "no logged row shows what the policy would show."
    if supported[1] > 2 - LEAST_SUPPORTED:
        return (
            f"the logged rows weigh {supported[0]:.2f} on average, and 1 is the most there can be: the policy's draws follow"
            " the log's own (were both made with one seed?), or the propensities are wrong."
        )
    if supported[2] < LEAST_SUPPORTED:
        return f"the logs reach only {supported[0]:.0%} of what the policy shows; at least {LEAST_SUPPORTED:.0%} are needed."
    reasons = [_thin(logs.weight[rows], logs.users[rows], logs.user_count) for rows in _rows_by_slot(logs)]
    if any(reasons):
        first = next(number for number, reason in enumerate(reasons) if reason)
        where = "" if len(reasons) == 1 else f"slot {first + 1}: "
        cure = f" The slots above can be judged: off_policy.slots={first}." if first else ""
        return f"{where}{reasons[first]}{cure}"
    for what, outcome in (("clicks", logs.reward), ("rows without a click", 1 - logs.reward)):
        effective = effective_sample_size(logs.weight * outcome)
        if effective < LEAST_OUTCOMES:
            return f"the matching {what} weigh as much as {effective:.1f}; at least {LEAST_OUTCOMES:g} are needed."
    return ""


def _thin(weight: Floats, users: Ints, user_count: int) -> str:
    """Why the rows of one slot carry too little weight, or too unevenly; empty where they do not."""
    by_user = totals(users, weight, user_count)
    effective = effective_sample_size(by_user)
    if effective < LEAST_EFFECTIVE:
        rows = f"its {len(weight):,} logged rows"
        return f"{rows} weigh as much as {effective:.1f} users; at least {LEAST_EFFECTIVE:g} are needed."
    share = float(by_user.max() / by_user.sum())
    if share > MOST_OF_ONE:
        return f"one user carries {share:.0%} of the weight of its {len(weight):,} logged rows; at most {MOST_OF_ONE:.0%}."
    return ""


def _rows_by_slot(logs: Logs) -> list[Ints]:
    if logs.slots is None:
        return [np.arange(len(logs.reward))]
    order = np.argsort(logs.slots, kind="stable")
    return np.split(order, np.cumsum(np.bincount(logs.slots))[:-1])


def _floats(*arrays: ArrayLike) -> list[Floats]:
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")
