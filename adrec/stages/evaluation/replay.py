"""Replay a policy against the logs: match what it would show with what was shown, then estimate off-policy."""

from dataclasses import dataclass

import numpy as np

from adrec.config.evaluate import EvaluateConfig, OffPolicySettings
from adrec.errors import DataError
from adrec.metrics.bootstrap import bootstrap, point
from adrec.metrics.off_policy import Logs, effective_sample_size, estimates, importance_weights, left_out, refusal
from adrec.metrics.significance import Interval, bca_interval
from adrec.metrics.ties import Floats, Ints, group_codes, totals
from adrec.stages.evaluation.rows import Rows, codes_in, load_rows

LEAST_EFFECTIVE = 30.0
"""Rows: a mean of fewer has no normal interval."""
LEAST_SHARE = 0.01
"""Of the logged rows, below which a handful of them decides."""
LEAST_SUPPORTED = 0.8
"""Of what the policy shows: what the logs never tried they cannot tell."""


@dataclass(frozen=True)
class OffPolicyResult:
    """Clicks per shown ad of the judged policy, or why the logs cannot tell."""

    policy: str
    estimates: dict[str, Interval]
    """Empty where refused."""
    logged: Interval
    """The logging policy's own clicks per shown ad."""
    supported: Interval
    effective: float
    rows: int
    matched: int
    """Logged rows that the judged policy might have shown."""
    weights: Floats
    """(N,), for the overlap plot."""
    refused: str


def replay(rows: Rows, config: EvaluateConfig, generator: np.random.Generator) -> OffPolicyResult:
    """Estimate the judged policy's click rate. Raises DataError where columns are missing or propensities impossible."""
    settings = config.off_policy
    assert settings is not None
    for column in ("click", settings.propensity_column):
        if column not in rows:
            raise DataError(f"{rows.path}: column '{column}' is missing; off-policy evaluation needs it.")
    reward = rows.numbers("click").astype(np.float64)
    propensity = rows.numbers(settings.propensity_column).astype(np.float64)
    bad = np.flatnonzero(~((propensity > 0) & (propensity <= 1)))
    if len(bad):
        raise DataError(
            f"{rows.path}: column '{settings.propensity_column}', row {bad[0]}: {propensity[bad[0]]:g} is not a propensity"
            f" in (0, 1] ({len(bad):,} such rows). Without them the logs cannot say what another policy would earn."
        )
    kept = np.flatnonzero(~np.isnan(reward))
    users, count = group_codes(rows.users.codes)
    if settings.policy_column is not None:
        logs = _from_column(rows, settings, reward, propensity, users, count)
        name = settings.policy_column
    else:
        logs = _from_table(rows, settings, reward, propensity, users, count)
        assert settings.policy is not None
        name = settings.policy.stem
    logs = logs._replace(
        reward=logs.reward[kept],
        weight=logs.weight[kept],
        users=logs.users[kept],
        predicted=None if logs.predicted is None else logs.predicted[kept],
    )
    return _estimate(name, logs, config, settings, generator)


def _estimate(
    name: str, logs: Logs, config: EvaluateConfig, settings: OffPolicySettings, generator: np.random.Generator
) -> OffPolicyResult:
    ones = Logs(
        logs.reward,
        np.ones(len(logs.reward)),
        logs.users,
        logs.user_count,
        totals(logs.users, None, logs.user_count),
    )
    cuts = {"policy": (logs, settings.clip), "logged": (ones, 1.0)}
    measures = {run: [estimates(of, clip=clip)] for run, (of, clip) in cuts.items()}
    draws = bootstrap(measures, users=logs.user_count, replicates=config.bootstrap.replicates, generator=generator)
    found = {}
    for run, group in measures.items():
        without = left_out(cuts[run][0], clip=cuts[run][1])
        values = point(group, logs.user_count)
        found[run] = {name: bca_interval(value, draws[run][name], without[name]) for name, value in values.items()}
    supported = found["policy"].pop("supported")
    refused = refusal(
        logs.weight, supported, least_effective=LEAST_EFFECTIVE, least_share=LEAST_SHARE, least_supported=LEAST_SUPPORTED
    )
    return OffPolicyResult(
        policy=name,
        estimates={} if refused else found["policy"],
        logged=found["logged"]["ips"],
        supported=supported,
        effective=effective_sample_size(logs.weight),
        rows=len(logs.reward),
        matched=int((logs.weight > 0).sum()),
        weights=logs.weight,
        refused=refused,
    )


