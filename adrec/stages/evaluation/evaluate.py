"""`adrec evaluate`: scored or ranked rows in, metrics.json and report.html out. No model is loaded.

Cost: 10 seconds of one processor a million rows and column of predictions at 1,000 draws. Memory: docs/judging/evaluate.md.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from rich.console import RenderableType

from adrec import __version__
from adrec.config.base import save_config
from adrec.config.evaluation.evaluate import EvaluateConfig, TaskColumns
from adrec.data.disk.outputs import EVALUATION, recall_file
from adrec.data.disk.tables import parquet_files, read_table
from adrec.data.disk.writing import folder_aside, write_aside
from adrec.errors import DataError
from adrec.metrics.intervals.significance import LEVEL
from adrec.schema import CATALOGUE_RANK, DRAWN, WEIGHT
from adrec.stages.candidate_recall import read_recall
from adrec.stages.data.drift import drift_of
from adrec.stages.evaluation import show
from adrec.stages.evaluation.catalogue import judge_catalogue
from adrec.stages.evaluation.judge import judge_task
from adrec.stages.evaluation.measuring import Measured, Measurer, measuring
from adrec.stages.evaluation.off_policy.arms import judge_arms
from adrec.stages.evaluation.off_policy.lists import judge_lists
from adrec.stages.evaluation.off_policy.replay import replay
from adrec.stages.evaluation.reading.align import aligned
from adrec.stages.evaluation.reading.delays import Lateness, known_by
from adrec.stages.evaluation.reading.rows import Rows, load_rows
from adrec.stages.evaluation.reading.tasks import NothingToJudgeError, Task, build_task, resolve_tasks
from adrec.stages.evaluation.reading.truth import with_labels
from adrec.stages.evaluation.report.inputs import read_importance
from adrec.stages.evaluation.result import Evaluation
from adrec.stages.evaluation.slices import judge_slices
from adrec.stages.evaluation.slicing import Slicing, slicings
from adrec.stages.writing import evaluation_folder
from adrec.terminal import Terminal


class EvaluateResult(Evaluation):
    """What `adrec evaluate` found out, and how it tells it."""

    def render(self) -> Iterable[RenderableType]:
        """The headline of each task, what to worry about, and where the report lies."""
        yield from show.render(self)


def run(config: EvaluateConfig, terminal: Terminal) -> EvaluateResult:
    """Judge the rows and write the output folder in one step. Raises DataError naming file, column and row."""
    if config.importance is not None:
        read_importance(config.importance)  # a wrong path is told before the work, not after it
    opened = _open(config, terminal)
    rows, others, ads, tasks, cuts = opened.rows, opened.others, opened.ads, opened.tasks, opened.cuts
    generator = np.random.default_rng(config.seed)
    measurer = Measurer(rows, tasks, cuts, config)
    sliced = {}
    with measuring(config, measurer, measuring_worker, terminal) as measure:
        judged = [judge_task(number, measurer, measure, generator) for number in range(len(tasks))]
        for number, done in enumerate(judged):
            if done.task.kind == "binary":
                sliced[done.task.label_name] = judge_slices(done, number, measurer, measure, generator)
    arms = {}
    for done in judged:
        if done.task.kind == "binary" and (compared := judge_arms(rows, done.task, config, generator)) is not None:
            arms[done.task.label_name] = compared
    # Rows of counts, and what was drawn beside a click, are no lists that anybody was shown.
    lists = None if WEIGHT in rows or DRAWN in rows else judge_lists(rows, ads, _popularity(config.training), config, generator)
    if config.off_policy is not None and WEIGHT in rows:
        raise DataError(
            f"{config.scored}: its rows are counts; off-policy evaluation needs each decision as a row. Leave off_policy out."
        )
    off_policy = replay(rows, config, generator) if config.off_policy is not None else None
    with terminal.progress("judging the ranks"):
        catalogue = judge_catalogue(rows, others, config, generator)
    measured = recall_file(config.scored) if rows.is_ranked else config.training and config.training / "metrics.json"
    recall = read_recall(measured) if measured is not None else ()
    asked = config.drift
    drift = None if asked is None else drift_of(**dict(asked), terminal=terminal)
    output = config.output or evaluation_folder(config.scored)
    result = EvaluateResult(
        output,
        config.name or config.scored.stem,
        _facts(config),
        tuple(judged),
        sliced,
        arms,
        lists,
        off_policy,
        catalogue,
        recall,
        drift,
        config,
        opened.late,
    )
    _write(result, rows, ads, terminal)
    return result


def measuring_worker(payload: dict[str, Any], scratch: Path) -> Callable[[dict[str, Any]], Measured]:
    """In a worker of a cluster: from a column of predictions, and a slice, to its metrics."""
    config = EvaluateConfig.model_validate(payload)
    opened = _open(config, Terminal(quiet=True))
    measurer = Measurer(opened.rows, opened.tasks, opened.cuts, config)
    return lambda task: measurer(task["piece"])


class _Opened(NamedTuple):
    """What is judged, as the command and every worker of a cluster read it."""

    rows: Rows
    others: list[tuple[str, Rows]]
    ads: pa.Table | None
    late: dict[str, Lateness]
    tasks: list[Task]
    cuts: list[Slicing]


def _open(config: EvaluateConfig, terminal: Terminal) -> _Opened:
    rows, others = _load(config)
    ads, users = _table(config.ads, "ads", "ad_id"), _table(config.users, "users", "user_id")
    labelled = [] if rows.is_ranked else resolve_tasks(rows, config.tasks)
    if not labelled and not rows.is_ranked and config.off_policy is None and CATALOGUE_RANK not in rows:
        raise DataError(
            f"{config.scored}: no label column (click, conversion, rating, dwell_seconds) stands beside a score."
            " Give the impressions with the outcomes as `labels`, or name the columns under `tasks`."
        )
    late: dict[str, Lateness] = {}
    if config.delay is not None:
        rows, late = known_by(rows, config.delay, labelled)
    tasks = _tasks(rows, others, labelled, config, terminal)
    cuts = slicings(rows, ads, users, config.slices.columns) if tasks else []
    return _Opened(rows, others, ads, late, tasks, cuts)


def _tasks(
    rows: Rows, others: list[tuple[str, Rows]], labelled: list[TaskColumns], config: EvaluateConfig, terminal: Terminal
) -> list[Task]:
    """The tasks. Of those that nobody named the ones without a verdict are left out, unless there is no other."""
    tasks, untold = [], []
    for columns in labelled:
        try:
            tasks.append(build_task(rows, columns, others, config.probability_baselines))
        except NothingToJudgeError as error:
            if config.tasks:
                raise
            untold.append(error)
    if untold and not tasks:
        raise untold[0]
    for reason in untold:
        terminal.warn(f"{reason} That task is left out.")
    return tasks


def _load(config: EvaluateConfig) -> tuple[Rows, list[tuple[str, Rows]]]:
    wanted = [*config.slices.columns, *(name for task in config.tasks for name in (task.label, task.score))]
    if config.off_policy is not None:
        settings = config.off_policy
        wanted += [name for name in (settings.policy_column, settings.expected_column, settings.propensity_column) if name]
    if config.against:
        wanted.append("row_id")
    if config.arms is not None:
        wanted.append(config.arms)
    if config.delay is not None:
        wanted += config.delay.moments.values()
    rows = load_rows(config.scored, wanted)
    if config.labels is not None and not rows.is_ranked:
        rows = with_labels(rows, config.labels)
    names = _distinct_names(config.against, taken={"model"})
    others = [(name, aligned(load_rows(path, wanted), rows)) for name, path in zip(names, config.against, strict=True)]
    return rows, others


def _distinct_names(paths: Sequence[Path], taken: set[str]) -> list[str]:
    """The shortest trailing part of each path that tells it from the others: `b.parquet`, or `run2/scored.parquet`."""
    names = []
    for path in paths:
        parts = path.with_suffix("").parts
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[-depth:])
            if name not in taken and sum("/".join(p.with_suffix("").parts[-depth:]) == name for p in paths) <= 1:
                break
        taken.add(name)
        names.append(name)
    return names


def _table(path: Path | None, kind: str, key: str) -> pa.Table | None:
    """The ads or users table: a Parquet file, or the one inside a prepared folder."""
    if path is None:
        return None
    table = read_table(_inside(path, kind))
    if key not in table.column_names:
        raise DataError(f"{path}: column '{key}' is missing.")
    return table


def _inside(path: Path, kind: str) -> Path:
    """The file that a prepared folder keeps that table in; the path itself where it is none."""
    return path / f"{kind}.parquet" if (path / f"{kind}.parquet").exists() else path


def _popularity(training: Path | None) -> pa.Table | None:
    """How often each ad was shown in training, where the bundle says."""
    if training is None or not (training / "seen.parquet").exists():
        return None
    return show.popularity(read_table(training / "seen.parquet"))


def _facts(config: EvaluateConfig) -> dict[str, Any]:
    inputs = {"scored": config.scored, "labels": config.labels, "ads": config.ads, "users": config.users}
    files = {name: {"name": p.name, "sha256": _digest(_inside(p, name))} for name, p in inputs.items() if p is not None}
    files |= {f"against {index}": {"name": p.name, "sha256": _digest(p)} for index, p in enumerate(config.against, 1)}
    facts: dict[str, Any] = {
        "split": config.split,
        "seed": config.seed,
        "replicates": config.bootstrap.replicates,
        "level": LEVEL,
        "inputs": files,
        "versions": {
            "adrec": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "scipy", "pyarrow")},
        },
    }
    manifest = None if config.training is None else config.training / "bundle.json"
    if manifest is not None and manifest.exists():
        stored = json.loads(manifest.read_text(encoding="utf-8"))
        facts["bundle"] = {name: value for name, value in stored.items() if isinstance(value, str | int | float)}
    return facts


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in parquet_files(path):
        with open(file, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _write(result: EvaluateResult, rows: Rows, ads: pa.Table | None, terminal: Terminal) -> None:
    with folder_aside(result.output, EVALUATION) as folder:
        text = json.dumps(show.finite(result.as_dict()), ensure_ascii=False, indent=2)
        (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
        save_config(result.config.model_copy(update={"cluster": None}), folder / "config.yaml")
    if result.config.report:
        from adrec.stages.evaluation.report.page import write_report

        # The figures are on disk by now: whatever happens to the pictures, they stay.
        with terminal.progress("drawing the report"), write_aside(result.output / "report.html") as aside:
            failed = write_report(result, rows, ads, aside)
        for line in failed:
            terminal.warn(f"report.html: a picture could not be drawn and is left out ({line}).")
