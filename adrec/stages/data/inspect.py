"""`adrec inspect`: what is in a prepared folder, a bundle or a table, in the terminal or as a page with plots."""

from collections.abc import Mapping

import duckdb

from adrec.bundle import CARD, Bundle, open_bundle
from adrec.config.data.inspect import InspectConfig
from adrec.data.disk.engine import columns_of, open_memory_engine, parquet, readable_faults
from adrec.data.disk.outputs import PAGE
from adrec.data.disk.writing import write_aside
from adrec.data.prepared import Prepared, open_prepared
from adrec.errors import DataError
from adrec.explore.profile import (
    clicks_by_day,
    count_rows,
    first_rows,
    histogram,
    profile_columns,
    profile_texts,
)
from adrec.prepare.sources.files import find_files, read_files
from adrec.schema import SPLITS, entity_tables
from adrec.stages.data.drift import DriftResult, compare
from adrec.stages.data.inspect_result import InspectResult, TableView
from adrec.terminal import Terminal

_TEXT_COLUMNS = ("text", "title", "description", "query")


def run(config: InspectConfig, terminal: Terminal) -> "InspectResult | DriftResult":
    """Look at `config.path`, or compare it. Raises DataError or BundleError where it is none of the kinds."""
    if config.against is not None:
        return compare(config, terminal)
    path = config.path
    with open_memory_engine() as connection, terminal.progress("reading"), readable_faults(str(path)):
        if (path / "bundle.json").is_file():
            result = _bundle(connection, open_bundle(path), config)
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
        aside.write_text(page_of(result, config.language), encoding="utf-8")
    return InspectResult(result.path, result.kind, result.about, result.tables, config.html)


def _prepared(connection: duckdb.DuckDBPyConnection, prepared: Prepared, config: InspectConfig) -> InspectResult:
    files = [file for split in SPLITS for file in prepared.split_files(split)]
    if not files:
        raise DataError(f"{prepared.path}: holds no impressions. Run 'adrec preprocess' first.")
    relations = {"impressions": parquet(*files)}
    relations |= {spec.name: parquet(prepared.path / spec.file) for spec in prepared.tables()}
    return InspectResult(prepared.path, "prepared", prepared.manifest, _views(connection, relations, config))


def _views(connection: duckdb.DuckDBPyConnection, relations: Mapping[str, str], config: InspectConfig) -> list[TableView]:
    tables = []
    for label, relation in relations.items():
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {label} AS SELECT * FROM {relation}")
        tables.append(_table(connection, label, label, config.rows))
    return tables


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


def _bundle(connection: duckdb.DuckDBPyConnection, bundle: Bundle, config: InspectConfig) -> InspectResult:
    about = {key: value for key, value in bundle.manifest.items() if key != "files"}
    about["sizes"] = {name: item["bytes"] for name, item in bundle.manifest["files"].items()}
    if bundle.card:
        about["card"] = f"{bundle.file(CARD)}: {bundle.verdict}"
    if bundle.has("metrics.json"):
        about["metrics"] = bundle.json("metrics.json")
    specs = [spec for spec in entity_tables() if bundle.has(spec.bundle_file)]
    relations = {spec.name: parquet(bundle.file(spec.bundle_file)) for spec in specs}
    return InspectResult(bundle.path, "bundle", about, _views(connection, relations, config))
