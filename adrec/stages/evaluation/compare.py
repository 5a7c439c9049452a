"""`adrec compare`: runs side by side, from their metrics.json alone; warns where they were not judged on the same rows."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from adrec.config.evaluation.compare import CompareConfig
from adrec.data.disk.outputs import COMPARISON, PAGE
from adrec.data.disk.writing import write_aside
from adrec.errors import DataError, did_you_mean
from adrec.stages.evaluation.compare_result import CompareResult, Run
from adrec.stages.evaluation.judge import direction
from adrec.stages.evaluation.show import finite
from adrec.terminal import Terminal

METRICS = "metrics.json"


def run(config: CompareConfig, terminal: Terminal) -> CompareResult:
    """Find and read the runs. Raises DataError where there is none, or none has the task."""
    found = _find(config.runs, terminal)
    names = _short_names([path.parent for path in found])
    settings = {path: _beside(path) for path in found}
    task = config.task or _common_task(found, settings, config.runs)
    made = {
        name: _run_of(name, path, contents, settings[path], task)
        for name, (path, contents) in zip(names, found.items(), strict=True)
    }
    runs = [judged for judged in made.values() if judged is not None]
    if not runs:
        raise DataError(f"{config.runs[0]}: no run has the task '{task}'.")
    if len(runs) < len(made):
        without = sorted(name for name, judged in made.items() if judged is None)
        terminal.warn(f"without the task '{task}', so not compared: {', '.join(without)}")
    known = sorted({name for judged in runs for name in judged.values})
    metrics = tuple(metric for metric in config.metrics if metric in known)
    if not metrics:
        near = did_you_mean(config.metrics[0], known)
        raise DataError(f"{config.runs[0]}: none of the metrics is there.{near} Known: {', '.join(known)}.")
    key = config.sort or metrics[0]
    if key not in known:
        raise DataError(f"{config.runs[0]}: no run has the metric '{key}' to sort by.{did_you_mean(key, known)}")
    warnings = tuple(_doubts(runs))
    for warning in warnings:
        terminal.warn(warning)
    ordered = [judged for group in _alike(runs, key) for judged in group]
    result = CompareResult(task, metrics, tuple(ordered), _differing(ordered), warnings)
    if config.output is not None:
        with write_aside(config.output, COMPARISON) as aside:
            aside.write_text(json.dumps(finite(result.as_dict()), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if config.html is not None:
        from adrec.stages.evaluation.compare_page import page_of

        with write_aside(config.html, PAGE) as aside:
            aside.write_text(page_of(result, config.language), encoding="utf-8")
    return result


def _alike(runs: Sequence[Run], key: str) -> list[list[Run]]:
    """Runs that were judged on the same rows together, best first; the largest group first, then the better one."""
    sign = 1 if direction(key) == "lower" else -1

    def order(run: Run) -> tuple[bool, float]:
        value = run.values.get(key, math.nan)
        return (not math.isfinite(value), sign * value if math.isfinite(value) else 0.0)

    groups: dict[Any, list[Run]] = {}
    for run in sorted(runs, key=order):
        groups.setdefault((run.split, run.basis), []).append(run)
    return sorted(groups.values(), key=lambda group: (-len(group), order(group[0])))


def _find(given: Sequence[Path], terminal: Terminal) -> dict[Path, dict[str, Any]]:
    """metrics.json behind each path -> what it says: the file, the folder's own, or every one below the folder.

    Files that are no metrics of a run are passed over, as `runs/*` names many; where nothing is left, DataError says why.
    """
    records: dict[Path, dict[str, Any]] = {}
    passed: list[str] = []
    for path in given:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder.")
        own = path if path.is_file() else path / METRICS
        for file in [own] if own.is_file() else _below(path):
            if file in records:
                continue
            try:
                records[file] = _read(file)
            except DataError as error:
                if file == own:  # an encoder's below a folder is nobody's wish
                    passed.append(str(error))
    if not records:
        none = f"{given[0]}: no {METRICS} below this folder. 'adrec evaluate' and 'adrec finetune' write one."
        raise DataError(passed[0] if passed else none)
    for reason in passed:
        terminal.warn(f"passed over: {reason}")
    return records


def _below(folder: Path) -> Iterable[Path]:
    """Every metrics.json below a folder, in order, but for those of hidden (unfinished) runs."""
    depth = len(folder.parts)
    return (file for file in sorted(folder.rglob(METRICS)) if not any(p.startswith(".") for p in file.parts[depth:]))


def _read(path: Path) -> dict[str, Any]:
    """The metrics of an evaluation or a bundle. Raises DataError for any other file."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}). Name the {METRICS} of a run, or its folder.") from None
    if isinstance(contents, dict) and contents.get("models") == {}:
        raise DataError(
            f"{path}: the bundle is private, and keeps its figures to itself. Name the output of 'adrec evaluate', or train "
            "with `metrics` in privacy.public."
        )
    try:
        if "models" in contents:
            _ = contents["models"]["adrec"].items()
        else:
            _ = [(task["counts"]["rows"], task["runs"]["model"]["metrics"].items()) for task in contents["tasks"].values()]
    except (AttributeError, KeyError, TypeError):
        raise DataError(f"{path}: not the {METRICS} of an evaluation or a bundle.") from None
    read: dict[str, Any] = contents
    return read


