"""Results as tables on a terminal, and the words for metrics that terminal and report share."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adrec.metrics.intervals.significance import LEVEL, Interval
from adrec.stages.candidate_recall import recall_table
from adrec.stages.evaluation.judge import Comparison, TaskResult, direction
from adrec.stages.evaluation.off_policy.arms import ArmsResult, Pair
from adrec.stages.evaluation.reading.tasks import Role, Scores
from adrec.stages.evaluation.result import Evaluation
from adrec.stages.evaluation.support import FEWEST
from adrec.tables import best_marked

TITLES = {
    "auc": "AUC",
    "auc_request": "AUC per request",
    "auc_user": "AUC per user",
    "gauc": "GAUC",
    "pr_auc": "PR-AUC",
    "mrr": "MRR",
    "mrr_all": "MRR of all clicks",
    "log_loss": "log loss",
    "normalised_entropy": "normalised entropy",
    "brier": "Brier",
    "ece": "ECE",
    "predicted_over_observed": "predicted / observed",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "mse": "MSE",
    "rmse": "RMSE",
    "mae": "MAE",
    "coverage": "catalogue coverage",
    "gini": "Gini of exposures",
    "novelty_bits": "novelty (bits)",
    "ips": "IPS",
    "clipped_ips": "clipped IPS",
    "snips": "self-normalised IPS",
    "direct_method": "direct method",
    "doubly_robust": "doubly robust",
    "sn_doubly_robust": "self-normalised doubly robust",
    "switch_doubly_robust": "switch doubly robust",
}
OFF_POLICY_BIAS = "bias: what clipping, or the model, makes of the unbiased estimate, whose interval is spanned too"
HEADLINE = ("auc", "auc_request", "auc_user", "mrr", "ndcg", "log_loss", "normalised_entropy", "ece", "predicted_over_observed")
COUNTED = ("rows", "impressions", "requests", "users", "ads", "tests")
"""How much is judged, in the order in which it is told."""
DRAWN = {"ads": "ads whole", "tests": "tests whole", "counts": "the counts (too few ads to stand for others)"}
"""What intervals of a log of counts are made of."""
_NO_SLOTS = "\nbaselines are not told the slots: compare them with any_slot"
NO_LISTS = "rows are counts: no lists, so no figures per request or user"
_SHORT = {
    "auc_request": "AUC/req",
    "auc_user": "AUC/user",
    "log_loss": "logloss",
    "normalised_entropy": "NE",
    "predicted_over_observed": "pred/obs",
}
_REGRESSION = ("rmse", "mae", "mse", "predicted_over_observed")
_ORDER: dict[Role, int] = {"model": 0, "any_slot": 1, "against": 1, "baseline": 2, "oracle": 3}


def title(metric: str) -> str:
    """The metric's name for people: `ndcg@10` -> `nDCG@10`."""
    name, at, k = metric.partition("@")
    if at:
        return {"ndcg": "nDCG", "map": "MAP", "hit_rate": "hit rate"}.get(name, name) + at + k
    return TITLES.get(metric, metric.replace("_", " "))


def headline_metrics(result: TaskResult, cutoffs: Sequence[int]) -> list[str]:
    """The columns of the headline table: those of the list that any run has."""
    names = HEADLINE if result.task.kind == "binary" else _REGRESSION
    wanted = [f"{name}@{cutoffs[-1]}" if name == "ndcg" else name for name in names]
    found = [name for name in wanted if any(name in metrics for metrics in result.metrics.values())]
    # Per request and per user say the same kind of thing; users stand in where requests are no lists.
    return [name for name in found if name != "auc_user" or "auc_request" not in found]


def ordered_runs(result: TaskResult) -> list[Scores]:
    """The model, the runs compared, the baselines from best to worst AUC, the oracle."""

    def key(scores: Scores) -> tuple[int, float]:
        best = result.metrics[scores.name].get("auc", Interval(0.0, 0.0, 0.0)).value
        return (_ORDER[scores.role], -best if scores.role == "baseline" else 0.0)

    return sorted(result.task.scores, key=key)


def number(value: float, digits: int = 4) -> str:
    """Fixed digits for values near 1, fewer for large ones, `–` where there is none."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 100:
        return f"{value:,.1f}"
    return f"{value:.{digits}f}"


def bounds(interval: Interval, digits: int = 3) -> str:
    """`.612 to .650`, empty where the interval is unknown."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    return f"{number(interval.low, digits)} to {number(interval.high, digits)}"


