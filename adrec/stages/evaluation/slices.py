"""Parts of the rows on their own: cold and warm, short and long histories, categories, days; and alarms where one is worse."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.errors import DataError
from adrec.metrics.bootstrap import Values, bootstrap, point
from adrec.metrics.significance import ALARM_LEVEL, Difference, Interval, adjust, difference, interval
from adrec.stages.evaluation.counts import LEAST_UNITS
from adrec.stages.evaluation.judge import TaskResult
from adrec.stages.evaluation.measures import Frame, core_measures
from adrec.stages.evaluation.reading.rows import Rows, ShortInts, encode, look_up
from adrec.stages.evaluation.reading.tasks import Scores
from adrec.stages.evaluation.support import support_of

ALWAYS = ("cold_ad", "cold_user", "history_length", "category", "scenario", "language", "position", "day")
HISTORY_BINS = (0, 1, 5, 20, 50)
OTHER = "(other)"
MOST_VALUES = 20
"""Commonest values of a column that get a slice: what a table on a screen holds."""
LEAST_POSITIVES = 20
"""Fewer positives, or negatives, say nothing about a slice."""
QUANTILES = 4
"""Slices of a declared column of numbers with many values."""
_ALL = ("", "")

AlarmKind = Literal["ranking", "calibration", "against"]


@dataclass(frozen=True)
class Slicing:
    """One column cut into named parts; `codes` (N,) are the rows' parts, -1 for none."""

    column: str
    names: tuple[str, ...]
    codes: ShortInts


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


def slicings(rows: Rows, ads: pa.Table | None, users: pa.Table | None, columns: Sequence[str]) -> list[Slicing]:
    """Cut every usual and declared column that any of the tables has. Raises DataError for a declared column nobody has."""
    found = []
    for column in dict.fromkeys([*ALWAYS, *columns]):
        values = _values(rows, ads, users, column)
        if values is None:
            if column in columns:
                raise DataError(f"{rows.path}: slice column '{column}' is in none of the scored, ads and users tables.")
            continue
        slicing = _cut(column, values)
        if len(slicing.names) > 1:
            found.append(slicing)
    return found


def judge_slices(
    result: TaskResult, cuts: Sequence[Slicing], config: EvaluateConfig, generator: np.random.Generator
) -> SliceResult:
    """Core metrics of every slice with intervals, and alarms, of a binary task. Draws are shared, so gaps are paired."""
    task, frame = result.task, result.frame
    judged = [scores for scores in task.scores if scores.role in {"model", "against"}]
    rivals = best_baseline(result)  # and the model as it is compared with it: neither told the slots
    measured = [*judged, *(scores for scores in rivals if scores not in judged)]
    seed = int(generator.integers(2**63))
    values: dict[str, dict[str, float]] = {}
    draws: dict[str, Values] = {}

    def measure(key: tuple[str, str], part: ShortInts | slice) -> None:
        piece = frame.take(part)
        for scores in measured:
            taken = Scores(scores.name, scores.role, scores.values[part], scores.is_probability)
            measures = core_measures(piece, taken)
            name = _name(key, scores.name)
            values[name] = point(measures, frame.user_count)
            draws.update(
                bootstrap(
                    {name: measures},
                    users=frame.user_count,
                    replicates=config.bootstrap.slice_replicates,
                    generator=np.random.default_rng(seed),
                    counts=frame.counts,
                )
            )

    measure(_ALL, slice(None))
    slices = []
    for cut in cuts:
        codes = cut.codes if len(task.rows) == len(cut.codes) else cut.codes[task.rows]
        order = np.argsort(codes, kind="stable").astype(np.int32)
        bounds = np.cumsum([(codes < 0).sum(), *np.bincount(codes[codes >= 0], minlength=len(cut.names))])
        for index, value in enumerate(cut.names):
            part = order[bounds[index] : bounds[index + 1]]
            if len(part):
                measure((cut.column, value), part)
                found = _name((cut.column, value), task.model.name)
                one = _slice(cut.column, value, part, frame, values[found], draws[found], config)
                slices.append(replace(one, lead=_lead((cut.column, value), rivals, values, draws) if not one.small else None))
    alarms = _alarms(slices, judged, values, draws, config)
    return SliceResult(tuple(slices), alarms, rivals[1].name if rivals else None)


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


