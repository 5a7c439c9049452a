"""What a report says first: the outcome in a sentence or four."""

from collections.abc import Iterator

from adrec.stages.evaluation.judge import TaskResult
from adrec.stages.evaluation.result import Evaluation
from adrec.stages.evaluation.show import bounds, number, title
from adrec.stages.evaluation.slices import SliceResult, best_baseline


def verdict(result: Evaluation) -> list[str]:
    """Sentences of the first task; of lists, ranks and the policy where there is no task."""
    said: list[str] = []
    if result.tasks:
        task = result.tasks[0]
        said += _of_task(task, result.slices.get(task.task.label_name))
    if result.catalogue is not None and not said:
        metric, value = next(iter(result.catalogue.runs["model"].items()))
        said.append(f"Of held-out clicks ranked among all ads, {title(metric)} is {number(value.value, 3)}.")
    if result.lists is not None and not said:
        said.append(f"{result.lists.lists:,} lists with {result.lists.rows:,} ads shown are judged.")
    if result.off_policy is not None:
        judged = result.off_policy
        if judged.refused:
            said.append("What this policy would have earned cannot be said from these logs.")
        elif judged.estimates:
            value = next(iter(judged.estimates.values()))
            said.append(
                f"This policy would have earned {number(value.value)} clicks per shown ad; the logs earned"
                f" {number(judged.logged.value)}."
            )
    if result.drift is not None:
        said.append(result.drift.sentences()[-1])
    return said


def main_metric(task: TaskResult) -> str:
    """The one figure to read first."""
    model = task.metrics[task.task.model.name]
    return next((name for name in ("auc_request", "auc", "rmse") if name in model), next(iter(model)))


def _of_task(task: TaskResult, sliced: SliceResult | None) -> Iterator[str]:
    main, model = main_metric(task), task.metrics[task.task.model.name]
    interval = bounds(model[main])
    yield f"{title(main)} is {number(model[main].value, 3)}" + (f" ({interval})." if interval else ".")
    rivals = best_baseline(task) if task.task.kind == "binary" else []
    if rivals:
        best = max(
            (scores for scores in task.task.scores if scores.role == "baseline" and main in task.metrics[scores.name]),
            key=lambda scores: task.metrics[scores.name][main].value,
            default=None,
        )
        lead = next((c for c in task.comparisons if best is not None and c.other == best.name and c.metric == main), None)
        if best is not None and lead is not None:
            said = {
                "better": f"The model is significantly better than the best baseline, {best.name}, by",
                "worse": f"The model is significantly worse than the best baseline, {best.name}, by",
                "no difference": f"Between the model and the best baseline, {best.name}, there is no significant difference:",
            }.get(lead.verdict(), f"There are too few rows to compare the model with the best baseline, {best.name}:")
            yield f"{said} {lead.difference.value:+.3f}."
    ratio = model.get("predicted_over_observed")
    if ratio is not None:
        if ratio.low <= 1 <= ratio.high or abs(ratio.value - 1) < 0.02:
            yield f"Its probabilities come true: {number(ratio.value, 2)} clicks predicted for each one observed."
        else:
            many = "high" if ratio.value > 1 else "low"
            yield f"Its probabilities are too {many}: {number(ratio.value, 2)} clicks predicted for each one observed."
    if sliced is not None and sliced.slices:
        count = len(sliced.alarms)
        yield f"{count} alarms in {len(sliced.slices)} slices." if count else f"None of {len(sliced.slices)} slices stands out."