def p_value(p: float) -> str:
    """`<0.001` rather than a row of zeros."""
    if not math.isfinite(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def render(result: Evaluation) -> Iterable[RenderableType]:
    """Tables and lines for the terminal."""
    if result.catalogue is not None:
        yield from result.catalogue.render(result.name)
    for task in result.tasks:
        yield _headline(result, task)
        yield from _comparisons(task)
        if task.task.label_name in result.late:
            yield Text(result.late[task.task.label_name].line(task.task.label_name))
        sliced = result.slices.get(task.task.label_name)
        if sliced is not None:
            for alarm in sliced.alarms:
                where, p = f"{alarm.column} = {alarm.value}", p_value(alarm.adjusted_p)
                yield Text.assemble(("alarm", "yellow"), f" {where}: {alarm.message} (adjusted p {p})")
        arms = result.arms.get(task.task.label_name)
        if arms is not None:
            yield from _arms(arms)
    if result.lists is not None:
        table = Table(title=f"Lists: {result.lists.what}, {result.lists.lists:,} lists", title_justify="left")
        for name in ("metric", "value", "interval"):
            table.add_column(name, justify="left" if name == "metric" else "right")
        for metric, value in result.lists.metrics.items():
            table.add_row(title(metric), number(value.value), bounds(value))
        yield table
    yield from recall_table(result.candidate_recall)
    if result.off_policy is not None:
        yield from _off_policy(result)
    if result.drift is not None:
        yield f"data, {result.drift.before} → {result.drift.after}: {result.drift.verdict()}"
    report = " and report.html" if result.config.report else ""
    yield f"metrics.json{report} in {result.output}"


def _headline(result: Evaluation, task: TaskResult) -> Table:
    counts = task.counts()
    what = ", ".join(
        f"{counts[name]:,} {name}" + (f" ({counts[carry]:,} with both classes)" if carry in counts else "")
        for name in COUNTED
        if name in counts
        for carry in [f"{name}_with_both_classes"]
    )
    rate = f", rate {counts['rate']:.{4 if counts['rate'] >= 0.01 else 6}f}" if "rate" in counts else ""
    nobodys, lone = counts.get("rows_without_user", 0), counts.get("rows_without_request", 0)
    rate += f"; {nobodys:,} rows of nobody" if nobodys else ""
    rate += f"; {lone:,} rows of no known request are in no figure per request" if lone else ""
    unplaced = _NO_SLOTS if task.task.like_baselines.role == "any_slot" else ""
    table = Table(
        title=f"{result.name}: {task.task.label_name} ({what}{rate})",
        caption=f"± half of the {LEVEL:.0%} interval ({_drawn(counts)}){unplaced}",
        title_justify="left",
        caption_justify="left",
        box=box.HORIZONTALS,
        pad_edge=False,
        collapse_padding=True,
    )
    metrics = [name for name in headline_metrics(task, result.config.cutoffs) if name not in {"mrr", "ece"}]
    table.add_column("run", no_wrap=True)
    for metric in metrics:
        table.add_column(_SHORT.get(metric, title(metric)), justify="right", no_wrap=True)
    runs, is_vague = ordered_runs(task), False
    best = {metric: best_value(task, metric) for metric in metrics}
    for scores, following in zip(runs, [*runs[1:], None], strict=True):
        cells = []
        for metric in metrics:
            value = task.metrics[scores.name].get(metric)
            known = value is not None and scores.role == "model" and math.isfinite(value.high - value.low)
            half = f"\n±{(value.high - value.low) / 2:.3f} " if value is not None and known else ""
            if value is not None and scores.role == "model" and not known and math.isfinite(value.value):
                half, is_vague = "\n– ", True
            is_best = value is not None and value.value == best[metric]
            figure = Text("– ") if value is None else best_marked(number(value.value), is_best and scores.role != "oracle")
            cells.append(figure.append(half, style="not bold"))
        last = following is None or _ORDER[following.role] // 2 != _ORDER[scores.role] // 2 or following.role == "oracle"
        table.add_row(scores.name, *cells, style="dim" if scores.role == "oracle" else "", end_section=last)
    if is_vague:
        table.caption = f"{table.caption}; – where fewer than {FEWEST} units carry a figure, or no draw differs"
    return table


def best_value(task: TaskResult, metric: str) -> float:
    """The best value of a metric over all runs but the oracle, for a mark; NaN where no way is better or one stands alone."""
    runs = [scores.name for scores in task.task.scores if scores.role != "oracle"]
    values = [task.metrics[run][metric].value for run in runs if metric in task.metrics[run]]
    way = direction(metric)
    if not way or len(values) < 2:
        return math.nan
    return min(values) if way == "lower" else max(values)


def _drawn(counts: dict[str, Any]) -> str:
    if "drawn" in counts:
        return f"bootstrap, drawing {DRAWN[counts['drawn']]}; {NO_LISTS}"
    return "bootstrap over users" + (", requests or rows of nobody" if counts.get("rows_without_user") else "")


def _comparisons(task: TaskResult) -> Iterable[RenderableType]:
    shown = [c for c in task.comparisons if c.role == "against"]
    if not shown:
        return
    table = Table(title="Paired differences: model minus other", title_justify="left")
    for name in ("other", "metric", "difference", "interval", "adj. p", "model is"):
        table.add_column(name, justify="left" if name in {"other", "metric", "model is"} else "right")
    for c in shown:
        value, interval, _, adjusted = difference_cells(c)
        table.add_row(c.other, _SHORT.get(c.metric, title(c.metric)), value, interval, adjusted, c.verdict())
    yield table


TOLD_ARMS = 10
"""Pairs of arms shown to people; metrics.json has more."""


def _arms(arms: ArmsResult) -> Iterable[RenderableType]:
    table = Table(title=arms_title(arms), caption=ARMS_CAPTION, title_justify="left", caption_justify="left")
    for name in ("run", "ordered rightly", "interval", "rate of arms put above the mean", "interval"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for name, judged in arms.runs.items():
        ordered, lift = judged.ordered_rightly, judged.lift_above_mean
        cells = (number(ordered.value, 3), bounds(ordered), number(lift.value, 3), bounds(lift))
        table.add_row(name, *cells, style="bold" if judged.role == "model" else "dim" if judged.role == "oracle" else "")
    yield table
    pairs = Table(title="The surest differences of click rates", title_justify="left")
    for name in ("test", "better", "other", "rates", "difference", "interval", "adj. p", "model says"):
        pairs.add_column(name, justify="left" if name in {"test", "better", "other", "model says"} else "right")
    for pair in arms.told[:TOLD_ARMS]:
        pairs.add_row(*arm_cells(pair))
    yield pairs


ARMS_CAPTION = (
    "Ordered rightly: of the pairs whose difference is significant (Holm within a test). "
    "Rate: over that of the arms' own tests; 1 is no better than drawing an arm."
)


def arms_title(arms: ArmsResult) -> str:
    """How many tests, arms and pairs."""
    return (
        f"Arms of {arms.tests:,} tests (by {arms.by}): {arms.arms:,} arms, {arms.pairs:,} pairs, "
        f"{arms.sure:,} with a significant difference in {arms.sure_tests:,} tests"
    )


def arm_cells(pair: Pair) -> tuple[str, ...]:
    """Test, better arm, other arm, rates, difference, interval, adjusted p, what the model says."""
    says = {1.0: "the same", 0.0: "the other"}.get(pair.agrees, "neither")
    ends = f"{pair.low:+.5f} to {pair.high:+.5f}"
    return (
        pair.test, pair.arm, pair.other, f"{pair.rate:.5f}, {pair.other_rate:.5f}", f"{pair.difference:+.5f}", ends,
        p_value(pair.adjusted_p), says,
    )  # fmt: skip


def difference_cells(comparison: Comparison) -> tuple[str, str, str, str]:
    """Value, interval, p and adjusted p as text."""
    d = comparison.difference
    interval = f"{d.low:+.4f} to {d.high:+.4f}" if math.isfinite(d.low) else "–"
    return f"{d.value:+.4f}", interval, p_value(d.p_value), p_value(comparison.adjusted_p)


def _off_policy(result: Evaluation) -> Iterable[RenderableType]:
    judged = result.off_policy
    assert judged is not None
    head = (
        f"Off-policy: {judged.policy} ({judged.matched:,} of {judged.rows:,} logged rows match, worth {judged.effective:,.0f})"
    )
    if judged.not_judged:
        head += f"\n{judged.not_judged:,} more rows have no known click, no list, or a missing slot above: not judged"
    if judged.refused:
        yield Text.assemble((f"{head}\nno estimate:", "yellow"), f" {judged.refused}")
        return
    table = Table(title=head, title_justify="left", caption=OFF_POLICY_BIAS, caption_justify="left")
    for name in ("estimator", "clicks per shown ad", "interval", "bias"):
        table.add_column(name, justify="left" if name == "estimator" else "right")
    table.add_row("the logs themselves", number(judged.logged.value), bounds(judged.logged, 4), "", style="dim")
    for name, value in judged.estimates.items():
        bias = f"{judged.bias[name]:+.4f}" if name in judged.bias else ""
        table.add_row(title(name), number(value.value), bounds(value, 4), bias)
    yield table


def popularity(seen: pa.Table) -> pa.Table | None:
    """`ad_id`, `impressions` out of a bundle's seen.parquet; None where it is laid out otherwise."""
    if not {"kind", "id", "impressions"} <= set(seen.column_names):
        return None
    ads = seen.filter(pc.equal(seen["kind"], "ad"))
    return pa.table({"ad_id": ads["id"], "impressions": ads["impressions"]})


def finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
