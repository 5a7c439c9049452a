"""The report's plots, a function each: arrays in, a Plot out."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from adrec.metrics.calibration import reliability
from adrec.metrics.curves import Curve, lift, precision_recall, roc
from adrec.metrics.intervals.significance import Interval
from adrec.metrics.ties import Floats
from adrec.pages.figures import GRID, INK, MUTED, SERIES, SURFACE, Plot, drawing
from adrec.stages.evaluation.judge import TaskResult
from adrec.stages.evaluation.reading.tasks import Scores
from adrec.stages.evaluation.show import title
from adrec.stages.evaluation.slices import Slice


def beyond_chance_plot(result: TaskResult, runs: Sequence[Scores]) -> Plot:
    """The ROC curve minus its diagonal: near-identical curves lie apart here."""
    caption = "Share of clicks caught beyond that of non-clicks let through: the ROC curve minus its diagonal."
    with drawing("Beyond chance", caption) as plot:
        _lines(plot.axes, result, runs, _beyond_chance)
        plot.axes.axhline(0, color=MUTED, linewidth=0.8, linestyle=":")
        plot.axes.set(xlabel="share of non-clicks let through", ylabel="clicks caught beyond it", xlim=(0, 1))
        plot.axes.margins(y=0.25)
        plot.axes.legend(loc="upper right")
    return plot


def leads_plot(result: TaskResult, metric: str) -> Plot | None:
    """The model minus every other run on a metric, with intervals; None where nothing is compared."""
    compared = [c for c in result.comparisons if c.metric == metric and c.role != "oracle" and np.isfinite(c.difference.value)]
    if not compared:
        return None
    compared = sorted(compared, key=lambda c: -c.difference.value)[-_MOST_LEADS:]
    caption = "The model minus each other run, on the same draws. Grey: no significant difference."
    with drawing(f"Lead in {title(metric)}", caption, height=0.7 + 0.22 * len(compared)) as plot:
        for place, c in enumerate(compared):
            colour = {"better": SERIES[0], "worse": SERIES[1]}.get(c.verdict(), MUTED)
            _whisker(plot.axes, Interval(c.difference.value, c.difference.low, c.difference.high), place, colour)
        plot.axes.axvline(0, color=INK, linewidth=0.9, linestyle=":")
        plot.axes.set_yticks(range(len(compared)), [_short(c.other) for c in compared])
        plot.axes.tick_params(axis="y", length=0, labelcolor=INK)
        plot.axes.set(ylim=(-0.6, len(compared) - 0.4), xlabel="difference")
        plot.axes.grid(axis="y", visible=False)
    return plot


_MOST_LEADS = 15


def precision_plot(result: TaskResult, runs: Sequence[Scores]) -> Plot:
    """Precision by recall."""
    frame = result.frame
    with drawing("Precision and recall", "The dotted line is the click rate: what showing everything gives.") as plot:
        found = _lines(plot.axes, result, runs, _settled_precision)
        top = max(float(curve.y.max(initial=0)) for curve in found)
        plot.axes.axhline(frame.positives / frame.impressions, color=MUTED, linewidth=0.8, linestyle=":")
        plot.axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, min(1.02, 1.1 * top)))
        plot.axes.legend(loc="upper right")
    return plot


def lift_plot(result: TaskResult, runs: Sequence[Scores]) -> Plot:
    """Click rate of the best-scored share, as a multiple of the overall rate."""
    with drawing("Lift", "The click rate of the best-scored share, as a multiple of showing everything.") as plot:
        _lines(plot.axes, result, runs, _settled_lift)
        plot.axes.axhline(1, color=MUTED, linewidth=0.8, linestyle=":")
        plot.axes.set(xlabel="share of impressions, best first", ylabel="times the click rate", xlim=(0, 1), ylim=(0, None))
        plot.axes.legend(loc="upper right")
    return plot


CURVES = (beyond_chance_plot, precision_plot, lift_plot)


def reliability_plot(result: TaskResult, runs: Sequence[Scores]) -> Plot:
    """Observed against predicted, with Wilson intervals, for runs whose scores are probabilities."""
    with drawing("Reliability", "On the diagonal, predicted probabilities come true. Bars: 95 % intervals.") as plot:
        most = 0.0
        for number, scores in enumerate(runs):
            table = reliability(result.frame.labels, scores.values, weights=result.frame.weights)
            colour = SERIES[number]
            if number == 0:
                error = _bars(table.observed, table.low, table.high)
                plot.axes.errorbar(
                    table.predicted, table.observed, error, color=colour, linewidth=1.4, elinewidth=1, marker="o",
                    markersize=4, label=scores.name, zorder=3,
                )  # fmt: skip
            else:
                plot.axes.plot(
                    table.predicted, table.observed, color=colour, linewidth=1.1, marker=".", markersize=4, label=scores.name
                )
            most = max(most, float(table.predicted.max()), float((table.high if number == 0 else table.observed).max()))
        limit = min(1.0, 1.05 * most)
        plot.axes.plot([0, limit], [0, limit], color=MUTED, linewidth=0.8, linestyle=":")
        plot.axes.set(xlabel="predicted", ylabel="observed", xlim=(0, limit), ylim=(0, limit))
        handles, names = plot.axes.get_legend_handles_labels()
        first = sorted(range(len(names)), key=lambda place: names[place] != runs[0].name)
        plot.axes.legend([handles[place] for place in first], [names[place] for place in first], loc="upper left")
    return plot


def distributions(result: TaskResult, scores: Scores) -> Plot:
    """Histogram of the model's scores, of clicks and of the rest, each summing to 1."""
    labels = result.frame.labels > 0
    values = np.asarray(scores.values, dtype=np.float64)
    weights = np.ones(len(labels)) if result.frame.weights is None else result.frame.weights
    highest = max(np.quantile(values, 0.998), np.quantile(values[labels], 0.99))
    edges = np.linspace(values.min(), highest + 1e-9, 46)
    caption = "Share of each class by score; the less they overlap, the better. The last bar holds all higher scores."
    with drawing("Score distributions", caption) as plot:
        for number, (name, part) in enumerate((("clicks", labels), ("the rest", ~labels))):
            own = weights[part]
            share = np.histogram(np.minimum(values[part], edges[-1]), edges, weights=own)[0] / max(own.sum(), 1)
            colour = SERIES[0] if number == 0 else MUTED
            plot.axes.stairs(share, edges, fill=True, color=colour, alpha=0.22)
            plot.axes.stairs(share, edges, color=colour, linewidth=1.5, label=name)
        plot.axes.set(xlabel="score", ylabel="share")
        plot.axes.legend(loc="upper right")
    return plot


