"""`adrec inspect`: what is in a prepared folder, a bundle or a table, in the terminal or as a page with plots."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
from rich.console import RenderableType
from rich.table import Table

from adrec.bundle import open_bundle
from adrec.config.data.inspect import InspectConfig
from adrec.data.disk.engine import columns_of, open_memory_engine, parquet, readable_faults
from adrec.data.disk.outputs import PAGE
from adrec.data.disk.writing import write_aside
from adrec.data.prepared import Prepared, open_prepared
from adrec.errors import DataError
from adrec.explore.profile import (
    ColumnProfile,
    clicks_by_day,
    count_rows,
    first_rows,
    histogram,
    profile_columns,
    profile_texts,
)
from adrec.prepare.output.report import render_manifest
from adrec.prepare.sources.files import find_files, read_files
from adrec.schema import SPLITS
from adrec.stages.data.drift import DriftResult, compare
from adrec.terminal import Terminal

_TEXT_COLUMNS = ("text", "title", "description", "query")


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


def run(config: InspectConfig, terminal: Terminal) -> "InspectResult | DriftResult":
    """Look at `config.path`, or compare it. Raises DataError or BundleError where it is none of the kinds."""
    if config.against is not None:
        return compare(config, terminal)
    path = config.path
    with open_memory_engine() as connection, terminal.progress("reading"), readable_faults(str(path)):
        if (path / "bundle.json").is_file():
            result = InspectResult(path, "bundle", _about_bundle(path), [])
        elif (path / "manifest.json").is_file():
            result = _prepared(connection, open_prepared(path), config)
        else:
            files = find_files(str(path))
            read_files(connection, "inspected_files", files)
            connection.execute(
                "CREATE TEMP VIEW inspected AS SELECT * EXCLUDE (source_file, source_row, source_order) FROM inspected_files"
            )
            result = InspectResult(path, "table", {}, [_table(connection, "inspected", path.name, config.rows)])
    if config.html is None:
        return result
    from adrec.stages.data.inspect_page import page_of

    with write_aside(config.html, PAGE) as aside:
        aside.write_text(page_of(result), encoding="utf-8")
    return InspectResult(result.path, result.kind, result.about, result.tables, config.html)


def _prepared(connection: duckdb.DuckDBPyConnection, prepared: Prepared, config: InspectConfig) -> InspectResult:
    files = [file for split in SPLITS for file in prepared.split_files(split)]
    if not files:
        raise DataError(f"{prepared.path}: holds no impressions. Run 'adrec preprocess' first.")
    relations = {"impressions": parquet(*files)}
    relations |= {spec.name: parquet(prepared.path / spec.file) for spec in prepared.tables()}
    tables = []
    for label, relation in relations.items():
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {label} AS SELECT * FROM {relation}")
        tables.append(_table(connection, label, label, config.rows))
    return InspectResult(prepared.path, "prepared", prepared.manifest, tables)


def _table(connection: duckdb.DuckDBPyConnection, view: str, label: str, rows: int) -> TableView:
    known = columns_of(connection, view)
    texts = {column: profile_texts(connection, view, column) for column in _TEXT_COLUMNS if known.get(column) == "VARCHAR"}
    return TableView(
        name=label,
        rows=count_rows(connection, view),
        columns=profile_columns(connection, view),
        days=clicks_by_day(connection, view),
        texts={column: found for column, found in texts.items() if found["texts"]},
        first=first_rows(connection, view, rows),
        history=histogram(connection, view, "history_length") if "history_length" in known else [],
    )


def _about_bundle(path: Path) -> dict[str, Any]:
    bundle = open_bundle(path)
    about = {key: value for key, value in bundle.manifest.items() if key != "files"}
    about["sizes"] = {name: item["bytes"] for name, item in bundle.manifest["files"].items()}
    if bundle.has("metrics.json"):
        about["metrics"] = bundle.json("metrics.json")
    return about


def _render_bundle(path: Path, about: dict[str, Any]) -> Iterator[RenderableType]:
    table = Table(title=f"{path} (every file is whole)", title_justify="left", show_header=False)
    for key, value in about.items():
        if key not in {"sizes", "metrics"}:
            table.add_row(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    yield table
    sizes = Table("file", "bytes", title="files", title_justify="left")
    for name, size in about["sizes"].items():
        sizes.add_row(name, f"{size:,}")
    yield sizes
    if "metrics" in about:
        yield from _render_metrics(about["metrics"])


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
    for model, values in models.items():
        table.add_row(model, *(f"{values[name]:.4f}" if name in values else "" for name in names))
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
    for text_column, found in view.texts.items():
        lengths = ", ".join(f"{share} {length}" for share, length in found["characters"].items())
        shares = ", ".join(f"{language} {share:.1%}" for language, share in found["languages"].items())
        looked = f"{found['texts']:,} distinct texts looked at"
        yield f"{view.name}.{text_column}: {looked}; characters {lengths}; languages {shares}"
    for number, row in enumerate(view.first, 1):
        yield f"row {number}: " + "  ".join(f"{key}={value}" for key, value in row.items() if value)
