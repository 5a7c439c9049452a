"""What an inspection found, and its tables for the terminal."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adrec.explore.profile import ColumnProfile
from adrec.prepare.output.report import render_manifest
from adrec.privacy.ledger import KEY as LEDGER
from adrec.tables import best_marked


@dataclass(frozen=True)
class TableView:
    """One table of what is inspected."""

    name: str
    rows: int
    columns: list[ColumnProfile]
    days: list[dict[str, Any]]
    texts: dict[str, dict[str, Any]]
    """text column -> lengths and languages"""
    first: list[dict[str, str]]
    history: list[tuple[float, int]] = field(default_factory=list)
    """histogram of history_length"""


@dataclass(frozen=True)
class InspectResult:
    """What was found. `about` holds the manifest of a prepared folder, or what a bundle says of itself."""

    path: Path
    kind: str
    about: dict[str, Any]
    tables: list[TableView]
    page: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        about = {key: value for key, value in self.about.items() if key not in {"inputs", "files", "schema"}}
        return {"path": str(self.path), "kind": self.kind, "about": about, "tables": [asdict(table) for table in self.tables]}

    def render(self) -> Iterable[RenderableType]:
        """Tables for the terminal."""
        if self.kind == "prepared":
            yield from render_manifest(self.path, self.about)
        elif self.kind == "bundle":
            yield from _render_bundle(self.path, self.about)
        for table in self.tables:
            yield from _render_table(table)
        if self.page is not None:
            yield f"page: {self.page}"


def _render_bundle(path: Path, about: dict[str, Any]) -> Iterator[RenderableType]:
    table = Table(title=f"{path} (every file is whole)", title_justify="left", show_header=False)
    for key, value in about.items():
        if key not in {"sizes", "metrics", LEDGER}:
            table.add_row(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    yield table
    sizes = Table("file", title="files", title_justify="left")
    sizes.add_column("bytes", justify="right")
    for name, size in about["sizes"].items():
        sizes.add_row(name, f"{size:,}")
    yield sizes
    if about.get(LEDGER) is not None:
        yield from render_ledger(about[LEDGER])
    if "metrics" in about:
        yield from _render_metrics(about["metrics"])


def render_ledger(ledger: dict[str, Any]) -> Iterator[RenderableType]:
    """A row an artefact, and what all of it costs together."""
    table = Table("artefact", "is", title="privacy ledger", title_justify="left")
    for heading in ("mechanism", "noise", "sensitivity", "epsilon alone"):
        table.add_column(heading, justify="right" if heading != "mechanism" else "left")
    table.add_column("how", overflow="fold")
    for line in ledger["lines"]:
        event = line.get("event", {})
        cells = [event.get("noise"), line.get("sensitivity"), line.get("epsilon_alone")]
        shown = ["" if value is None else f"{value:.4g}" for value in cells]
        table.add_row(line["artefact"], line["treatment"], line.get("mechanism", ""), *shown, line["why"])
    yield table
    yield (
        f"together: epsilon {ledger['spent']:.4g} of {ledger['epsilon']:g} at delta {ledger['delta']:g}, for"
        f" {ledger['neighbours']}; {ledger['composition']} ({ledger['accountant']}); randomness: {ledger['random']}"
    )


def _render_metrics(metrics: dict[str, Any]) -> Iterator[RenderableType]:
    """A row a model, a column a metric."""
    models = metrics.get("models", {})
    names = list(dict.fromkeys(name for values in models.values() for name in values))
    if not names:
        return
    table = Table(title=f"metrics at training time, {metrics.get('split', '')}", title_justify="left")
    table.add_column("model", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    first, is_low = names[0], {name: "loss" in name for name in names}
    best = {
        name: (min if is_low[name] else max)(values[name] for values in models.values() if name in values) for name in names
    }
    order = sorted(models, key=lambda model: models[model].get(first, float("-inf")), reverse=not is_low[first])
    for model in order:
        values = models[model]
        cells = [
            best_marked(f"{values[name]:.4f}", values[name] == best[name]) if name in values else Text("") for name in names
        ]
        table.add_row(model, *cells)
    yield table


def _render_table(view: TableView) -> Iterator[RenderableType]:
    columns = Table(title=f"{view.name}: {view.rows:,} rows", title_justify="left")
    columns.add_column("column", no_wrap=True)
    columns.add_column("type")
    for heading in ("missing", "distinct", "low", "mean", "high"):
        columns.add_column(heading, justify="right")
    for column in view.columns:
        distinct = f"{column.distinct:,}" if column.distinct else ""
        missing = f"{column.missing:.1%}" if column.missing else ""
        columns.add_row(column.name, column.type, missing, distinct, column.low, column.middle, column.high)
    yield columns
    if view.days:
        days = Table("day (UTC)", "rows", "clicks", "click rate", title_justify="left")
        for day in view.days:
            clicks = day["clicks"]
            rate = "" if clicks is None else f"{clicks / day['rows']:.2%}"
            days.add_row(day["day"], f"{day['rows']:,}", "" if clicks is None else f"{clicks:,}", rate)
        yield days
    for text_column, of_text in view.texts.items():
        lengths = ", ".join(f"{share} {length}" for share, length in of_text["characters"].items())
        shares = ", ".join(f"{language} {share:.1%}" for language, share in of_text["languages"].items())
        looked = f"{of_text['texts']:,} distinct texts looked at"
        yield f"{view.name}.{text_column}: {looked}; characters {lengths}; languages {shares}"
    for number, row in enumerate(view.first, 1):
        yield f"row {number}: " + "  ".join(f"{key}={value}" for key, value in row.items() if value)