def _common_task(found: Mapping[Path, dict[str, Any]], settings: Mapping[Path, dict[str, Any]], given: Sequence[Path]) -> str:
    """The task that most runs have; the first of those. Runs without it are left out."""
    tasks = [name for path, contents in found.items() for name in contents.get("tasks", [_main_task(settings[path])])]
    if not tasks:
        raise DataError(f"{given[0]}: the runs judge no scores: nothing to compare.")
    return str(max(dict.fromkeys(tasks), key=tasks.count))


def _run_of(name: str, path: Path, contents: dict[str, Any], settings: dict[str, Any], task: str) -> Run | None:
    split = str(contents.get("split", ""))
    if "models" in contents:
        if task != _main_task(settings):
            return None
        return Run(name, path, split, (), dict(contents["models"]["adrec"]), {}, settings)
    if task not in contents["tasks"]:
        return None
    found = contents["tasks"][task]
    metrics = found["runs"]["model"]["metrics"]
    values = {metric: _number(item["value"]) for metric, item in metrics.items()}
    halves = {
        metric: (item["high"] - item["low"]) / 2 for metric, item in metrics.items() if None not in (item["low"], item["high"])
    }
    counts = found["counts"]
    return Run(name, path, split, (counts["rows"], counts.get("positives")), values, halves, settings)


def _main_task(settings: Mapping[str, Any]) -> str:
    """What the figures of a bundle of these settings are about."""
    tasks = settings.get("tasks")
    return str(tasks[0]["name"]) if tasks else "click"


def _beside(metrics: Path) -> dict[str, Any]:
    """Settings of the run that wrote this file, flat."""
    path = metrics.with_name("config.yaml")
    if not path.is_file():
        return {}
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            flat[prefix] = value

    walk("", yaml.safe_load(path.read_text(encoding="utf-8")))
    return flat


def _differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs; where the run reads and writes is not a setting."""
    places = {"output", "scored", "prepared", "name", "training", "against", "ads", "users", "labels", "language"}
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    table = {key: [run.settings.get(key) for run in runs] for key in keys if key not in places}
    kinds = [[place for place, run in enumerate(runs) if bool(run.basis) == judged] for judged in (True, False)]

    def differs(values: Sequence[Any]) -> bool:
        """Among evaluations, or among bundles: what only the one or the other has is no difference."""
        return any(values[place] != values[kind[0]] for kind in kinds for place in kind[1:])

    return {key: values for key, values in table.items() if differs(values)}


def _doubts(runs: Sequence[Run]) -> Iterable[str]:
    splits = sorted({run.split for run in runs})
    if len(splits) > 1:
        yield f"these runs were judged on different splits ({', '.join(splits)}); {_APART}"
    bases = {run.basis for run in runs if run.basis}
    if len(bases) > 1:
        counts = ", ".join(sorted(f"{basis[0]:,}" for basis in bases))
        yield f"these runs were judged on different rows ({counts}); {_APART}"


_APART = "their figures do not compare, so each kind has a table of its own."


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The fewest trailing parts of each path that tell it from the others."""
    names = []
    for folder in folders:
        parts = folder.parts
        depth = 1
        while depth < len(parts) and sum(other.parts[-depth:] == parts[-depth:] for other in folders) > 1:
            depth += 1
        names.append("/".join(parts[-depth:]))
    return names


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
