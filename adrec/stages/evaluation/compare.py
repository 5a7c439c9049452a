"""`adrec compare`: runs side by side, from their metrics.json alone; warns where they were not judged on the same rows."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adrec.config.evaluation.compare import CompareConfig
from adrec.data.disk.outputs import COMPARISON
from adrec.data.disk.writing import write_aside
from adrec.errors import DataError
from adrec.stages.evaluation.judge import direction
from adrec.stages.evaluation.show import finite, number, title
from adrec.terminal import Terminal

METRICS = "metrics.json"


@dataclass(frozen=True)
class Run:
    """One run's figures on one task."""

    name: str
    path: Path
    split: str
    basis: tuple[Any, ...]
    """Rows and positives behind the figures; runs are comparable where it is equal. Empty where unknown."""
    values: dict[str, float]
    half_widths: dict[str, float]
    """Half the width of the interval, for metrics that have one."""
    settings: dict[str, Any]
    """The run's config.yaml, flattened to dotted keys."""


@dataclass(frozen=True)
class CompareResult:
    """All runs, best first, and the settings in which they differ."""

    task: str
    metrics: tuple[str, ...]
    runs: tuple[Run, ...]
    differing: dict[str, list[Any]]
    """Dotted config key -> its value in each run."""
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {
            "task": self.task,
            "metrics": list(self.metrics),
            "runs": [
                {"name": r.name, "path": str(r.path), "split": r.split, "values": r.values, "half_widths": r.half_widths}
                for r in self.runs
            ],
            "differing": self.differing,
            "warnings": list(self.warnings),
        }

    def render(self) -> Iterable[RenderableType]:
        """One row a run, the best of each column bold; then what was set differently."""
        table = Table(title=f"{len(self.runs)} runs: {self.task}", title_justify="left")
        table.add_column("run", overflow="fold")
        for metric in self.metrics:
            table.add_column(title(metric), justify="right")
        best = {metric: _best(metric, self.runs) for metric in self.metrics}
        for run in self.runs:
            table.add_row(run.name, *(_cell(run, metric, best[metric]) for metric in self.metrics))
        yield table
        if self.differing:
            settings = Table(title="Set differently", title_justify="left")
            settings.add_column("setting", overflow="fold")
            for run in self.runs:
                settings.add_column(run.name, overflow="fold")
            for key, values in self.differing.items():
                settings.add_row(key, *("–" if value is None else str(value) for value in values))
            yield settings


def run(config: CompareConfig, terminal: Terminal) -> CompareResult:
    """Find and read the runs. Raises DataError where there is none, or none has the task."""
    paths = _find(config.runs)
    names = _short_names([path.parent for path in paths])
    stored = [(name, path, _read(path)) for name, path in zip(names, paths, strict=True)]
    task = config.task or _common_task([contents for _, _, contents in stored], config.runs)
    runs = [found for name, path, contents in stored if (found := _run_of(name, path, contents, task)) is not None]
    if not runs:
        raise DataError(f"{config.runs[0]}: no run has the task '{task}'.")
    if len(runs) < len(stored):
        without = sorted({name for name, _, _ in stored} - {found.name for found in runs})
        terminal.note(f"without the task '{task}', so not compared: {', '.join(without)}")
    metrics = tuple(metric for metric in config.metrics if any(metric in found.values for found in runs))
    if not metrics:
        known = sorted({name for found in runs for name in found.values})
        raise DataError(f"{config.runs[0]}: none of the metrics is there. Known: {', '.join(known)}.")
    key = config.sort or metrics[0]
    if not any(key in found.values for found in runs):
        raise DataError(f"{config.runs[0]}: no run has the metric '{key}' to sort by.")
    sign = 1 if direction(key) == "lower" else -1
    runs.sort(key=lambda found: (not math.isfinite(found.values.get(key, math.nan)), sign * found.values.get(key, 0.0)))
    warnings = tuple(_doubts(runs))
    for warning in warnings:
        terminal.warn(warning)
    result = CompareResult(task, metrics, tuple(runs), _differing(runs), warnings)
    if config.output is not None:
        with write_aside(config.output, COMPARISON) as aside:
            aside.write_text(json.dumps(finite(result.as_dict()), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return result


def _find(given: Sequence[Path]) -> list[Path]:
    """The metrics.json behind each path: the file, the folder's own, or every one below the folder."""
    found: list[Path] = []
    for path in given:
        if path.is_file():
            found.append(path)
        elif (path / METRICS).is_file():
            found.append(path / METRICS)
        elif path.is_dir():
            hidden = (
                file
                for file in sorted(path.rglob(METRICS))
                if not any(p.startswith(".") for p in file.parts[len(path.parts) :])
            )
            below = [file for file in hidden if _is_of_rows(_json(file))]  # encoders have a metrics.json too, of texts
            if not below:
                raise DataError(f"{path}: no {METRICS} below this folder. 'adrec evaluate' and 'adrec finetune' write one.")
            found += below
        else:
            raise DataError(f"{path}: no such file or folder.")
    return list(dict.fromkeys(found))


def _read(path: Path) -> dict[str, Any]:
    contents = _json(path)
    if not _is_of_rows(contents):
        raise DataError(f"{path}: not the metrics.json of an evaluation or a bundle.")
    read: dict[str, Any] = contents
    return read


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}). Evaluate the run again.") from None


def _is_of_rows(contents: Any) -> bool:
    """Whether metrics are those of an evaluation or a bundle."""
    return isinstance(contents, dict) and bool({"tasks", "models"} & set(contents))


def _common_task(stored: Sequence[dict[str, Any]], given: Sequence[Path]) -> str:
    """The task that most runs have; the first of those. Runs without it are left out."""
    tasks = [name for contents in stored for name in contents.get("tasks", ["click"])]
    if not tasks:
        raise DataError(f"{given[0]}: the runs judge no scores: nothing to compare.")
    return str(max(dict.fromkeys(tasks), key=tasks.count))


def _run_of(name: str, path: Path, contents: dict[str, Any], task: str) -> Run | None:
    settings = _settings(path.with_name("config.yaml"))
    split = str(contents.get("split", ""))
    if "models" in contents:
        if task != "click":
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


def _settings(path: Path) -> dict[str, Any]:
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
    places = {"output", "scored", "prepared", "name", "training", "against", "ads", "users", "labels"}
    keys = dict.fromkeys(key for found in runs for key in found.settings)
    table = {key: [found.settings.get(key) for found in runs] for key in keys if key not in places}
    return {key: values for key, values in table.items() if any(value != values[0] for value in values)}


def _doubts(runs: Sequence[Run]) -> Iterable[str]:
    splits = sorted({found.split for found in runs})
    if len(splits) > 1:
        yield f"these runs were judged on different splits ({', '.join(splits)}); their figures do not compare."
    bases = {found.basis for found in runs if found.basis}
    if len(bases) > 1:
        counts = ", ".join(sorted(f"{basis[0]:,}" for basis in bases))
        yield f"these runs were judged on different rows ({counts}); their figures do not compare."


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


def _best(metric: str, runs: Sequence[Run]) -> float:
    values = [found.values[metric] for found in runs if math.isfinite(found.values.get(metric, math.nan))]
    if not direction(metric) or len(values) < 2:
        return math.nan
    return min(values) if direction(metric) == "lower" else max(values)


def _cell(found: Run, metric: str, best: float) -> Text:
    value = found.values.get(metric, math.nan)
    half = found.half_widths.get(metric)
    text = number(value) + (f" ±{half:.4f}" if half is not None else "")
    return Text(text, style="bold" if value == best else "")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
