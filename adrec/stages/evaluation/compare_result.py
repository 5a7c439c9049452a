"""What a comparison of runs found, and its tables for the terminal."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adrec.stages.evaluation.judge import direction
from adrec.stages.evaluation.show import number, title
from adrec.tables import best_marked


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

    @property
    def groups(self) -> list[list[Run]]:
        """The runs, those judged on the same rows together."""
        return [list(group) for _, group in groupby(self.runs, key=lambda run: (run.split, run.basis))]

    def about(self, group: Sequence[Run]) -> str:
        """What a group was judged on."""
        rows = f", {group[0].basis[0]:,} rows" if group[0].basis else ""
        return f"{len(group)} run{'s' if len(group) > 1 else ''}: {self.task}, {group[0].split or 'unknown'} split{rows}"

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
        """A table for all runs judged on the same rows, the best of each column marked; then what was set differently."""
        for group in self.groups:
            table = Table(title=self.about(group), title_justify="left")
            table.add_column("run")
            for metric in self.metrics:
                table.add_column(title(metric), justify="right")
            best = {metric: best_of(metric, group) for metric in self.metrics}
            for run in group:
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


def best_of(metric: str, runs: Sequence[Run]) -> float:
    """The best value of a metric, for a mark; NaN where no way is better or one run stands alone."""
    values = [found.values[metric] for found in runs if math.isfinite(found.values.get(metric, math.nan))]
    if not direction(metric) or len(values) < 2:
        return math.nan
    return min(values) if direction(metric) == "lower" else max(values)


def _cell(found: Run, metric: str, best: float) -> Text:
    value = found.values.get(metric, math.nan)
    half = found.half_widths.get(metric)
    text = number(value) + (f" ±{half:.4f}" if half is not None else "")
    return best_marked(text, value == best)
