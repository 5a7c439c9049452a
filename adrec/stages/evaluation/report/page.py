"""report.html: one self-contained page from an evaluation. No script, no network, light and dark, phone and desktop."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from adrec.data.disk.tables import parquet_files
from adrec.metrics.intervals.significance import Interval
from adrec.pages.figures import Plot
from adrec.pages.page import rendered
from adrec.stages.data.drift import facts_of, parts_of
from adrec.stages.evaluation.judge import TaskResult
from adrec.stages.evaluation.reading.rows import Rows
from adrec.stages.evaluation.reading.tasks import Scores
from adrec.stages.evaluation.report import plots
from adrec.stages.evaluation.report.examples import Example, best_and_worst, first_lists
from adrec.stages.evaluation.report.inputs import input_plots
from adrec.stages.evaluation.report.verdict import main_metric, verdict
from adrec.stages.evaluation.result import Evaluation
from adrec.stages.evaluation.show import (
    ARMS_CAPTION,
    COUNTED,
    DRAWN,
    NO_LISTS,
    OFF_POLICY_BIAS,
    arm_cells,
    arms_title,
    best_value,
    bounds,
    difference_cells,
    headline_metrics,
    number,
    ordered_runs,
    p_value,
    title,
)
from adrec.stages.evaluation.slices import Slice, SliceResult

_MOST_CURVES = 4  # more run into each other
EXAMPLES = 4  # best and worst requests shown with their ads: what a reader looks at


@dataclass(frozen=True)
class Card:
    """One figure at the top of the page."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Section:
    """Everything the page says about one task."""

    result: TaskResult
    counts: tuple[str, ...]
    cards: tuple[Card, ...]
    metrics: tuple[str, ...]
    rest: tuple[str, ...]
    """Metrics of the full table that the headline leaves out."""
    runs: tuple[Scores, ...]
    plots: tuple[Plot, ...]
    slices: tuple[Slice, ...]
    slice_metrics: tuple[str, ...]
    slice_plots: tuple[Plot, ...]
    sliced: SliceResult | None
    best: tuple[Example, ...]
    worst: tuple[Example, ...]


