"""What a search leaves: the table of trials, the best config, and a plot of the search and of what mattered."""

import csv
import json
from pathlib import Path
from typing import Any

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


def plot(rows: list[dict[str, Any]], importance: dict[str, float], *, metric: str, maximise: bool, path: Path) -> None:
    """Left: the metric of each trial and the best so far. Right: the share of variance each key explains."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    search, shares = figure.subplots(1, 2, width_ratios=(3, 2))
    for state, colour, marker in (("complete", "tab:blue", "o"), ("pruned", "tab:gray", "x")):
        shown = [row for row in rows if row["state"] == state and row["value"] is not None]
        if shown:
            trials, values = [row["trial"] for row in shown], [row["value"] for row in shown]
            search.scatter(trials, values, c=colour, marker=marker, label=state)
    complete = [row for row in rows if row["state"] == "complete"]
    best: list[float] = []
    for row in complete:
        better = max if maximise else min
        best.append(better(row["value"], best[-1]) if best else row["value"])
    search.step([row["trial"] for row in complete], best, where="post", color="tab:orange", label="best so far")
    search.set_xlabel("trial")
    search.set_ylabel(metric)
    search.legend()
    names = sorted(importance, key=lambda key: importance[key])
    shares.barh(names, [importance[name] for name in names], color="tab:blue")
    shares.set_xlabel("share of the metric's variance")
    if not names:
        shares.text(0.5, 0.5, "too few trials", ha="center", va="center", transform=shares.transAxes)
    figure.savefig(path, dpi=120)
