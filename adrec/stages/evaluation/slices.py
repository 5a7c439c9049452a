"""Parts of the rows on their own: cold and warm, short and long histories, categories, days; and alarms where one is worse."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.metrics.intervals.bootstrap import Values
from adrec.metrics.intervals.significance import ALARM_LEVEL, Difference, Interval, adjust, difference, interval
from adrec.stages.evaluation.counts import LEAST_UNITS
from adrec.stages.evaluation.judge import TaskResult
from adrec.stages.evaluation.measures import Frame
from adrec.stages.evaluation.measuring import Measure, Measurer, Piece
from adrec.stages.evaluation.reading.rows import ShortInts
from adrec.stages.evaluation.reading.tasks import Scores
from adrec.stages.evaluation.support import support_of

LEAST_POSITIVES = 20
"""Fewer positives, or negatives, say nothing about a slice."""
_ALL = ("", "")

AlarmKind = Literal["ranking", "calibration", "against"]


@dataclass(frozen=True)
class Slice:
    """One part of the rows, with its metrics."""

    column: str
    value: str
    rows: int
    users: int
    positives: int
    metrics: dict[str, Interval]
    small: bool
    """Too few positives or negatives for a verdict."""
    lead: Interval | None = None
    """AUC of the model minus that of the best baseline, on the same draws; None without baselines."""


@dataclass(frozen=True)
class Alarm:
    """A slice that is significantly and materially worse."""

    kind: AlarmKind
    column: str
    value: str
    message: str
    difference: Difference
    adjusted_p: float


@dataclass(frozen=True)
class SliceResult:
    """All slices of a task, and what is wrong."""

    slices: tuple[Slice, ...]
    alarms: tuple[Alarm, ...]
    baseline: str | None = None
    """The best baseline over all rows, which `lead` of each slice is over."""


def judge_slices(
    result: TaskResult, number: int, measurer: Measurer, measure: Measure, generator: np.random.Generator
) -> SliceResult:
    """Core metrics of every slice with intervals, and alarms, of task `number`, a binary one. Draws are shared, so gaps are
    paired."""
    task, frame, config = result.task, result.frame, measurer.config
    judged = [scores for scores in task.scores if scores.role in {"model", "against"}]
    rivals = best_baseline(result)  # and the model as it is compared with it: neither told the slots
    measured = [*judged, *(scores for scores in rivals if scores not in judged)]
    seed = int(generator.integers(2**63))
    places: list[tuple[int | None, int]] = [(None, 0)]
    for cut in range(len(measurer.cuts)):
        places += [(cut, part) for part, rows in enumerate(measurer.parts(number, cut)) if len(rows)]
    pieces = [Piece(number, scores.name, seed, *place, core=True) for place in places for scores in measured]
    values: dict[str, dict[str, float]] = {}
    draws: dict[str, Values] = {}
    for piece, made in zip(pieces, measure(pieces), strict=True):
        name = _name(_key(measurer, piece), piece.scores)
        values[name], draws[name] = made.values, made.draws
    slices = []
    for index, part in places:
        if index is None:
            continue
        key = (measurer.cuts[index].column, measurer.cuts[index].names[part])
        found = _name(key, task.model.name)
        rows = measurer.parts(number, index)[part]
        one = _slice(*key, rows, frame, values[found], draws[found], config)
        slices.append(replace(one, lead=_lead(key, rivals, values, draws) if not one.small else None))
    alarms = _alarms(slices, judged, values, draws, config)
    return SliceResult(tuple(slices), alarms, rivals[1].name if rivals else None)


def _key(measurer: Measurer, piece: Piece) -> tuple[str, str]:
    if piece.cut is None:
        return _ALL
    cut = measurer.cuts[piece.cut]
    return cut.column, cut.names[piece.part]


def best_baseline(result: TaskResult) -> list[Scores]:
    """The model as baselines are compared with it, and the baseline of the highest AUC; empty without baselines."""
    found = [scores for scores in result.task.scores if scores.role == "baseline"]
    if not found:
        return []
    return [result.task.like_baselines, max(found, key=lambda scores: result.metrics[scores.name]["auc"].value)]


def _lead(key: tuple[str, str], rivals: Sequence[Scores], values: dict[str, Any], draws: dict[str, Any]) -> Interval | None:
    if not rivals:
        return None
    ours, theirs = (_name(key, scores.name) for scores in rivals)
    value = values[ours]["auc"] - values[theirs]["auc"]
    return interval(value, draws[ours]["auc"] - draws[theirs]["auc"]) if np.isfinite(value) else None


def _slice(
    column: str,
    value: str,
    part: ShortInts,
    frame: Frame,
    values: dict[str, float],
    draws: Values,
    config: EvaluateConfig,
) -> Slice:
    inside = frame.take(part)
    positives, least, support = int(inside.positives), LEAST_POSITIVES, support_of(inside)
    drawn = len(np.unique(inside.users))
    # Drawing a few ads whole says nothing of others: with one ad, nothing of anything.
    few = frame.unit in {"ads", "tests"} and drawn < LEAST_UNITS
    return Slice(
        column=column,
        value=value,
        rows=len(part),
        users=drawn,
        positives=positives,
        metrics={metric: support.shown(metric, interval(found, draws[metric])) for metric, found in values.items()},
        small=few or positives < least or inside.impressions - positives < least,
    )


def _alarms(
    slices: Sequence[Slice], judged: Sequence[Scores], values: dict[str, Any], draws: dict[str, Any], config: EvaluateConfig
) -> tuple[Alarm, ...]:
    """Compare each large enough slice with all rows, with probability 1, and with the other runs."""
    model = judged[0].name
    candidates: dict[AlarmKind, list[tuple[Slice, str, Difference, bool]]] = {"ranking": [], "calibration": [], "against": []}
    for slice_ in slices:
        if slice_.small:
            continue
        name, everything = _name((slice_.column, slice_.value), model), _name(_ALL, model)

        def gap(metric: str, other: str, name: str = name, users: int = slice_.users) -> Difference:
            value = values[name][metric] - values[other][metric]
            return difference(value, draws[name][metric] - draws[other][metric], users=users)

        worse = gap("auc", everything)
        text = f"AUC {values[name]['auc']:.3f}, against {values[everything]['auc']:.3f} over all rows"
        candidates["ranking"].append((slice_, text, worse, worse.value <= -config.alarms.auc_gap))
        if "predicted_over_observed" in values[name]:
            ratio = values[name]["predicted_over_observed"]
            with np.errstate(divide="ignore"):
                off = difference(np.log(ratio), np.log(draws[name]["predicted_over_observed"]), users=slice_.users)
            text = f"{ratio:.2f} clicks predicted for each one observed"
            candidates["calibration"].append((slice_, text, off, abs(ratio - 1) >= config.alarms.calibration_gap))
        for scores in judged[1:]:
            other = _name((slice_.column, slice_.value), scores.name)
            worse = gap("auc", other)
            text = f"AUC {values[name]['auc']:.3f}, against {values[other]['auc']:.3f} of {scores.name}"
            candidates["against"].append((slice_, text, worse, worse.value < 0))
    found = []
    for kind, family in candidates.items():
        adjusted = adjust([item[2].p_value for item in family])
        for (slice_, text, worse, matters), p in zip(family, adjusted, strict=True):
            if matters and p < ALARM_LEVEL:
                found.append(Alarm(kind, slice_.column, slice_.value, text, worse, float(p)))
    return tuple(found)


def _name(key: tuple[str, str], run: str) -> str:
    return "\0".join((*key, run))