class Pictures:
    """Draws, and notes what could not be drawn: a page without one picture says more than no page."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def draw(self, function: Callable[..., Plot | Iterable[Plot] | None], *given: Any) -> list[Plot]:
        """The plots that `function(*given)` makes; none, and a line in `failed`, where it fails."""
        try:
            drawn = function(*given)
            return [] if drawn is None else [drawn] if isinstance(drawn, Plot) else list(drawn)
        except Exception as error:  # whatever a drawing library may raise: the figures are on disk already
            name = function.__name__.strip("_").replace("_", " ")
            self.failed.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return []


def write_report(result: Evaluation, rows: Rows, ads: pa.Table | None, path: Path) -> list[str]:
    """Write the page to `path`; gives a line for each picture that could not be drawn and is left out."""
    pictures = Pictures()
    learning = pictures.draw(_learning, result.config.training)
    drawn_inputs = pictures.draw(input_plots, result.config.importance)
    drift_parts = [] if result.drift is None else parts_of(result.drift, pictures.draw)
    page = rendered(
        Path(str(files("adrec.stages.evaluation.report") / "page.html.j2")),
        result.config.language,
        {"title_of": title, "number": number, "bounds": bounds, "signed_bounds": _signed_bounds, "p_value": p_value},
        result=result,
        verdict=verdict(result),
        contents=_contents(result, bool(learning), bool(drawn_inputs)),
        days=_days(rows),
        scored_on=datetime.fromtimestamp(_newest(result.config.scored), UTC).date().isoformat(),
        difference_cells=difference_cells,
        best_of=best_value,
        arm_cells=arm_cells,
        arms_title=arms_title,
        arms_caption=ARMS_CAPTION,
        sections=[_section(task, result, rows, ads, pictures) for task in result.tasks],
        list_plots=_list_plots(result, pictures),
        list_examples=first_lists(rows, ads, EXAMPLES),
        learning=learning,
        input_plots=drawn_inputs,
        off_policy_plots=_off_policy_plots(result, pictures),
        off_policy_bias=OFF_POLICY_BIAS,
        drift_facts=[] if result.drift is None else facts_of(result.drift),
        drift_parts=drift_parts,
        config=yaml.safe_dump(result.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        facts=result.facts,
    )
    path.write_text(page, encoding="utf-8")
    return pictures.failed


def _contents(result: Evaluation, has_learning: bool, has_inputs: bool) -> list[tuple[str, str]]:
    """Place and name of each section that the page has."""
    tasks = [(f"task-{number}", task.task.label_name.capitalize()) for number, task in enumerate(result.tasks, 1)]
    there = {
        ("ranks", "Ranks among all ads"): result.catalogue is not None,
        ("recall", "Candidate recall"): bool(result.candidate_recall),
        ("lists", "Lists"): result.lists is not None,
        ("off-policy", "Off-policy"): result.off_policy is not None,
        ("inputs", "What the model lives on"): has_inputs,
        ("drift", "What has changed"): result.drift is not None,
        ("training", "Training"): has_learning,
        ("origin", "Where these numbers come from"): True,
    }
    return tasks + [entry for entry, is_there in there.items() if is_there]


def _days(rows: Rows) -> tuple[str, str] | None:
    """First and last day of the rows."""
    if "shown_at" not in rows or not pa.types.is_timestamp(rows.table["shown_at"].type):
        return None
    ends = pc.min_max(rows.table["shown_at"]).as_py()
    return None if ends["min"] is None else (f"{ends['min']:%Y-%m-%d}", f"{ends['max']:%Y-%m-%d}")


def _newest(path: Path) -> float:
    return max(file.stat().st_mtime for file in parquet_files(path))


def _signed_bounds(found: Interval) -> str:
    return f"{found.low:+.3f} to {found.high:+.3f}" if math.isfinite(found.low) else ""


def _section(task: TaskResult, result: Evaluation, rows: Rows, ads: pa.Table | None, pictures: Pictures) -> Section:
    config = result.config
    metrics = headline_metrics(task, config.cutoffs)
    every = dict.fromkeys(name for named in task.metrics.values() for name in named)
    runs = ordered_runs(task)
    sliced = result.slices.get(task.task.label_name)
    drawn: list[Plot] = []
    sliced_plots: list[Plot] = []
    best: list[Example] = []
    worst: list[Example] = []
    if task.task.kind == "binary":
        drawn += pictures.draw(plots.leads_plot, task, main_metric(task))
        told = {"model", "any_slot", "against", "baseline"}
        few = [*[scores for scores in runs if scores.role in told][:_MOST_CURVES], *_oracle(runs)]
        for curve in plots.CURVES:
            drawn += pictures.draw(curve, task, few)
        probable = [scores for scores in few if scores.is_probability and scores.role != "oracle"]
        drawn += pictures.draw(plots.reliability_plot, task, probable) if probable else []
        drawn += pictures.draw(plots.distributions, task, task.task.model)
        best, worst = best_and_worst(task, rows, ads, EXAMPLES)
    if sliced is not None:
        drawn += pictures.draw(plots.by_day, sliced.slices)
        flagged = {(alarm.column, alarm.value) for alarm in sliced.alarms if alarm.kind != "calibration"}
        overall = task.metrics[task.task.model.name]["auc"].value
        sliced_plots = pictures.draw(plots.slice_plots, sliced.slices, overall, flagged)
    return Section(
        result=task,
        counts=_counts(task),
        cards=tuple(_cards(task, sliced)),
        metrics=tuple(metrics),
        rest=tuple(name for name in every if name not in metrics),
        runs=tuple(runs),
        plots=tuple(_named(drawn, task)),
        slices=() if sliced is None else sliced.slices,
        slice_metrics=_slice_metrics(task),
        slice_plots=tuple(_named(sliced_plots, task)),
        sliced=sliced,
        best=tuple(best),
        worst=tuple(worst),
    )


def _named(drawn: Sequence[Plot], task: TaskResult) -> Sequence[Plot]:
    """Identifiers inside the SVGs differ between tasks too."""
    for plot in drawn:
        prefix = f"{task.task.label_name}-"
        plot.svg = (
            plot.svg.replace('id="', f'id="{prefix}').replace('href="#', f'href="#{prefix}').replace("url(#", f"url(#{prefix}")
        )
    return drawn


def _oracle(runs: Sequence[Scores]) -> list[Scores]:
    return [scores for scores in runs if scores.role == "oracle"]


def _slice_metrics(task: TaskResult) -> tuple[str, ...]:
    return ("auc", "auc_request", *(("log_loss", "predicted_over_observed") if task.task.model.is_probability else ()))


def _counts(task: TaskResult) -> tuple[str, ...]:
    counts = task.counts()
    said = [f"{counts[name]:,} {name}" for name in COUNTED if name in counts]
    if "rate" in counts:
        said.append(
            f"{counts['positives']:,} {task.task.label_name}s ({counts['rate']:.{2 if counts['rate'] >= 0.01 else 4}%})"
        )
    for name in ("requests", "users"):
        if f"{name}_with_both_classes" in counts:
            said.append(f"figures per {name[:-1]} are of the {counts[f'{name}_with_both_classes']:,} with both classes")
    if "rows_without_user" in counts:
        said.append(f"{counts['rows_without_user']:,} rows of nobody")
    if "rows_without_request" in counts:
        said.append(f"{counts['rows_without_request']:,} rows of no known request left out of figures per request")
    if "impressions" in counts:
        said.append(f"{NO_LISTS}; intervals by drawing {DRAWN[counts['drawn']]}")
    if counts["unlabelled_rows"]:
        said.append(f"{counts['unlabelled_rows']:,} rows without the label left out")
    return tuple(said)


def _cards(task: TaskResult, sliced: SliceResult | None) -> list[Card]:
    """The few figures to read first."""
    model = task.metrics[task.task.model.name]
    main = main_metric(task)
    cards = [Card(title(main), number(model[main].value, 3), f"95 % interval {bounds(model[main]) or '–'}")]
    baselines = [s for s in task.task.scores if s.role == "baseline" and main in task.metrics[s.name]]
    if baselines:
        best = max(baselines, key=lambda scores: task.metrics[scores.name][main].value)
        lead = next(c for c in task.comparisons if c.other == best.name and c.metric == main)
        unplaced = ", neither told the slots" if task.task.like_baselines.role == "any_slot" else ""
        cards.append(
            Card(f"over {best.name}", f"{lead.difference.value:+.3f}", f"the best baseline{unplaced}; {_said(lead.verdict())}")
        )
    for scores in _oracle(task.task.scores):
        ceiling = task.metrics[scores.name][main].value
        reached = (model[main].value - 0.5) / (ceiling - 0.5) if ceiling > 0.5 else float("nan")
        cards.append(Card("of what is possible", f"{reached:.0%}", f"between chance and the oracle's {ceiling:.3f}"))
    if "predicted_over_observed" in model:
        ratio = model["predicted_over_observed"]
        cards.append(Card("predicted / observed", number(ratio.value, 2), f"1 is right; interval {bounds(ratio, 2) or '–'}"))
    if sliced is not None:
        count = len(sliced.alarms)
        cards.append(Card("alarms", str(count), f"in {len(sliced.slices)} slices" if count else "no slice stands out"))
    return cards


def _said(verdict: str) -> str:
    if verdict in {"better", "worse"}:
        return f"significantly {verdict}"
    return "no significant difference" if verdict == "no difference" else verdict


def _learning(training: Path | None) -> list[Plot]:
    """Curves of every network out of the bundle's metrics.json, where training wrote them."""
    path = None if training is None else training / "metrics.json"
    if path is None or not path.exists():
        return []
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    curves = stored.get("curves") or {"1": stored.get("training", {}).get("evaluations", [])}
    return plots.learning_curves({network: rows for network, rows in curves.items() if len(rows) > 1})


def _list_plots(result: Evaluation, pictures: Pictures) -> list[Plot]:
    if result.lists is None:
        return []
    exposure = pictures.draw(plots.exposure, result.lists.exposures)
    return exposure + pictures.draw(plots.rates_by_cutoff, result.lists.metrics)


def _off_policy_plots(result: Evaluation, pictures: Pictures) -> list[Plot]:
    judged = result.off_policy
    if judged is None:
        return []
    drawn = pictures.draw(plots.overlap, judged.weights) if judged.matched else []
    if judged.estimates:
        named = {name: Interval(*value) for name, value in judged.estimates.items()}
        drawn += pictures.draw(plots.estimators, named, judged.logged)
    return drawn
