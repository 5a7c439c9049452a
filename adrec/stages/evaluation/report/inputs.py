"""What the model lives on, from the importance.json of `adrec explain --global`: drawn, not computed here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adrec.errors import DataError
from adrec.pages.figures import INK, MUTED, SERIES, Plot, drawing

FILE = "importance.json"
MOST_INPUTS, MOST_FEATURES = 15, 6


def input_plots(path: Path | None) -> list[Plot]:
    """Importances with their intervals, and the features that move the score most. Raises DataError on another file."""
    if path is None:
        return []
    read = read_importance(path)
    important, dependent = read["importance"], read["dependence"]
    drawn = [_importance(important[:MOST_INPUTS], read["rows"])] if important else []
    moving = sorted(dependent, key=lambda curve: min(curve["scores"]) - max(curve["scores"]))
    return drawn + [_dependence(curve) for curve in moving[:MOST_FEATURES]]


def read_importance(path: Path) -> dict[str, Any]:
    """What `adrec explain --global` wrote at `path`, a folder or the file in it. Raises DataError on anything else."""
    file = path / FILE if path.is_dir() else path
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        found = {key: read[key] for key in ("importance", "dependence", "rows")}
        _ = [one["label"] for key in ("importance", "dependence") for one in found[key]]  # what is drawn has a name
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not what 'adrec explain --global' wrote ({type(error).__name__}). Run it again.") from None


def _importance(found: Sequence[dict[str, Any]], rows: int) -> Plot:
    caption = f"Rise of the log loss when the input is shuffled among {rows:,} rows; bars: 95 % intervals over users."
    with drawing("Importance of inputs", caption, height=0.7 + 0.22 * len(found)) as plot:
        names = []
        for place, feature in enumerate(reversed(found)):
            colour = SERIES[0] if feature["low"] > 0 else MUTED
            plot.axes.plot([feature["low"], feature["high"]], [place, place], color=colour, linewidth=2, solid_capstyle="round")
            plot.axes.plot(feature["increase"], place, marker="o", markersize=5, color=colour)
            names.append(_short(feature["label"]))
        plot.axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        plot.axes.set_yticks(range(len(names)), names)
        plot.axes.tick_params(axis="y", length=0, labelcolor=INK)
        plot.axes.set(xlabel="rise of the log loss", ylim=(-0.6, len(names) - 0.4))
        plot.axes.grid(axis="y", visible=False)
    return plot


def _dependence(curve: dict[str, Any]) -> Plot:
    name = curve["label"]
    values, scores = curve["values"], np.array(curve["scores"], np.float64)
    with drawing(f"Score by {name}", "Mean score when every row has this value.", height=2.2) as plot:
        at = np.arange(len(values))
        is_number = all(_is_number(value) for value in values)
        plot.axes.plot(at, scores, color=SERIES[0], marker="o", markersize=4, linestyle="-" if is_number else "none")
        plot.axes.set_xticks(at, [_short(value, 12) for value in values], rotation=0 if is_number else 30)
        plot.axes.set(ylabel="mean score")
        plot.axes.margins(y=0.2)
    return plot


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(text: str, most: int = 30) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
