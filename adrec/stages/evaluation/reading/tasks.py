"""What is to be judged: pairs of a label and the columns that predict it, checked before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from adrec.config.evaluation.evaluate import TaskColumns
from adrec.errors import DataError
from adrec.schema import ANY_SLOT, BASELINE_PREFIX, CATALOGUE_RANK, DRAWN, SCORE_PREFIX, TRUE_PROBABILITY
from adrec.stages.evaluation.reading.rows import LABELS, Floats, Ints, Rows

Role = Literal["model", "any_slot", "baseline", "oracle", "against"]
"""any_slot: the model where it is not told the slots of the rows, as when it ranks."""
ORACLE = "oracle"


class NothingToJudgeError(DataError):
    """A label by which nothing can be judged: no row has one, or all have the same."""


@dataclass(frozen=True)
class Scores:
    """One column of predictions for the rows of a task."""

    name: str
    role: Role
    values: npt.NDArray[np.floating]
    """(N,) of the task's rows."""
    is_probability: bool
    """Whether log loss and calibration mean anything."""


@dataclass(frozen=True)
class Task:
    """A label, and everything that predicts it. Arrays are over the N rows that have the label."""

    label_name: str
    kind: Literal["binary", "regression"]
    rows: Ints
    """Row numbers in the table."""
    labels: Floats
    scores: tuple[Scores, ...]
    """The model first, then runs compared with it, baselines, the oracle."""
    unlabelled: int
    """Rows left out since their label is null."""

    @property
    def model(self) -> Scores:
        """The run that is judged."""
        return self.scores[0]

    @property
    def like_baselines(self) -> Scores:
        """What baselines are compared with: the model as little told of the slots as they are."""
        return next((scores for scores in self.scores if scores.role == "any_slot"), self.model)


def resolve_tasks(rows: Rows, configured: Sequence[TaskColumns]) -> list[TaskColumns]:
    """The configured tasks, or every label present with its score. Raises DataError where there is nothing to judge."""
    if configured:
        for task in configured:
            for column in (task.label, task.score):
                if column not in rows:
                    raise DataError(f"{rows.path}: column '{column}' is missing. {_named(rows.columns)}")
        return list(configured)
    found = []
    labels = [name for name in LABELS if name in rows]
    main = rows.label_of_score or next(iter(labels), None)
    for name in labels:
        own = f"{SCORE_PREFIX}{name}"
        score = own if own in rows else "score" if name == main else None
        if name == "click" and CATALOGUE_RANK in rows and pc.min(rows.table["click"]).as_py() == 1:
            continue  # clicks alone: their ranks are judged
        if score is not None and score in rows:
            binary = name in {"click", "conversion"}
            found.append(TaskColumns(label=name, score=score, kind="binary" if binary else "regression"))
    return found


def build_task(
    rows: Rows, columns: TaskColumns, against: Sequence[tuple[str, Rows]], probability_baselines: Sequence[str] = ()
) -> Task:
    """Read and check one task. Raises DataError naming file, column and row; NothingToJudgeError by labels all alike."""
    label = rows.numbers(columns.label).astype(np.float64)
    labelled = np.flatnonzero(~np.isnan(label))
    if len(labelled) == 0:
        raise NothingToJudgeError(
            f"{rows.path}: column '{columns.label}' is null in every row: nothing happened that could be judged."
        )
    labels: Floats = label if len(labelled) == len(label) else label[labelled]
    binary = columns.kind == "binary"
    if binary:
        _check_binary(labels, labelled, rows.path, columns.label)
    # Against negatives that were drawn a score is a preference: how many were drawn decides its level.
    probable = binary and DRAWN not in rows
    scores = [Scores("model", "model", _column(rows, columns.score, labelled, probability=binary), probable)]
    if columns.score == "score" and ANY_SLOT in rows:
        scores.append(Scores("any_slot", "any_slot", _column(rows, ANY_SLOT, labelled, probability=binary), probable))
    for name, other in against:
        if columns.score not in other:
            raise DataError(f"{other.path}: column '{columns.score}' is missing. {_named(other.columns)}")
        scores.append(Scores(name, "against", _column(other, columns.score, labelled, probability=binary), probable))
    if binary and columns.label == "click":
        for column in rows.table.column_names:
            if column.startswith(BASELINE_PREFIX):
                name = column.removeprefix(BASELINE_PREFIX)
                is_probability = probable and name in probability_baselines
                values = _column(rows, column, labelled, probability=is_probability)
                scores.append(Scores(name, "baseline", values, is_probability))
        if TRUE_PROBABILITY in rows:
            truth = _column(rows, TRUE_PROBABILITY, labelled, probability=True)
            scores.append(Scores(ORACLE, "oracle", truth, True))
    return Task(columns.label, columns.kind, labelled, labels, tuple(scores), len(label) - len(labelled))


def _column(rows: Rows, column: str, labelled: Ints, *, probability: bool) -> npt.NDArray[np.floating]:
    values = rows.numbers(column)
    values = values if len(labelled) == len(values) else values[labelled]  # no copy where all rows count
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DataError(
            f"{rows.path}: column '{column}', row {labelled[bad[0]]}: {values[bad[0]]} is not a score"
            f" ({len(bad):,} such rows). Score the rows again."
        )
    if probability:
        bad = np.flatnonzero((values < 0) | (values > 1))
        if len(bad):
            raise DataError(
                f"{rows.path}: column '{column}', row {labelled[bad[0]]}: {values[bad[0]]:g} is not a probability in [0, 1]"
                f" ({len(bad):,} such rows). Set the task's kind to regression if it is not meant to be one."
            )
    return values


def _check_binary(labels: Floats, kept: Ints, path: Path, column: str) -> None:
    bad = np.flatnonzero((labels != 0) & (labels != 1))
    if len(bad):
        raise DataError(
            f"{path}: column '{column}', row {kept[bad[0]]}: {labels[bad[0]]:g} is neither 0 nor 1 ({len(bad):,} such rows)."
            " Set the task's kind to regression if it is a number."
        )
    if labels.min() == labels.max():
        raise NothingToJudgeError(
            f"{path}: column '{column}' is {labels[0]:.0f} in all {len(labels):,} rows; metrics need both classes."
        )


def _named(columns: Sequence[str]) -> str:
    return f"Columns: {', '.join(columns[:12])}{', ...' if len(columns) > 12 else ''}."