def _from_column(rows: Rows, settings: OffPolicySettings, reward: Floats, propensity: Floats, users: Ints, count: int) -> Logs:
    """One action a row; the policy's probability stands beside it."""
    for column in (settings.policy_column, settings.expected_column):
        if column is not None and column not in rows:
            raise DataError(f"{rows.path}: column '{column}' is missing.")
    assert settings.policy_column is not None
    policy = rows.numbers(settings.policy_column).astype(np.float64)
    bad = np.flatnonzero(~((policy >= 0) & (policy <= 1)))
    if len(bad):
        raise DataError(
            f"{rows.path}: column '{settings.policy_column}', row {bad[0]}: {policy[bad[0]]:g} is not a probability in [0, 1]."
        )
    known = ~np.isnan(reward)
    shown = totals(users[known], None, count)
    logs = Logs(reward, importance_weights(policy, propensity), users, count, shown)
    if settings.expected_column is None or "score" not in rows:
        return logs
    expected = rows.numbers(settings.expected_column).astype(np.float64)
    return logs._replace(
        predicted=rows.numbers("score").astype(np.float64),
        expected_by_user=totals(users[known], expected[known], count),
    )


def _from_table(rows: Rows, settings: OffPolicySettings, reward: Floats, propensity: Floats, users: Ints, count: int) -> Logs:
    """Lists for the logged requests; a logged row weighs (policy's probability of it) / (logging probability of it)."""
    assert settings.policy is not None
    lists = load_rows(settings.policy)
    by_slot = settings.match_position
    if by_slot is None:
        by_slot = "position" in rows and "rank" in lists
    if by_slot and not ("position" in rows and "rank" in lists):
        raise DataError(f"{rows.path}: match_position needs `position` here and `rank` in {settings.policy}.")
    group, list_group = rows.group.codes, codes_in(lists.group, rows.group.values)
    slots = np.bincount(group, minlength=len(rows.group))
    probability = _probabilities(lists, settings)
    # Ranks below the slots that a request had cannot be judged by what it showed.
    judged = list_group >= 0
    if "rank" in lists:
        judged &= lists.numbers("rank") <= slots[np.maximum(list_group, 0)]
    if not judged.any():
        raise DataError(f"{settings.policy}: ranks none of the requests (or users) of {rows.path}.")
    list_group, probability = list_group[judged], probability[judged]
    ad = rows.ads.codes
    list_ad = codes_in(lists.ads, rows.ads.values)[judged]
    width, depth = len(rows.ads) + 1, 1
    position, rank = np.zeros(len(rows), dtype=np.int64), np.zeros(len(list_ad), dtype=np.int64)
    if by_slot:
        position = rows.numbers("position").astype(np.int64)
        rank = lists.numbers("rank")[judged].astype(np.int64)
        depth = int(max(position.max(), rank.max())) + 1
    key = (group * width + ad) * depth + position
    listed = (list_group * width + np.where(list_ad < 0, len(rows.ads), list_ad)) * depth + rank
    distinct, place = np.unique(listed, return_inverse=True)
    mass = np.bincount(place, probability, len(distinct))
    at = np.minimum(np.searchsorted(distinct, key), len(distinct) - 1)
    policy = np.where(distinct[at] == key, mass[at], 0.0)
    if not by_slot:
        policy = policy / slots[group]  # each of the request's slots could have shown the ad
    owner = np.zeros(len(rows.group), dtype=np.int64)
    owner[group] = users
    shown = totals(owner[list_group], probability, count)
    logs = Logs(reward, importance_weights(np.minimum(policy, 1), propensity), users, count, shown)
    if "score" not in lists or "score" not in rows:
        return logs
    expected = probability * lists.numbers("score")[judged]
    return logs._replace(
        predicted=rows.numbers("score").astype(np.float64),
        expected_by_user=totals(owner[list_group], expected, count),
    )


def _probabilities(lists: Rows, settings: OffPolicySettings) -> Floats:
    if settings.policy_is == "lists":
        return np.ones(len(lists))
    if "propensity" not in lists:
        raise DataError(f"{settings.policy}: column 'propensity' is missing; policy_is: distribution needs it.")
    return lists.numbers("propensity").astype(np.float64)
