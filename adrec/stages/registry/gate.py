"""Whether a new bundle may take over: both score the same rows, and each metric's gain is held against the least allowed."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adrec.config.evaluation.evaluate import BootstrapSettings, DriftSettings, EvaluateConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.daily import GateSettings
from adrec.errors import DataError
from adrec.stages.evaluation import evaluate
from adrec.stages.evaluation.judge import COMPARED, direction
from adrec.stages.evaluation.result import Evaluation
from adrec.stages.inference import score
from adrec.stages.storage import run_guarded
from adrec.terminal import Terminal


@dataclass(frozen=True)
class Figure:
    """One metric of the new bundle on the newest rows, and what it gains on the old one there."""

    metric: str
    new: float
    old: float | None = None
    gain: float | None = None
    """in the metric's own units, better is above 0; None where there is no old one"""
    low: float | None = None
    high: float | None = None
    least: float | None = None
    """what the gate asks for; None where it does not ask"""

    def passes(self, refuse: str) -> bool:
        """Whether the gate lets it through."""
        if self.least is None or self.gain is None or self.low is None or self.high is None:
            return True
        reached = {"worse": self.gain, "surely_worse": self.high, "unsure": self.low}[refuse]
        return not reached < self.least  # NaN passes nowhere: see `verdict`

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {name: _finite(value) for name, value in asdict(self).items()}


def judge(
    new: Path,
    old: Path | None,
    *,
    prepared: Path,
    folder: Path,
    settings: GateSettings,
    report: bool,
    seed: int,
    terminal: Terminal,
) -> list[Figure]:
    """Figures of the bundle `new` on the test part of `prepared`, paired with those of `old`; `folder` keeps scores and report.

    Raises DataError where there are no test rows.
    """
    tables = []
    for name, bundle in (("new", new), ("old", old)):
        if bundle is not None:
            output = folder / f"{name}.parquet"
            scoring = ScoreConfig(bundle=bundle, prepared=prepared, split="test", output=output)
            run_guarded(score.run, scoring, terminal)
            tables.append(scoring.output)
    # What the newest day holds that the days before it did not.
    drift = DriftSettings(before=prepared / "impressions" / "train", after=prepared / "impressions" / "test")
    evaluation = EvaluateConfig(
        scored=tables[0],
        against=tables[1:],
        output=folder / "evaluation",
        name=new.name,
        ads=prepared,
        training=new,
        bootstrap=BootstrapSettings(replicates=settings.replicates),
        report=report,
        drift=drift if report else None,
        seed=seed,
    )
    return _figures(run_guarded(evaluate.run, evaluation, terminal), settings)


def verdict(figures: Sequence[Figure], settings: GateSettings) -> tuple[bool, str]:
    """Whether the new bundle takes over, and why, in a sentence."""
    asked = [figure for figure in figures if figure.least is not None]
    if not asked:
        return False, f"the newest rows have none of the gate's metrics ({', '.join(settings.least)})"
    unknown = [figure.metric for figure in asked if figure.gain is None or not math.isfinite(figure.gain)]
    if unknown:
        return False, f"the newest rows are too few to tell {unknown[0]}"
    if settings.refuse != "worse":
        unknown = [
            figure.metric for figure in asked if not math.isfinite(figure.low or 0) or not math.isfinite(figure.high or 0)
        ]
        if unknown:
            return False, f"the newest rows are too few for an interval of {unknown[0]}"
    failed = [figure for figure in asked if not figure.passes(settings.refuse)]
    told = "; ".join(_told(figure) for figure in failed or asked)
    return not failed, told


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _told(figure: Figure) -> str:
    return (
        f"{figure.metric} gains {figure.gain:+.4f} [{figure.low:+.4f}, {figure.high:+.4f}], at least {figure.least:+.4f} asked"
    )


def _figures(result: Evaluation, settings: GateSettings) -> list[Figure]:
    if not result.tasks:
        raise DataError(
            f"{result.config.scored}: the test part has no labels to judge by. Check `split` in the preprocess config."
        )
    task = result.tasks[0]
    names = [scores.name for scores in task.task.scores if scores.role == "against"]
    gaps = {found.metric: found.difference for found in task.comparisons if found.role == "against"}
    compared = {f"{name}@{result.config.cutoffs[-1]}" if name == "ndcg" else name for name in COMPARED}
    figures = []
    for metric, shown in task.metrics[task.task.model.name].items():
        way = {"higher": 1.0, "lower": -1.0}.get(direction(metric))
        if way is None or metric not in compared or not math.isfinite(shown.value):
            continue
        gap = gaps.get(metric)
        if gap is None:
            figures.append(Figure(metric, shown.value))
            continue
        ends = sorted((way * gap.low, way * gap.high))
        old = task.metrics[names[0]][metric].value
        least = next((least for name, least in settings.least.items() if name == metric), None)
        figures.append(Figure(metric, shown.value, old, way * gap.value, ends[0], ends[1], least))
    return figures