def slice_plots(slices: Sequence[Slice], overall: float, flagged: set[tuple[str, str]]) -> list[Plot]:
    """AUC with its interval for every part of a column; one plot a column, a line at the AUC of all rows."""
    plots = []
    for column, group in groupby((slice_ for slice_ in slices if slice_.column != "day"), key=lambda slice_: slice_.column):
        parts = [slice_ for slice_ in group if np.isfinite(slice_.metrics["auc"].value)]
        if not parts:
            continue
        with drawing(column.replace("_", " "), height=0.62 + 0.24 * len(parts)) as plot:
            for place, slice_ in enumerate(reversed(parts)):
                alarmed = (slice_.column, slice_.value) in flagged
                _whisker(
                    plot.axes, slice_.metrics["auc"], place, MUTED if slice_.small else SERIES[1] if alarmed else SERIES[0]
                )
                if slice_.lead is not None and np.isfinite(slice_.lead.value):
                    theirs = slice_.metrics["auc"].value - slice_.lead.value
                    plot.axes.plot(theirs, place, marker="|", markersize=9, markeredgewidth=1.6, color=SERIES[2])
            plot.axes.axvline(overall, color=INK, linewidth=0.9, linestyle=":")
            plot.axes.set_yticks(
                range(len(parts)), [f"{_short(slice_.value, 22)} ({slice_.rows:,})" for slice_ in reversed(parts)]
            )
            plot.axes.tick_params(axis="y", length=0, labelcolor=INK)
            plot.axes.set(ylim=(-0.6, len(parts) - 0.4), xlabel="AUC")
            plot.axes.grid(axis="y", visible=False)
            plot.axes.spines["left"].set_visible(False)
        plots.append(plot)
    return plots


