"""The page of a comparison: a verdict, a table for all runs of the same rows, and how far each lies behind the best."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from adrec.pages.figures import INK, SERIES, Plot, drawing
from adrec.pages.page import Language, rendered
from adrec.stages.evaluation.compare_result import CompareResult, Run, best_of
from adrec.stages.evaluation.show import number, title


def page_of(result: CompareResult, language: Language) -> str:
    """The page as HTML."""
    main = result.metrics[0]
    groups = [
        (group, result.about(group), {metric: best_of(metric, group) for metric in result.metrics}, _behind(group, main))
        for group in result.groups
    ]
    newest = max(run.path.stat().st_mtime for run in result.runs)
    return rendered(
        Path(str(files("adrec.stages.evaluation") / "compare.html.j2")),
        language,
        {"title_of": title, "number": number},
        result=result,
        groups=groups,
        verdict=_verdict(result, main),
        newest=datetime.fromtimestamp(newest, UTC).date().isoformat(),
        contents=[(f"group-{place}", about) for place, (_, about, _, _) in enumerate(groups, 1)]
        + ([("settings", "Set differently")] if result.differing else []),
    )


def _verdict(result: CompareResult, main: str) -> list[str]:
    group = result.groups[0]
    first = group[0]
    said = [f"Of {len(group)} runs on the same rows, {first.name} has the best {title(main)}: {number(first.values[main])}."]
    if len(group) == 1:
        said = [f"{first.name} has no run beside it that was judged on the same rows."]
    elif main in first.half_widths and main in group[1].values:
        gap = abs(first.values[main] - group[1].values[main])
        within = gap < first.half_widths[main]
        said.append(f"The next, {group[1].name}, lies {'within' if within else 'outside'} its interval.")
    return said


def _behind(group: Sequence[Run], metric: str) -> list[Plot]:
    """Each run's distance to the first, with the half width of its own interval."""
    runs = [run for run in group if math.isfinite(run.values.get(metric, math.nan))]
    if len(runs) < 2:
        return []
    caption = "The run's figure minus that of the first; bars: the interval of the run alone."
    with drawing(f"Distance in {title(metric)}", caption, height=0.7 + 0.26 * len(runs)) as plot:
        for place, run in enumerate(reversed(runs)):
            value, half = run.values[metric] - runs[0].values[metric], run.half_widths.get(metric, 0.0)
            plot.axes.plot([value - half, value + half], [place, place], color=SERIES[0], linewidth=2, solid_capstyle="round")
            plot.axes.plot(value, place, marker="o", markersize=5, color=SERIES[0])
        plot.axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        plot.axes.set_yticks(range(len(runs)), [run.name[-28:] for run in reversed(runs)])
        plot.axes.tick_params(axis="y", length=0, labelcolor=INK)
        plot.axes.set(xlabel="difference", ylim=(-0.6, len(runs) - 0.4))
        plot.axes.grid(axis="y", visible=False)
    return [plot]
