"""Replay a policy against the logs: weigh each row by what the policy would do in its place, then estimate off-policy."""

from dataclasses import dataclass

import numpy as np

from adrec.config.evaluation.evaluate import EvaluateConfig, OffPolicySettings
from adrec.errors import DataError
from adrec.metrics.intervals.bootstrap import bootstrap, point
from adrec.metrics.intervals.significance import Interval, bca_interval
from adrec.metrics.off_policy import (
    BIASED,
    Logs,
    effective_sample_size,
    estimates,
    importance_weights,
    left_out,
    refusal,
    sequential_weights,
    whole_requests,
)
from adrec.metrics.ties import Floats, Ints, group_codes
from adrec.schema import PROPENSITY, PROPENSITY_GIVEN_ABOVE
from adrec.stages.evaluation.off_policy.matching import Judged, by_column, by_lists
from adrec.stages.evaluation.reading.rows import Rows

RARE_SLOTS = 0.02
"""Share of the rows, in the deepest slots, that is too small to be a slot of its own."""


@dataclass(frozen=True)
class OffPolicyResult:
    """Clicks per shown ad of the judged policy, or why the logs cannot tell."""

    policy: str
    propensity: str
    """Column of the log."""
    given_above: bool
    """Whether it holds the propensity given the slots above: weights are then products from slot 1 down."""
    estimates: dict[str, Interval]
    """Empty where refused."""
    bias: dict[str, float]
    """Of the biased estimators: their distance from the unbiased one that they approximate."""
    logged: Interval
    """The logging policy's own clicks per shown ad."""
    supported: Interval
    effective: float
    rows: int
    matched: int
    """Logged rows that the judged policy might have shown."""
    not_judged: int
    """Logged rows without a known click, without a counterpart in the policy's lists, or of a request with a slot missing."""
    weights: Floats
    """(N,), for the overlap plot."""
    refused: str


def replay(rows: Rows, config: EvaluateConfig, generator: np.random.Generator) -> OffPolicyResult:
    """Estimate the judged policy's click rate. Raises DataError where columns are missing or propensities impossible."""
    settings = config.off_policy
    assert settings is not None
    if "click" not in rows:
        raise DataError(f"{rows.path}: column 'click' is missing; off-policy evaluation needs it.")
    column, given_above = _propensity_column(rows, settings)
    propensity = _propensities(rows, column)
    # A request of one slot has nothing above it: the two kinds are the same.
    one_slot = rows.requests is not None and len(rows.requests) == len(rows)
    sequential = given_above and not one_slot
    is_judged = ~np.isnan(rows.numbers("click"))
    if sequential:
        is_whole = _whole(rows, column)
        is_judged &= is_whole
    if settings.policy_column is not None:
        policy = by_column(rows, settings)
    else:
        policy = by_lists(rows, settings, given_above=sequential)
    weight = importance_weights(policy.probability, propensity)
    if sequential:
        place, position = np.flatnonzero(is_whole), rows.numbers("position")
        request = rows.group.codes.astype(np.int64)
        weight[place] = sequential_weights(weight[place], request[place], position[place].astype(np.int64))
    is_judged &= policy.shown > 0
    if settings.slots is not None:
        is_judged &= _positions(rows, "off_policy.slots") <= settings.slots
    judged = np.flatnonzero(is_judged)
    if len(judged) == 0:
        raise DataError(f"{rows.path}: no row can be judged: none has a click that is known, all slots above it, and a list.")
    logs = _logs(rows, policy, weight, judged, by_slot=policy.by_slot or sequential)
    return _estimate(logs, policy.name, column, given_above, len(rows) - len(judged), config, settings, generator)


def _propensity_column(rows: Rows, settings: OffPolicySettings) -> tuple[str, bool]:
    """The column that holds the logging policy's probabilities, and whether they are those given the slots above."""
    column = settings.propensity_column
    if column is None:
        column = PROPENSITY_GIVEN_ABOVE if PROPENSITY not in rows and PROPENSITY_GIVEN_ABOVE in rows else PROPENSITY
    if column not in rows:
        raise DataError(f"{rows.path}: column '{column}' is missing; off-policy evaluation needs it.")
    kind = settings.propensity_is or ("given_above" if column == PROPENSITY_GIVEN_ABOVE else "marginal")
    return column, kind == "given_above"


