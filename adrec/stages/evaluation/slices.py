"""Parts of the rows on their own: cold and warm, short and long histories, categories, days; and alarms where one is worse."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.config.evaluate import EvaluateConfig, SliceSettings
from adrec.errors import DataError
from adrec.metrics.bootstrap import Measure, bootstrap, point
from adrec.metrics.significance import Difference, Interval, adjust, difference, interval
from adrec.stages.evaluation.judge import TaskResult
from adrec.stages.evaluation.measures import core_measures
from adrec.stages.evaluation.rows import Ints, Rows, encode, look_up
from adrec.stages.evaluation.tasks import Scores

ALWAYS = ("cold_ad", "cold_user", "history_length", "category", "scenario", "language", "position", "day")
HISTORY_BINS = (0, 1, 5, 20, 50)
OTHER = "(other)"
_ALL = ("", "")

AlarmKind = Literal["ranking", "calibration", "against"]


@dataclass(frozen=True)
class Slicing:
    """One column cut into named parts; `codes` (N,) are the rows' parts, -1 for none."""

    column: str
    names: tuple[str, ...]
    codes: Ints


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


def slicings(rows: Rows, ads: pa.Table | None, users: pa.Table | None, settings: SliceSettings) -> list[Slicing]:
    """Cut every usual and declared column that any of the tables has. Raises DataError for a declared column nobody has."""
    found = []
    for column in dict.fromkeys([*ALWAYS, *settings.columns]):
        values = _values(rows, ads, users, column)
        if values is None:
            if column in settings.columns:
                raise DataError(f"{rows.path}: slice column '{column}' is in none of the scored, ads and users tables.")
            continue
        slicing = _cut(column, values, settings)
        if len(slicing.names) > 1:
            found.append(slicing)
    return found


def judge_slices(
    result: TaskResult, cuts: Sequence[Slicing], config: EvaluateConfig, generator: np.random.Generator
) -> SliceResult:
    """Core metrics of every slice with intervals, and alarms, of a binary task. Draws are shared, so gaps are paired."""
    task, frame = result.task, result.frame
    judged = [scores for scores in task.scores if scores.role in {"model", "against"}]
    parts: dict[tuple[str, str], Ints] = {_ALL: np.arange(len(frame.labels))}
    for cut in cuts:
        codes = cut.codes[task.rows]
        order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[order], np.arange(len(cut.names) + 1))
        for index, name in enumerate(cut.names):
            part = order[bounds[index] : bounds[index + 1]]
            if len(part):
                parts[cut.column, name] = part
    measures: dict[str, list[Measure]] = {}
    for key, part in parts.items():
        piece = frame.take(part)
        for scores in judged:
            taken = Scores(scores.name, scores.role, scores.values[part], scores.is_probability)
            measures[_name(key, scores.name)] = core_measures(piece, taken)
    draws = bootstrap(measures, users=frame.user_count, replicates=config.bootstrap.slice_replicates, generator=generator)
    values = {name: point(group, frame.user_count) for name, group in measures.items()}
    level, model = config.bootstrap.level, task.model.name
    slices = []
    for key, part in parts.items():
        if key == _ALL:
            continue
        name = _name(key, model)
        positives = int(frame.labels[part].sum())
        least = config.slices.least_positives
        slices.append(
            Slice(
                column=key[0],
                value=key[1],
                rows=len(part),
                users=len(np.unique(frame.users[part])),
                positives=positives,
                metrics={metric: interval(value, draws[name][metric], level) for metric, value in values[name].items()},
                small=positives < least or len(part) - positives < least,
            )
        )
    return SliceResult(tuple(slices), _alarms(slices, judged, values, draws, config))


def _alarms(
    slices: Sequence[Slice], judged: Sequence[Scores], values: dict[str, Any], draws: dict[str, Any], config: EvaluateConfig
) -> tuple[Alarm, ...]:
    """Compare each large enough slice with all rows, with probability 1, and with the other runs."""
    model = judged[0].name
    candidates: dict[AlarmKind, list[tuple[Slice, str, Difference, bool]]] = {"ranking": [], "calibration": [], "against": []}
    for part in slices:
        if part.small:
            continue
        name, everything = _name((part.column, part.value), model), _name(_ALL, model)

        def gap(metric: str, other: str, name: str = name, users: int = part.users) -> Difference:
            value = values[name][metric] - values[other][metric]
            return difference(value, draws[name][metric] - draws[other][metric], users=users)

        worse = gap("auc", everything)
        text = f"AUC {values[name]['auc']:.3f}, against {values[everything]['auc']:.3f} over all rows"
        candidates["ranking"].append((part, text, worse, worse.value <= -config.alarms.auc_gap))
        if "predicted_over_observed" in values[name]:
            ratio = values[name]["predicted_over_observed"]
            with np.errstate(divide="ignore"):
                off = difference(np.log(ratio), np.log(draws[name]["predicted_over_observed"]), users=part.users)
            text = f"{ratio:.2f} clicks predicted for each one observed"
            candidates["calibration"].append((part, text, off, abs(ratio - 1) >= config.alarms.calibration_gap))
        for scores in judged[1:]:
            other = _name((part.column, part.value), scores.name)
            worse = gap("auc", other)
            text = f"AUC {values[name]['auc']:.3f}, against {values[other]['auc']:.3f} of {scores.name}"
            candidates["against"].append((part, text, worse, worse.value < 0))
    found = []
    for kind, family in candidates.items():
        adjusted = adjust([item[2].p_value for item in family], config.alarms.correction)
        for (part, text, worse, matters), p in zip(family, adjusted, strict=True):
            if matters and p < config.alarms.level:
                found.append(Alarm(kind, part.column, part.value, text, worse, float(p)))
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


def _cut(column: str, values: pa.ChunkedArray, settings: SliceSettings) -> Slicing:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    if column == "history_length":
        return _cut_numbers(column, values, HISTORY_BINS[1:])
    many = pc.count_distinct(values).as_py() > settings.most_values
    if (pa.types.is_floating(kind) or pa.types.is_integer(kind)) and many:
        numbers = values.drop_null().to_numpy()
        steps = np.linspace(0, 1, settings.quantiles + 1)[1:-1]
        return _cut_numbers(column, values, np.unique(np.quantile(numbers, steps)))
    if pa.types.is_nested(kind):
        raise DataError(f"slice column '{column}' is {kind}; slices need one value a row.")
    return _cut_words(column, values, settings.most_values)


def _cut_words(column: str, values: pa.ChunkedArray, most: int) -> Slicing:
    coded = encode(values)
    counts = np.bincount(coded.codes, minlength=len(coded))
    named = pc.if_else(coded.values, "yes", "no") if pa.types.is_boolean(values.type) else coded.values.cast(pa.string())
    words = pc.fill_null(named, "(none)").to_numpy(zero_copy_only=False)
    kept = np.sort(np.argsort(-counts, kind="stable")[:most])
    kept = kept[np.lexsort((words[kept].astype(str), _as_number(words[kept])))]
    place = np.full(len(words), len(kept))
    place[kept] = np.arange(len(kept))
    names = [*words[kept].tolist(), *([OTHER] if len(kept) < len(words) else [])]
    return Slicing(column, tuple(names), place[coded.codes])


def _cut_numbers(column: str, values: pa.ChunkedArray, edges: Any) -> Slicing:
    """Parts [low, high) between the edges; nulls are in none."""
    numbers = values.cast(pa.float64()).to_numpy()
    codes = np.searchsorted(np.asarray(edges, dtype=np.float64), numbers, side="right")
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
