"""`adrec inspect A --against B`: are they identical, which columns differ, what has drifted; as tables and as a page."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adrec.bundle import open_bundle
from adrec.config.data.inspect import InspectConfig
from adrec.data.disk.engine import open_memory_engine, parquet, readable_faults
from adrec.data.disk.outputs import PAGE
from adrec.data.disk.writing import write_aside
from adrec.data.prepared import open_prepared
from adrec.errors import DataError
from adrec.explore.drift import ColumnDrift, TableDrift, compare_tables, judged
from adrec.pages.figures import INK, SERIES, Plot, drawing
from adrec.pages.page import Language, rendered
from adrec.prepare.sources.files import find_files, read_files
from adrec.schema import SPLITS
from adrec.terminal import Terminal

ROLES = (("label", "Labels"), ("score", "Scores"), ("column", "Columns"))
_NAMED = 8
"""Columns named in a sentence before it says how many more."""


@dataclass(frozen=True)
class DriftResult:
    """What differs between two tables, prepared folders or bundles; the first is the earlier one."""

    before: str
    after: str
    kind: str
    tables: list[TableDrift]
    facts: dict[str, tuple[Any, Any]]
    """what two bundles or folders say of themselves and differ in"""
    page: str | None = None

    @property
    def identical(self) -> bool:
        """The same rows in every table, and of bundles the same files."""
        return all(table.identical for table in self.tables) and not (self.kind == "bundle" and self.facts)

    @property
    def drifted(self) -> list[str]:
        """`table.column` of everything that drifted."""
        return [f"{table.name}.{drift.column}" for table in self.tables for drift in table.columns if drift.drifted]

    def verdict(self) -> str:
        """The first thing to know."""
        return " ".join(self.sentences())

    def sentences(self) -> list[str]:
        """The verdict, a sentence each."""
        if self.identical:
            same = "the same files." if self.kind == "bundle" else "the same rows in every table, in whatever order."
            return [f"Identical: {same}"]
        told = [sentence for table in self.tables if (sentence := _differs(table, alone=len(self.tables) == 1))]
        if self.kind == "bundle":
            return [*told, f"Not identical: {_listed(list(self.facts))} differ."]
        found = self.drifted
        nothing = "Nothing has drifted beyond chance and far enough to matter."
        return [*told, f"Drifted: {_listed(found)}." if found else nothing]

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {
            "before": self.before,
            "after": self.after,
            "kind": self.kind,
            "identical": self.identical,
            "verdict": self.verdict(),
            "drifted": self.drifted,
            "facts": {name: list(pair) for name, pair in self.facts.items()},
            "tables": [_plain(table) for table in self.tables],
        }

    def render(self) -> Iterable[RenderableType]:
        """The verdict, then a table a role."""
        yield self.verdict()
        if self.facts:
            facts = Table("", "before", "after", title="What they say of themselves", title_justify="left")
            for name, pair in self.facts.items():
                facts.add_row(name, *(_short(value) for value in pair))
            yield facts
        for table in self.tables:
            for role, heading in ROLES:
                rows = [drift for drift in table.columns if drift.role == role]
                if rows:
                    yield _drawn(f"{table.name}: {heading.lower()}", rows)
            if any(table.unseen.values()):
                shares = ", ".join(f"{name} {share:.1%}" for name, share in table.unseen.items() if share)
                yield f"{table.name}: rows of the later one whose identifier the earlier one does not have: {shares}"
        if self.page is not None:
            yield f"page: {self.page}"


def compare(config: InspectConfig, terminal: Terminal) -> DriftResult:
    """Compare `config.path` with `config.against`, and write the page. Raises DataError where the two are not of one kind."""
    assert config.against is not None
    result = drift_of(config.path, config.against, terminal, least_psi=config.drift_psi, least_change=config.drift_mean)
    if config.html is not None:
        result = replace(result, page=str(config.html))
        with write_aside(config.html, PAGE) as aside:
            aside.write_text(_page(result, config.language), encoding="utf-8")
    return result


def drift_of(before: Path, after: Path, terminal: Terminal, **limits: float) -> DriftResult:
    """What has changed between two prepared folders, bundles or tables. `limits`: of `judged`. Raises DataError where the two
    are not of one kind.
    """
    sides = (before, after)
    kinds = [_kind(path) for path in sides]
    if kinds[0] != kinds[1]:
        raise DataError(f"{sides[0]} is a {kinds[0]}, {sides[1]} a {kinds[1]}: compare two of one kind.")
    kind = kinds[0]
    result = DriftResult(str(sides[0]), str(sides[1]), kind, [], _facts(kind, *sides))
    if kind != "bundle":
        with open_memory_engine() as connection, terminal.progress("comparing"), readable_faults(str(sides[0])):
            tables, lacking = _tables(connection, kind, sides, limits)
        result = replace(result, tables=tables, facts={**result.facts, **lacking})
    return result


def _kind(path: Path) -> str:
    return (
        "bundle" if (path / "bundle.json").is_file() else "prepared folder" if (path / "manifest.json").is_file() else "table"
    )


def _tables(
    connection: duckdb.DuckDBPyConnection, kind: str, sides: tuple[Path, Path], limits: Mapping[str, float]
) -> tuple[list[TableDrift], dict[str, tuple[Any, Any]]]:
    views = [_views(connection, kind, path, f"side{number}") for number, path in enumerate(sides)]
    found, waiting = [], []
    for label in (label for label in views[0] if label in views[1]):
        table, drifts = compare_tables(connection, views[0][label], views[1][label], label)
        found.append(table)
        waiting += drifts
    marked = judged(waiting, **limits)
    tables = [replace(table, columns=[drift for drift in marked if drift.table == table.name]) for table in found]
    lacking: dict[str, tuple[Any, Any]] = {
        f"table {label}": ("there" if label in views[0] else "missing", "there" if label in views[1] else "missing")
        for label in sorted(set(views[0]) ^ set(views[1]))
    }
    return tables, lacking


def _views(connection: duckdb.DuckDBPyConnection, kind: str, path: Path, prefix: str) -> dict[str, str]:
    """Label -> name of a view of the engine."""
    if kind == "table":
        read_files(connection, f"{prefix}_files", find_files(str(path)))
        place = "source_file, source_row, source_order"
        connection.execute(f"CREATE TEMP VIEW {prefix} AS SELECT * EXCLUDE ({place}) FROM {prefix}_files")
        return {"table": prefix}
    prepared = open_prepared(path)
    shards = [file for split in SPLITS for file in prepared.split_files(split)]
    if not shards:
        raise DataError(f"{path}: holds no impressions. Run 'adrec preprocess' first.")
    relations = {"impressions": parquet(*shards)}
    relations |= {spec.name: parquet(path / spec.file) for spec in prepared.tables()}
    for label, relation in relations.items():
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {prefix}_{label} AS SELECT * FROM {relation}")
    return {label: f"{prefix}_{label}" for label in relations}


def _facts(kind: str, before: Path, after: Path) -> dict[str, tuple[Any, Any]]:
    """Where bundles (files, settings, metrics) or folders (time range, splits) say different things of themselves."""
    said = [_said(kind, path) for path in (before, after)]
    keys = list(dict.fromkeys([*said[0], *said[1]]))
    return {key: (said[0].get(key), said[1].get(key)) for key in keys if said[0].get(key) != said[1].get(key)}


def _said(kind: str, path: Path) -> dict[str, Any]:
    if kind == "bundle":
        bundle = open_bundle(path)
        said = {key: value for key, value in bundle.manifest.items() if key != "files"}
        for model, metrics in (bundle.json("metrics.json")["models"] if bundle.has("metrics.json") else {}).items():
            said |= {f"{model} {name}": round(value, 6) for name, value in metrics.items()}
        return said | {f"file {name}": facts["sha256"][:16] for name, facts in bundle.manifest["files"].items()}
    if kind == "prepared folder":
        manifest = open_prepared(path).manifest
        return {key: manifest.get(key) for key in ("fingerprint", "first", "last", "rows", "clicks", "ads", "users")}
    return {}


def _differs(table: TableDrift, *, alone: bool) -> str:
    if table.identical:
        return ""
    where = "Not identical" if alone else f"{table.name} not identical"
    parts = [f"{table.rows[0]:,} and {table.rows[1]:,} rows"] if table.rows[0] != table.rows[1] else []
    parts += [f"only in the first: {_listed(table.only_before)}"] if table.only_before else []
    parts += [f"only in the second: {_listed(table.only_after)}"] if table.only_after else []
    if table.changed:
        parts.append(f"values differ in {_listed(table.changed)}")
    elif not table.only_before and not table.only_after and table.rows[0] == table.rows[1]:
        parts.append("each column holds the same values, in other rows")
    return f"{where}: {'; '.join(parts)}."


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _drawn(title: str, rows: list[ColumnDrift]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("column", no_wrap=True)
    for heading in ("PSI", "JS, 95 %", "p", "mean", "missing"):
        table.add_column(heading, justify="right")
    table.add_column("moved most")
    for drift in rows:
        table.add_row(*(Text(cell, style="bold" if drift.drifted else "") for cell in cells_of(drift)))
    return table


def cells_of(drift: ColumnDrift) -> list[str]:
    """The cells of a row: column, PSI, JS with its interval, adjusted p, means, missing shares, top movers."""
    far = drift.distance
    mean = f"{drift.mean[0]:.4g} → {drift.mean[1]:.4g}" if drift.mean is not None else ""
    missing = f"{drift.missing[0]:.1%} → {drift.missing[1]:.1%}" if any(drift.missing) else ""
    movers = "; ".join(f"{mover.value} {mover.before:.1%} → {mover.after:.1%}" for mover in drift.movers)
    p_value = "< .001" if drift.adjusted_p < 0.001 else f"{drift.adjusted_p:.3f}"
    column = f"{drift.column} (drifted)" if drift.drifted else drift.column
    return [column, f"{far.psi:.3f}", f"{far.js:.4f} [{far.low:.4f}, {far.high:.4f}]", p_value, mean, missing, movers]


def _short(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(table: TableDrift) -> dict[str, Any]:
    found = asdict(table)
    for column, drift in zip(found["columns"], table.columns, strict=True):
        column["distance"] = drift.distance._asdict()
    return found


@dataclass(frozen=True)
class DriftPart:
    """What a page says of one table: the rows of cells under each heading, and a plot."""

    table: TableDrift
    roles: list[tuple[str, list[tuple[ColumnDrift, list[str]]]]]
    plots: list[Plot]


def parts_of(
    result: DriftResult, draw: Callable[..., list[Plot]] = lambda function, *given: [function(*given)]
) -> list[DriftPart]:
    """What pages say of each table. `draw(function, *given)`: the plots of a function."""
    return [
        DriftPart(
            table,
            [(heading, [(drift, cells_of(drift)) for drift in table.columns if drift.role == role]) for role, heading in ROLES],
            draw(_distances, table.columns) if table.columns and not table.identical else [],
        )
        for table in result.tables
    ]


def facts_of(result: DriftResult) -> list[tuple[str, str, str]]:
    """Name, and what both sides say, as pages show it."""
    return [(name, _short(before), _short(after)) for name, (before, after) in result.facts.items()]


def _page(result: DriftResult, language: Language) -> str:
    facts = facts_of(result)
    return rendered(
        Path(str(files("adrec.stages.data") / "drift.html.j2")),
        language,
        result=result,
        tables=parts_of(result),
        facts=facts,
        contents=([("facts", "What they say of themselves")] if facts else [])
        + [(f"table-{number}", table.name) for number, table in enumerate(result.tables, 1)],
    )


def _distances(columns: list[ColumnDrift]) -> Plot:
    """How far each column has moved, the farthest first; those that drifted in another colour."""
    far = sorted(columns, key=lambda drift: drift.distance.js)[-_MOST_DRAWN:]
    caption = "Jensen–Shannon distance with its interval. Orange: drifted."
    with drawing("How far each column has moved", caption, height=0.7 + 0.22 * len(far)) as plot:
        for place, drift in enumerate(far):
            colour = SERIES[1] if drift.drifted else SERIES[0]
            plot.axes.plot([drift.distance.low, drift.distance.high], [place, place], color=colour, linewidth=2)
            plot.axes.plot(drift.distance.js, place, marker="o", markersize=5, color=colour)
        plot.axes.set_yticks(range(len(far)), [drift.column[:28] for drift in far])
        plot.axes.tick_params(axis="y", length=0, labelcolor=INK)
        plot.axes.set(xlabel="Jensen–Shannon", ylim=(-0.6, len(far) - 0.4))
        plot.axes.grid(axis="y", visible=False)
    return plot


_MOST_DRAWN = 20