def by_day(slices: Sequence[Slice]) -> Plot | None:
    """AUC, and predicted over observed, day by day; None with fewer than two days."""
    days = sorted(
        (slice_ for slice_ in slices if slice_.column == "day" and slice_.value[:1].isdigit()), key=lambda slice_: slice_.value
    )
    if len(days) < 2:
        return None
    has_ratio = all("predicted_over_observed" in slice_.metrics for slice_ in days)
    metrics = ["auc", "predicted_over_observed"][: 2 if has_ratio else 1]
    with drawing("By day", "Bands: intervals.", height=1.5 * len(metrics), rows=len(metrics)) as plot:
        axes = plot.axes if len(metrics) > 1 else [plot.axes]
        x = np.arange(len(days))
        for axis, metric in zip(axes, metrics, strict=True):
            value, low, high = (
                np.array([getattr(day.metrics[metric], end) for day in days]) for end in ("value", "low", "high")
            )
            axis.fill_between(x, low, high, color=SERIES[0], alpha=0.18, linewidth=0)
            axis.plot(x, value, color=SERIES[0], marker="o", markersize=3.5)
            axis.set_ylabel(title(metric))
            if metric == "predicted_over_observed":
                axis.axhline(1, color=MUTED, linewidth=0.8, linestyle=":")
        step = max(1, len(days) // 7)
        axes[-1].set_xticks(x[::step], [day.value[5:] for day in days[::step]])
    return plot


def learning_curves(networks: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Plot]:
    """A validation metric a plot, a line for each network that was trained; its best step is marked."""
    names = ["valid_auc", "valid_log_loss"]
    plots = []
    for name in names:
        curves = {network: _points(rows, name) for network, rows in networks.items()}
        curves = {network: points for network, points in curves.items() if len(points)}
        if not curves:
            continue
        words = title(name.removeprefix("valid_"))
        caption = "On validation rows, during training; the dot is the best of each network."
        with drawing(f"Learning: {words}", caption) as plot:
            for number, (network, points) in enumerate(curves.items()):
                colour, values = SERIES[number % len(SERIES)], points[:, 1]
                best = int(np.argmin(values) if "loss" in name else np.argmax(values))
                plot.axes.plot(points[:, 0], values, color=colour, label=f"seed {network}: {values[best]:.4f}")
                plot.axes.plot(points[best, 0], values[best], color=colour, marker="o")
            plot.axes.margins(y=0.18)
            plot.axes.set(xlabel="step", ylabel=words)
            plot.axes.legend()
        plots.append(plot)
    return plots


def _points(rows: Sequence[Mapping[str, float]], name: str) -> Floats:
    """(K, 2) steps and finite values."""
    found = np.array([(row["step"], row.get(name, np.nan)) for row in rows], dtype=np.float64).reshape(-1, 2)
    return found[np.isfinite(found[:, 1])]


def exposure(exposures: Floats) -> Plot:
    """The Lorenz curve of exposures: the share of all showings that the most shown ads take."""
    shown = np.concatenate([[0.0], np.cumsum(np.sort(exposures)[::-1])])
    share = np.linspace(0, 1, len(shown))
    at = np.unique(np.linspace(0, len(shown) - 1, 300).astype(int))
    caption = "Share of all showings on the most shown ads. The dotted line: every ad is shown equally often."
    with drawing("Exposure of the catalogue", caption) as plot:
        plot.axes.plot(share[at], shown[at] / max(shown[-1], 1e-300), color=SERIES[0])
        plot.axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
        plot.axes.set(
            xlabel="share of the catalogue, most shown first", ylabel="share of showings", xlim=(0, 1), ylim=(0, 1.02)
        )
    return plot


def rates_by_cutoff(metrics: Mapping[str, Interval]) -> Plot | None:
    """Hit rate, recall and nDCG by cutoff; None where the clicks are not known."""
    names = [name for name in ("hit_rate", "recall", "ndcg") if any(metric.startswith(f"{name}@") for metric in metrics)]
    if not names:
        return None
    with drawing("Against clicks", "By how many ads of the list are looked at. Bars: intervals over users.") as plot:
        for number, name in enumerate(names):
            found = sorted(
                (int(metric.split("@")[1]), value) for metric, value in metrics.items() if metric.startswith(f"{name}@")
            )
            k = np.array([cutoff for cutoff, _ in found])
            value, low, high = (np.array([getattr(item, end) for _, item in found]) for end in ("value", "low", "high"))
            label = title(f"{name}@k").removesuffix("@k")
            error = _bars(value, low, high)
            plot.axes.errorbar(k, value, error, color=SERIES[number], marker="o", markersize=4, elinewidth=1, label=label)
        plot.axes.set(xlabel="k", ylim=(0, None), xticks=k)
        plot.axes.legend()
    return plot


def overlap(weights: Floats) -> Plot:
    """How the importance weights spread: the share of all weight that the heaviest rows carry."""
    w = np.sort(weights)[::-1]
    share = np.cumsum(w) / max(w.sum(), 1e-300)
    at = np.unique(np.geomspace(1, len(w), 200).astype(int))
    caption = "Share of all weight on the heaviest logged rows. A curve at the upper left: few rows decide."
    with drawing("Overlap of the policies", caption) as plot:
        plot.axes.plot(at / len(w), share[at - 1], color=SERIES[0])
        plot.axes.set(xscale="log", xlabel="share of logged rows, heaviest first", ylabel="share of weight", ylim=(0, 1.02))
        plot.axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    return plot


def estimators(found: Mapping[str, Interval], logged: Interval) -> Plot:
    """Every off-policy estimate with its interval, and the logs' own rate as a band."""
    names = list(found)
    with drawing("Estimated click rate", "The band is what the logging policy earned.", height=0.8 + 0.26 * len(names)) as plot:
        plot.axes.axvspan(logged.low, logged.high, color=GRID, linewidth=0)
        for place, name in enumerate(reversed(names)):
            _whisker(plot.axes, found[name], place, SERIES[0])
        plot.axes.set_yticks(range(len(names)), [title(name) for name in reversed(names)])
        plot.axes.tick_params(axis="y", length=0, labelcolor=INK)
        plot.axes.set(xlabel="clicks per shown ad", ylim=(-0.6, len(names) - 0.4))
        plot.axes.grid(axis="y", visible=False)
    return plot


def _beyond_chance(labels: Floats, scores: Floats, weights: Floats | None) -> Curve:
    curve = roc(labels, scores, weights=weights)
    return Curve(curve.x, curve.y - curve.x)


def _settled_precision(labels: Floats, scores: Floats, weights: Floats | None) -> Curve:
    return _settled(precision_recall(labels, scores, weights=weights))


def _settled_lift(labels: Floats, scores: Floats, weights: Floats | None) -> Curve:
    return _settled(lift(labels, scores, weights=weights))


def _settled(curve: Curve) -> Curve:
    """From 1 % on: the first few rows make a rate jump between 0 and 1."""
    kept = curve.x >= 0.01
    return Curve(curve.x[kept], curve.y[kept])


def _lines(axes: Any, result: TaskResult, runs: Sequence[Scores], make: Callable[..., Curve]) -> list[Curve]:
    found = []
    for number, scores in enumerate(runs):
        curve = make(result.frame.labels, scores.values, weights=result.frame.weights)
        is_oracle = scores.role == "oracle"
        axes.plot(
            *curve,
            color=INK if is_oracle else SERIES[number],
            linewidth=1.1 if is_oracle else 2.0 if number == 0 else 1.3,
            linestyle="--" if is_oracle else "-",
            zorder=3 if number == 0 else 2,
            label=scores.name,
        )
        found.append(curve)
    return found


def _bars(value: Floats, low: Floats, high: Floats) -> list[Floats]:
    """Lengths of error bars (K,) below and above. An end on the wrong side of the value is no bar; matplotlib refuses it."""
    return [np.maximum(value - low, 0), np.maximum(high - value, 0)]


def _whisker(axes: Any, value: Interval, place: int, colour: str) -> None:
    if np.isfinite(value.low):
        axes.plot([value.low, value.high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot(value.value, place, marker="o", markersize=6, color=colour, markeredgecolor=SURFACE, markeredgewidth=1)


def _short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