def _values(rows: Rows, ads: pa.Table | None, users: pa.Table | None, column: str) -> pa.ChunkedArray | None:
    """A column for each row, from the scored table itself, else from its ad, else from its user."""
    if column == "day":
        if "shown_at" not in rows or not pa.types.is_timestamp(rows.table["shown_at"].type):
            return None
        return rows.table["shown_at"].cast(pa.date32())
    if column in rows:
        return rows.table[column]
    for codes, key, table in ((rows.ads, "ad_id", ads), (rows.users, "user_id", users)):
        if table is not None and column in table.column_names and column != key:
            one_each = look_up(codes.values, table, key, [column], where=f"the {key[:-3]}s table")[column]
            return one_each.take(pa.array(codes.codes))
    return None


def _cut(column: str, values: pa.ChunkedArray) -> Slicing:
    kind = values.type
    if pa.types.is_dictionary(kind):
        if pa.types.is_string(kind.value_type):
            return _cut_words(column, values, MOST_VALUES)
        values, kind = values.cast(kind.value_type), kind.value_type
    if column == "history_length":
        return _cut_numbers(column, values, HISTORY_BINS[1:])
    many = pc.count_distinct(values).as_py() > MOST_VALUES
    if (pa.types.is_floating(kind) or pa.types.is_integer(kind)) and many:
        numbers = values.drop_null().to_numpy()
        steps = np.linspace(0, 1, QUANTILES + 1)[1:-1]
        return _cut_numbers(column, values, np.unique(np.quantile(numbers, steps)))
    if pa.types.is_nested(kind):
        raise DataError(f"slice column '{column}' is {kind}; slices need one value a row.")
    return _cut_words(column, values, MOST_VALUES)


def _cut_words(column: str, values: pa.ChunkedArray, most: int) -> Slicing:
    coded = encode(values)
    counts = np.bincount(coded.codes, minlength=len(coded))
    named = pc.if_else(coded.values, "yes", "no") if pa.types.is_boolean(coded.values.type) else coded.values.cast(pa.string())
    words = pc.fill_null(named, "(none)").to_numpy(zero_copy_only=False)
    frequent = np.sort(np.argsort(-counts, kind="stable")[:most])
    frequent = frequent[np.lexsort((words[frequent].astype(str), _as_number(words[frequent])))]
    place = np.full(len(words), len(frequent))
    place[frequent] = np.arange(len(frequent))
    names = [*words[frequent].tolist(), *([OTHER] if len(frequent) < len(words) else [])]
    return Slicing(column, tuple(names), place.astype(np.int32)[coded.codes])


def _cut_numbers(column: str, values: pa.ChunkedArray, edges: Any) -> Slicing:
    """Parts [low, high) between the edges; nulls are in none."""
    numbers = values.cast(pa.float64()).to_numpy()
    codes = np.searchsorted(np.asarray(edges, dtype=np.float64), numbers, side="right").astype(np.int32)
    codes[np.isnan(numbers)] = -1
    whole = column == "history_length"
    names = [f"below {edges[0]:g}"]
    for low, high in pairwise(edges):
        names.append(f"{low:g} to {high - 1:g}" if whole else f"{low:g} to {high:g}")
    names.append(f"{edges[-1]:g} or more")
    if whole:
        names[0] = "none"
    return Slicing(column, tuple(names), codes)


def _as_number(words: Any) -> Any:
    """Sort key: numbers by value before everything else."""
    return np.array([float(word) if str(word).lstrip("-").isdigit() else np.inf for word in words])
