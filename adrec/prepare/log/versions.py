"""Versions of ads and users inside the engine: since when which value holds, and what each event knows of it.

A table with `known_from` holds them; of a wide one they are read off its rows, each of which says what held when its request
began. Declared columns (features, counters' `by`) that change are joined to the events as of their request, under the name of
`TableSpec.as_of_prefix`; all others stay columns of their table. The join is DuckDB's ASOF join: it sorts, and spills.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import duckdb

from adrec.config.data.preprocess import Features
from adrec.config.training.features import TableFeatures
from adrec.data.disk.engine import columns_of, moment_sql, name, one_row, text
from adrec.errors import DataError
from adrec.schema import ADS, KNOWN_FROM, USERS, TableSpec
from adrec.specs import CounterSpec, is_pattern

Versioned = Mapping[str, Sequence[str]]
"""table → its columns that events know as of their request"""
_MONEY = ("bid", "budget", "starts_at", "ends_at", "image", "audio")
"""What rules and auctions read of the catalogue: as it is now. No model reads it there but by a template or a calendar."""
_ALWAYS = "TIMESTAMP '-infinity'"


def build_versions(connection: duckdb.DuckDBPyConnection, staged: str, spec: TableSpec, good: str, columns: str) -> None:
    """Tables `spec.versions` of all good rows, and `spec.name` with one row a key, numbered by its first row in the source.

    Raises DataError where two rows of a key hold from the same moment.
    """
    key, index = spec.key, spec.index
    assert key is not None
    twice = connection.execute(
        f"SELECT {key}, {KNOWN_FROM}, count(*), min(source_row), max(source_row), min(source_file), max(source_file) "
        f"FROM {staged} WHERE {good} GROUP BY 1, 2 HAVING count(*) > 1 ORDER BY 4 LIMIT 5"
    ).fetchall()
    if twice:
        raise DataError(
            "\n".join(
                f"{first}: column '{key}', row {row:,}: {value!r} occurs again in row {again:,} of {last} with the same "
                f"{KNOWN_FROM} ({since or 'empty'}; {count:,} times in all). Keep one row for each moment."
                for value, since, count, row, again, first, last in twice
            )
        )
    numbers = (
        f"SELECT {key}, CAST(row_number() OVER (ORDER BY min(source_order)) - 1 AS INTEGER) AS {index} "
        f"FROM {staged} WHERE {good} GROUP BY 1"
    )
    connection.execute(
        f"CREATE OR REPLACE TABLE {spec.versions} AS SELECT {index}, {columns} FROM {staged} JOIN ({numbers}) USING ({key}) "
        f"WHERE {good} ORDER BY {index}, {KNOWN_FROM} NULLS FIRST"
    )
    connection.execute(
        f"CREATE OR REPLACE TABLE {spec.name} AS SELECT * EXCLUDE ({KNOWN_FROM}) FROM {spec.versions} "
        f"QUALIFY row_number() OVER (PARTITION BY {index} ORDER BY {KNOWN_FROM} NULLS FIRST) = 1 ORDER BY {index}"
    )


def renumber_versions(connection: duckdb.DuckDBPyConnection, spec: TableSpec) -> None:
    """Give table `spec.versions` the numbers that table `spec.name` has now."""
    connection.execute(
        f"CREATE OR REPLACE TABLE {spec.versions} AS SELECT t.{spec.index}, v.* EXCLUDE ({spec.index}) FROM {spec.versions} v "
        f"JOIN (SELECT {spec.key}, {spec.index} FROM {spec.name}) t USING ({spec.key}) "
        f"ORDER BY t.{spec.index}, v.{KNOWN_FROM} NULLS FIRST"
    )


def choose_versions(
    connection: duckdb.DuckDBPyConnection, spec: TableSpec, cut: datetime | None, read_by_models: Collection[str]
) -> None:
    """Give the keys of table `spec.name` the latest version known before `cut`, else the latest of all.

    What only rules and auctions read, and no model (`read_by_models`), is the latest of all.
    """
    index = spec.index
    columns = [column for column in columns_of(connection, spec.versions) if column not in {index, KNOWN_FROM}]
    latest = [column for column in columns if column in _MONEY and column not in read_by_models]
    before = f"coalesce({KNOWN_FROM} < {moment_sql(cut)}, true) DESC, " if cut is not None else ""
    window = f"OVER (PARTITION BY {index} ORDER BY {{}}{KNOWN_FROM} DESC NULLS LAST)"
    chosen = ", ".join(
        f"first({name(column)}) {window.format('' if column in latest else before)} AS {name(column)}" for column in columns
    )
    # Keys without a version, such as users that the table lacks, stay as they are.
    values = ", ".join(
        f"CASE WHEN v.{index} IS NULL THEN k.{name(column)} ELSE v.{name(column)} END AS {name(column)}"
        for column in columns
        if column != spec.key
    )
    connection.execute(
        f"CREATE OR REPLACE TABLE {spec.name} AS SELECT k.{index}, k.{spec.key}{', ' if values else ''}{values} "
        f"FROM {spec.name} k LEFT JOIN (SELECT {index}, {chosen} FROM {spec.versions} "
        f"QUALIFY row_number() OVER (PARTITION BY {index}) = 1) v USING ({index}) ORDER BY k.{index}"
    )


def versions_of_rows(connection: duckdb.DuckDBPyConnection, spec: TableSpec, columns: Sequence[str]) -> None:
    """Table `spec.versions` of a wide table, whose events carry `columns` under their as-of names.

    A row says what held when its request began; a missing cell says nothing: the value before it goes on.
    """
    index = spec.index
    own = ", ".join(f"arg_max({_as_of(spec, column)}, rowid) AS {name(column)}" for column in columns)
    filled = ", ".join(
        f"last_value({name(column)} IGNORE NULLS) OVER (PARTITION BY {index} ORDER BY {KNOWN_FROM} "
        f"ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS {name(column)}"
        for column in columns
    )
    connection.execute(
        f"CREATE OR REPLACE TABLE {spec.versions} AS SELECT {index}, {KNOWN_FROM}, {filled} FROM ("
        f"SELECT {index}, started AS {KNOWN_FROM}, {own} FROM events GROUP BY 1, 2) ORDER BY 1, 2"
    )


def changing(connection: duckdb.DuckDBPyConnection, spec: TableSpec, columns: Sequence[str]) -> list[str]:
    """Those of `columns` that differ between versions of a key, or were not known yet to an event."""
    if not columns:
        return []
    index = spec.index
    differs = ", ".join(
        f"count(DISTINCT {name(column)}) + CAST(count({name(column)}) < count(*) AS INTEGER) > 1 AS {name(column)}"
        for column in columns
    )
    any_of = ", ".join(f"coalesce(bool_or({name(column)}), false) AS {name(column)}" for column in columns)
    found = one_row(connection, f"SELECT {any_of} FROM (SELECT {differs} FROM {spec.versions} GROUP BY {index})")
    first = ", ".join(f"arg_min({name(column)}, {_since()}) IS NOT NULL AS {name(column)}" for column in columns)
    early = one_row(
        connection,
        f"SELECT {any_of} FROM (SELECT {index}, min({_since()}) AS since, {first} FROM {spec.versions} GROUP BY 1) v "
        f"JOIN (SELECT {index}, min(started) AS started FROM events GROUP BY 1) e USING ({index}) WHERE e.started < v.since",
    )
    return [column for column in columns if found[column] or early[column]]


def join_versions(connection: duckdb.DuckDBPyConnection, versioned: Versioned) -> None:
    """Give the events the versioned columns as of the first moment of their request."""
    for spec in (ADS, USERS):
        own = [column for column in columns_of(connection, "events") if column.startswith(spec.as_of_prefix)]
        columns = versioned.get(spec.name, ())
        if not own and not columns:
            continue
        kept = f"e.* EXCLUDE ({', '.join(map(name, own))})" if own else "e.*"
        joined = "".join(f", v.{name(column)} AS {_as_of(spec, column)}" for column in columns)
        join = (
            f"ASOF LEFT JOIN (SELECT {spec.index} AS number, {_since()} AS since, {', '.join(map(name, columns))} "
            f"FROM {spec.versions}) v ON e.{spec.index} = v.number AND e.started >= v.since"
        )
        connection.execute(
            f"CREATE OR REPLACE TABLE events AS SELECT {kept}{joined} FROM events e {join if columns else ''} ORDER BY e.rowid"
        )


def write_versions(connection: duckdb.DuckDBPyConnection, folder: Path, versioned: Versioned) -> None:
    """`ad_versions.parquet` and `user_versions.parquet`, where anything changes: what differs from the version before it."""
    for spec in (ADS, USERS):
        if columns := versioned.get(spec.name):
            file = text(str(folder / f"{spec.versions}.parquet"))
            connection.execute(f"COPY ({written_versions(spec, columns)}) TO {file} (FORMAT parquet, COMPRESSION zstd)")


def written_versions(spec: TableSpec, columns: Sequence[str]) -> str:
    """SQL of the rows of the file, in order. What has one version, always known, is in its table already."""
    window = f"OVER (PARTITION BY {spec.index} ORDER BY {KNOWN_FROM} NULLS FIRST)"
    same = " AND ".join(f"{name(column)} IS NOT DISTINCT FROM lag({name(column)}) {window}" for column in columns)
    listed = ", ".join(map(name, columns))
    differing = (
        f"SELECT {spec.index}, {KNOWN_FROM}, {listed} FROM {spec.versions} QUALIFY NOT (row_number() {window} > 1 AND {same}) "
        f"AND NOT ({KNOWN_FROM} IS NULL AND count(*) OVER (PARTITION BY {spec.index}) = 1)"
    )
    return (
        f"SELECT {spec.index}, timezone('UTC', {KNOWN_FROM}) AS {KNOWN_FROM}, {listed} FROM ({differing}) v "
        f"ORDER BY {spec.index}, v.{KNOWN_FROM} NULLS FIRST"
    )


def candidates(
    spec: TableSpec, features: TableFeatures, counters: Sequence[CounterSpec], columns: Collection[str]
) -> list[str]:
    """Which of a table's `columns` models read row by row: features and counters' `by`. Vectors are those of the table."""
    wanted = {{"advertiser": "advertiser_id"}.get(key, key) for counter in counters for key in counter.by}
    patterns = [column for key, column in features.columns if key not in {"calendar", "vectors"}]
    return [
        column
        for column in columns
        if column not in {spec.key, spec.index, KNOWN_FROM}
        and (column in wanted or any(fnmatchcase(column, pattern) for pattern in patterns))
    ]


def moved_features(features: Features, versioned: Versioned, columns: Mapping[str, Collection[str]]) -> Features:
    """The same features, those of versioned columns among the impressions'. `columns` by table: what patterns stand for."""
    if not any(versioned.values()):
        return features
    specs = {"impressions": features.impressions, "ads": features.ads, "users": features.users}
    own = {group: list(getattr(features.impressions, group)) for group in ("numeric", "categorical", "hashed", "lists")}
    for spec in (ADS, USERS):
        changed = set(versioned.get(spec.name, ()))
        if not changed:
            continue
        stay = {}
        for group, items in own.items():
            declared = _spelled_out(getattr(specs[spec.name], group), columns[spec.name], changed)
            stay[group] = [item for item in declared if item.column not in changed]
            items += [
                item.model_copy(update={"column": spec.as_of_prefix + item.column})
                for item in declared
                if item.column in changed
            ]
        specs[spec.name] = specs[spec.name].model_copy(update=stay)
    specs["impressions"] = features.impressions.model_copy(update=own)
    return features.model_copy(update=specs)


def _spelled_out(items: Sequence[Any], columns: Collection[str], changed: Collection[str]) -> list[Any]:
    """Patterns that stand for a column that changes become the columns that they stand for."""
    named = {item.column for item in items if not is_pattern(item.column)}
    spelled = []
    for item in items:
        matching = [column for column in columns if fnmatchcase(column, item.column) and column not in named]
        if not is_pattern(item.column) or not set(matching) & set(changed):
            spelled.append(item)
            continue
        named |= set(matching)
        spelled += [item.model_copy(update={"column": column}) for column in matching]
    return spelled


def _as_of(spec: TableSpec, column: str) -> str:
    return name(spec.as_of_prefix + column)


def _since() -> str:
    return f"coalesce({KNOWN_FROM}, {_ALWAYS})"
