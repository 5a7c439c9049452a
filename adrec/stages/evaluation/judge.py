"""Judge one task: every metric of every run with its interval, and the model against each other run, paired."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.metrics.intervals.bootstrap import Values
from adrec.metrics.intervals.significance import ALARM_LEVEL, Difference, Interval, adjust, difference, interval
from adrec.stages.evaluation.measures import LOWER_IS_BETTER, NO_DIRECTION, Frame
from adrec.stages.evaluation.measuring import Measure, Measurer, Piece
from adrec.stages.evaluation.reading.tasks import Role, Task
from adrec.stages.evaluation.support import Support, support_of

COMPARED = ("auc", "auc_request", "auc_user", "ndcg", "pr_auc", "log_loss", "rmse", "mae")
"""Metrics of paired comparison; `ndcg` stands for the deepest cutoff."""

ABSOLUTE_GAPS = frozenset({"ece"})
"""Metrics that resampling inflates; their draws are moved back onto the value."""


@dataclass(frozen=True)
class Comparison:
    """The model minus another run on one metric; draws are paired."""

    other: str
    role: Role
    metric: str
    difference: Difference
    adjusted_p: float
    """Corrected over all comparisons with runs of the same role."""

    @property
    def better(self) -> bool:
        """Whether the difference points the model's way."""
        return (self.difference.value < 0) == (self.metric in LOWER_IS_BETTER)

    def verdict(self) -> str:
        """better, worse, no difference, or too few to say."""
        if np.isnan(self.difference.p_value):
            return "too few to say"
        if not self.adjusted_p < ALARM_LEVEL:
            return "no difference"
        return "better" if self.better else "worse"


@dataclass(frozen=True)
class TaskResult:
    """Everything found out about one task over all its rows."""

    task: Task
    frame: Frame
    metrics: dict[str, dict[str, Interval]]
    """run -> metric -> interval; the model first."""
    comparisons: tuple[Comparison, ...]
    skipped: dict[str, int]
    """Groups with one class only, by kind."""
    support: Support
    """How much stands behind each metric."""

    def counts(self) -> dict[str, Any]:
        """How much data stands behind the numbers."""
        frame, requests = self.frame, self.frame.requests
        named = frame.named
        counts: dict[str, Any] = {"rows": len(frame.labels)}
        if frame.weights is not None:
            counts |= {"impressions": int(frame.impressions), frame.unit: frame.user_count, "drawn": frame.unit}
        else:
            if named.any():
                counts["users"] = len(np.unique(frame.users[named]))
            if not named.all():
                counts["rows_without_user"] = int((~named).sum())
        if requests is not None:
            counts["requests"] = int(requests.max(initial=-1)) + 1 - self.frame.lone
            if self.frame.lone:
                counts["rows_without_request"] = self.frame.lone
        if self.task.kind == "binary":
            counts |= {"positives": int(frame.positives), "rate": frame.positives / frame.impressions}
        else:
            counts |= {"mean": frame.positives / frame.impressions}
        return counts | {"unlabelled_rows": self.task.unlabelled} | self.skipped | self.support.counts()


def judge_task(number: int, measurer: Measurer, measure: Measure, generator: np.random.Generator) -> TaskResult:
    """Point values, intervals and paired comparisons of all runs of task `number`."""
    task, frame, config = measurer.tasks[number], measurer.frames[number], measurer.config
    support = support_of(frame)
    seed = int(generator.integers(2**63))
    pieces = [Piece(number, scores.name, seed) for scores in task.scores]
    made = dict(zip((scores.name for scores in task.scores), measure(pieces), strict=True))
    values = {name: measured.values for name, measured in made.items()}
    draws = {name: measured.draws for name, measured in made.items()}
    skipped = made[task.scores[-1].name].skipped
    metrics = {
        run: {
            name: support.shown(name, interval(value, draws[run][name], centred=name in ABSOLUTE_GAPS))
            for name, value in named.items()
        }
        for run, named in values.items()
    }
    return TaskResult(task, frame, metrics, _compare(task, frame, support, values, draws, config), skipped, support)


def _compare(
    task: Task,
    frame: Frame,
    support: Support,
    values: dict[str, dict[str, float]],
    draws: dict[str, Values],
    config: EvaluateConfig,
) -> tuple[Comparison, ...]:
    """The model against every other run, corrected within runs of one role.

    Baselines know no slots: against them it does not either.
    """
    chosen = [f"{name}@{config.cutoffs[-1]}" if name == "ndcg" else name for name in COMPARED]
    found: list[Comparison] = []
    for role in ("against", "baseline", "oracle"):
        model = (task.like_baselines if role == "baseline" else task.model).name
        family = []
        for scores in task.scores:
            if scores.role != role:
                continue
            for metric in chosen:
                if metric in values[scores.name] and metric in values[model]:
                    gap = values[model][metric] - values[scores.name][metric]
                    gaps = draws[model][metric] - draws[scores.name][metric]
                    told = support.told(metric, difference(gap, gaps, users=frame.user_count))
                    family.append((scores, metric, told))
        adjusted = adjust([item[2].p_value for item in family])
        found += [
            Comparison(scores.name, scores.role, metric, gap, float(p))
            for (scores, metric, gap), p in zip(family, adjusted, strict=True)
        ]
    return tuple(found)


def direction(metric: str) -> str:
    """`higher`, `lower` or `` (no better way): which way the metric improves."""
    if metric in NO_DIRECTION:
        return ""
    return "lower" if metric in LOWER_IS_BETTER else "higher"
