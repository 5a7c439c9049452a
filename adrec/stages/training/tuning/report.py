"""What a search leaves: the table of trials, and a page of the search and of what mattered."""

import csv
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any

from adrec.pages.figures import INK, MUTED, SERIES, Plot, drawing
from adrec.pages.page import Language, rendered
from adrec.stages.evaluation.show import title

COLUMNS = ("trial", "state", "value", "evaluations", "seconds", "fault")


def write_trials(rows: list[dict[str, Any]], keys: list[str], path: Path) -> None:
    """A CSV, a row a trial: COLUMNS, then one column a searched key."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow([*COLUMNS, *keys])
        for row in rows:
            values = [row["values"].get(key) for key in keys]
            written = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
            writer.writerow([*(row[name] for name in COLUMNS), *written])


def write_report(
    path: Path,
    name: str,
    rows: list[dict[str, Any]],
    summary: Mapping[str, Any],
    *,
    maximise: bool,
    following: str,
    language: Language,
) -> None:
    """The page: the search, what mattered, every trial with the best first. `summary` is what tune.json holds."""
    metric, best_value = title(summary["metric"]), summary["best_value"]
    counts = tuple(sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "fail"))
    known = [row for row in rows if row["value"] is not None]
    order = sorted(known, key=lambda row: (row["state"] != "complete", -row["value"] if maximise else row["value"]))
    importance: dict[str, float] = summary["importance"]
    said = [f"The best of {counts[0]} finished trials has a validation {metric} of {best_value:.4f}."]
    if importance:
        most = max(importance, key=lambda key: importance[key])
        said.append(f"What mattered most was {most}: {importance[most]:.0%} of the differences.")
    page = rendered(
        Path(str(files("adrec.stages.training.tuning") / "report.html.j2")),
        language,
        name=name,
        verdict=said,
        counts=(len(rows), *counts),
        written_on=datetime.now(UTC).date().isoformat(),
        plots=[_search(rows, metric, maximise), *([_shares(importance)] if importance else [])],
        rows=[*order, *(row for row in rows if row["value"] is None)],
        keys=list(summary["best"]),
        best=summary["best"],
        best_value=best_value,
        metric=metric,
        next=following,
        shown=shown,
        contents=[("search", "The search"), ("trials", "Trials"), ("best", "The best values")],
    )
    path.write_text(page, encoding="utf-8")


def shown(value: Any) -> str:
    """A searched value as people write it."""
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _search(rows: list[dict[str, Any]], metric: str, maximise: bool) -> Plot:
    with drawing("Trials in order", "The line is the best so far; crosses were stopped before their end.") as plot:
        for state, colour, marker in (("complete", SERIES[0], "o"), ("pruned", MUTED, "x")):
            known = [row for row in rows if row["state"] == state and row["value"] is not None]
            if known:
                trials, values = [row["trial"] for row in known], [row["value"] for row in known]
                plot.axes.plot(trials, values, color=colour, marker=marker, linestyle="none", label=state)
        complete = [row for row in rows if row["state"] == "complete"]
        best = list(accumulate((row["value"] for row in complete), max if maximise else min))
        if best:
            plot.axes.step([row["trial"] for row in complete], best, where="post", color=SERIES[1], label="best so far")
        plot.axes.set(xlabel="trial", ylabel=metric)
        plot.axes.xaxis.get_major_locator().set_params(integer=True)
        plot.axes.legend()
    return plot


def _shares(importance: Mapping[str, float]) -> Plot:
    names = sorted(importance, key=lambda key: importance[key])
    caption = "Share of the metric's variance that each setting explains (fANOVA)."
    with drawing("What mattered", caption, height=0.7 + 0.26 * len(names)) as plot:
        plot.axes.barh([name.split(".")[-1] for name in names], [importance[name] for name in names], color=SERIES[0])
        plot.axes.tick_params(axis="y", length=0, labelcolor=INK)
        plot.axes.set(xlabel="share", xlim=(0, 1))
        plot.axes.grid(axis="y", visible=False)
    return plot
