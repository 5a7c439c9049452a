"""An inspection as one self-contained page with plots: no script, no network, light and dark."""

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from adrec.pages.figures import SERIES, Plot, drawing
from adrec.pages.page import Language, rendered
from adrec.stages.data.inspect_result import InspectResult, TableView


def page_of(result: InspectResult, language: Language) -> str:
    """The page as HTML."""
    tables = [(view, _plots(view)) for view in result.tables]
    splits = result.about.get("splits", {})
    kinds = [("splits", "Splits")] if splits else [("bundle", "Bundle")] if result.kind == "bundle" else []
    return rendered(
        Path(str(files("adrec.stages.data") / "inspect.html.j2")),
        language,
        result=result,
        tables=tables,
        splits=splits,
        verdict=_verdict(result),
        written_on=_written_on(result.path),
        contents=kinds + [(f"table-{number}", view.name) for number, view in enumerate(result.tables, 1)],
    )


def _verdict(result: InspectResult) -> list[str]:
    """What there is, in a sentence or three."""
    said = []
    for view in result.tables[:1]:
        clicks = [day["clicks"] for day in view.days]
        if view.days and None not in clicks:
            rate = sum(clicks) / max(1, sum(day["rows"] for day in view.days))
            first, last = view.days[0]["day"], view.days[-1]["day"]
            said.append(f"{view.rows:,} rows from {first} to {last}, of which {rate:.2%} were clicked.")
        else:
            said.append(f"{view.rows:,} rows with {len(view.columns)} columns.")
        empty = [column.name for column in view.columns if column.missing > _MUCH_MISSING]
        if empty:
            said.append(f"Mostly missing: {', '.join(empty[:5])}.")
    if result.kind == "bundle":
        said.append("Every file is whole.")
    return said or ["There are no rows."]


def _written_on(path: Path) -> str:
    """Date of the newest file there."""
    files_there = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()] if path.is_dir() else []
    newest = max((file.stat().st_mtime for file in files_there), default=None)
    return "" if newest is None else datetime.fromtimestamp(newest, UTC).date().isoformat()


_MUCH_MISSING = 0.5


def _plots(view: TableView) -> list[Plot]:
    plots = []
    if view.days:
        plots.append(_bars("rows by day", [(day["day"][5:], day["rows"]) for day in view.days]))
        if all(day["clicks"] is not None for day in view.days):
            rates = [(day["day"][5:], day["clicks"] / day["rows"]) for day in view.days]
            plots.append(_line("click rate by day", rates))
    if view.history:
        plots.append(_bars("clicks known before", [(f"{edge:.0f}", rows) for edge, rows in view.history]))
    for column, found in view.texts.items():
        plots.append(_bars(f"characters of {column}, by quantile", list(found["characters"].items())))
        plots.append(_bars(f"languages of {column}", list(found["languages"].items())))
    missing = [(column.name, column.missing) for column in view.columns if column.missing]
    if missing:
        plots.append(_bars("share missing", missing[:20]))
    return plots


def _bars(title: str, points: list[tuple[str, Any]]) -> Plot:
    with drawing(title[:1].upper() + title[1:]) as plot:
        plot.axes.bar(range(len(points)), [value for _, value in points], color=SERIES[0])
        _label(plot, [label for label, _ in points])
    return plot


def _line(title: str, points: list[tuple[str, float]]) -> Plot:
    with drawing(title[:1].upper() + title[1:]) as plot:
        plot.axes.plot(range(len(points)), [value for _, value in points], color=SERIES[0], marker="o", markersize=3)
        plot.axes.set_ylim(bottom=0)
        _label(plot, [label for label, _ in points])
    return plot


def _label(plot: Plot, labels: list[str]) -> None:
    """At most eight labels, so that they do not run into each other."""
    step = max(1, -(-len(labels) // 8))
    ticks = range(0, len(labels), step)
    plot.axes.set_xticks(list(ticks), [labels[at] for at in ticks], rotation=30 if max(map(len, labels), default=0) > 6 else 0)
