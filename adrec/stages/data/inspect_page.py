"""An inspection as one self-contained page with plots: no script, no network, light and dark."""

from importlib.resources import files
from typing import Any

from adrec.stages.data.inspect_result import InspectResult, TableView
from adrec.stages.evaluation.report.figures import SERIES, Plot, drawing


def page_of(result: InspectResult) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("adrec.stages.data") / "inspect.html.j2").read_text(encoding="utf-8"))
    tables = [(view, _plots(view)) for view in result.tables]
    return template.render(result=result, tables=tables, splits=result.about.get("splits", {}))


def _plots(view: TableView) -> list[Plot]:
    plots = []
    if view.days:
        plots.append(_bars(f"{view.name}: rows by day", [(day["day"][5:], day["rows"]) for day in view.days]))
        if all(day["clicks"] is not None for day in view.days):
            rates = [(day["day"][5:], day["clicks"] / day["rows"]) for day in view.days]
            plots.append(_line(f"{view.name}: click rate by day", rates))
    if view.history:
        plots.append(_bars(f"{view.name}: clicks known before", [(f"{edge:.0f}", rows) for edge, rows in view.history]))
    for column, found in view.texts.items():
        plots.append(_bars(f"{view.name}: characters of {column}, by quantile", list(found["characters"].items())))
        plots.append(_bars(f"{view.name}: languages of {column}", list(found["languages"].items())))
    missing = [(column.name, column.missing) for column in view.columns if column.missing]
    if missing:
        plots.append(_bars(f"{view.name}: share missing", missing[:20]))
    return plots


def _bars(title: str, points: list[tuple[str, Any]]) -> Plot:
    with drawing(title) as plot:
        plot.axes.bar(range(len(points)), [value for _, value in points], color=SERIES[0])
        _label(plot, [label for label, _ in points])
    return plot


def _line(title: str, points: list[tuple[str, float]]) -> Plot:
    with drawing(title) as plot:
        plot.axes.plot(range(len(points)), [value for _, value in points], color=SERIES[0], marker="o", markersize=3)
        plot.axes.set_ylim(bottom=0)
        _label(plot, [label for label, _ in points])
    return plot


def _label(plot: Plot, labels: list[str]) -> None:
    """At most eight labels, so that they do not run into each other."""
    step = max(1, -(-len(labels) // 8))
    ticks = range(0, len(labels), step)
    plot.axes.set_xticks(list(ticks), [labels[at] for at in ticks], rotation=30 if max(map(len, labels), default=0) > 6 else 0)