def _propensities(rows: Rows, column: str) -> Floats:
    propensity = rows.numbers(column).astype(np.float64)
    bad = np.flatnonzero(~((propensity > 0) & (propensity <= 1)))
    if len(bad):
        raise DataError(
            f"{rows.path}: column '{column}', row {bad[0]}: {propensity[bad[0]]:g} is not a propensity"
            f" in (0, 1] ({len(bad):,} such rows). Without them the logs cannot say what another policy would earn."
        )
    return propensity


def _positions(rows: Rows, reader: str) -> Floats:
    if "position" not in rows:
        raise DataError(f"{rows.path}: column 'position' is missing; {reader} needs it.")
    return rows.numbers("position").astype(np.float64)


def _whole(rows: Rows, column: str) -> np.ndarray:
    """(N,) rows of requests that have every slot from 1 to their last: only there is it known what stood above."""
    if rows.requests is None:
        raise DataError(f"{rows.path}: column 'request_id' is missing; '{column}', given the slots above, needs it.")
    whole = whole_requests(rows.requests.codes.astype(np.int64), _positions(rows, f"'{column}', given the slots above,"))
    if not whole.any():
        raise DataError(
            f"{rows.path}: no request has each slot from 1 to its last once, as '{column}', given the slots above, needs."
            " Does `position` count from 1 within a request?"
        )
    return whole


def _logs(rows: Rows, policy: Judged, weight: Floats, judged: Ints, *, by_slot: bool) -> Logs:
    users, count = group_codes(rows.users.codes[judged])
    slots = None
    if by_slot:
        position = rows.numbers("position")[judged]
        slots, _ = group_codes(np.minimum(position, np.quantile(position, 1 - RARE_SLOTS, method="higher")))
    is_modelled = policy.expected is not None and "score" in rows
    return Logs(
        reward=rows.numbers("click")[judged].astype(np.float64),
        weight=weight[judged],
        users=users,
        user_count=count,
        slots=slots,
        shown=policy.shown[judged],
        predicted=rows.numbers("score")[judged].astype(np.float64) if is_modelled else None,
        expected=policy.expected[judged] if is_modelled and policy.expected is not None else None,
    )


def _estimate(
    logs: Logs,
    name: str,
    column: str,
    given_above: bool,
    not_judged: int,
    config: EvaluateConfig,
    settings: OffPolicySettings,
    generator: np.random.Generator,
) -> OffPolicyResult:
    own = Logs(logs.reward, np.ones(len(logs.reward)), logs.users, logs.user_count)
    runs = {"policy": (logs, settings.clip), "logged": (own, 1.0)}
    measures = {run: [estimates(of, clip=clip)] for run, (of, clip) in runs.items()}
    draws = bootstrap(measures, users=logs.user_count, replicates=config.bootstrap.replicates, generator=generator)
    intervals = {}
    for run, group in measures.items():
        without = left_out(runs[run][0], clip=runs[run][1])
        values = point(group, logs.user_count)
        intervals[run] = {name: bca_interval(value, draws[run][name], without[name]) for name, value in values.items()}
    policy = intervals["policy"]
    supported = policy.pop("supported")
    refused = refusal(logs, supported)
    biased = {name: unbiased for name, unbiased in BIASED.items() if name in policy}
    return OffPolicyResult(
        policy=name,
        propensity=column,
        given_above=given_above,
        estimates={} if refused else policy | {name: _spanning(policy[name], policy[of]) for name, of in biased.items()},
        bias={} if refused else {name: policy[name].value - policy[of].value for name, of in biased.items()},
        logged=intervals["logged"]["ips"],
        supported=supported,
        effective=effective_sample_size(logs.weight),
        rows=len(logs.reward),
        matched=int((logs.weight > 0).sum()),
        not_judged=not_judged,
        weights=logs.weight,
        refused=refused,
    )


def _spanning(biased: Interval, unbiased: Interval) -> Interval:
    """A biased estimate's interval, widened to where the unbiased one may lie: its own draws know nothing of its bias."""
    return Interval(biased.value, min(biased.low, unbiased.low), max(biased.high, unbiased.high))
