"""Plain tables with column mapping: three, two, or one wide table that carries ads and users in the impressions."""

import duckdb

from adrec.config.sources import TableInput, TablesSource
from adrec.data.disk.engine import columns_of, name
from adrec.errors import DataError
from adrec.prepare.sources.base import RawTable, RawTables, Reading
from adrec.prepare.sources.files import find_files, read_files
from adrec.prepare.sources.json_lines import text_items


def open_tables(connection: duckdb.DuckDBPyConnection, config: TablesSource, skip: int = 0) -> RawTables:
    """Views over the tables of `config`. Raises DataError for files or mapped columns that are not there."""
    named = {"ads": config.ads, "users": config.users, **config.tables}
    others = {label: open_table(connection, f"raw_{label}", table) for label, table in named.items() if table is not None}
    impressions = open_table(connection, "raw_impressions", config.impressions, skip)
    return RawTables(impressions=impressions, **others, can_skip=True)


def open_table(connection: duckdb.DuckDBPyConnection, view: str, table: TableInput, skip: int = 0) -> RawTable:
    """One table, without its first `skip` files, with its columns renamed to the canonical names."""
    files = find_files(table.files)
    read_files(
        connection, f"{view}_files", files[skip:], all_files=files, format=table.format, delimiter=table.delimiter,
        quote=table.quote, escape=table.escape, encoding=table.encoding,
    )  # fmt: skip
    found = columns_of(connection, f"{view}_files")
    named = [*table.columns.items(), *table.first_of.items()]
    missing = [f"'{theirs}' (for {ours})" for ours, theirs in named if theirs not in found]
    if missing:
        known = ", ".join(column for column in list(found)[:12] if not column.startswith("source_"))
        raise DataError(f"{files[0]}: column {', '.join(missing)} is missing. Columns: {known}. Mend `columns` in the config.")
    selected = [f"{name(theirs)} AS {name(ours)}" for ours, theirs in table.columns.items()]
    for ours, theirs in table.first_of.items():
        items = name(theirs) if found[theirs].endswith("[]") else text_items(name(theirs), table.list_separator)
        selected.append(f"{items}[1] AS {name(ours)}")
    # A column already called like the target of a mapping would be a second one of that name: the mapping wins.
    taken = {*table.columns.values(), *dict(named)}
    selected += [name(column) for column in found if column not in taken]
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS SELECT {', '.join(selected)} FROM {view}_files")
    reading = Reading(
        time_format=table.time_format,
        time_unit=table.time_unit,
        time_zone=table.time_zone,
        list_separator=table.list_separator,
        decimal=table.decimal,
        thousands=table.thousands,
        null_values=table.null_values,
        types=table.types,
        defaults=table.defaults,
        own_names={ours: theirs for ours, theirs in named if ours != theirs},
        positive={str(flag): words for flag, words in table.positive.items()},
        at_least={flag: next(iter(bound.items())) for flag, bound in table.at_least.items()},
        first_position=table.first_position,
    )
    return RawTable(view, tuple(files), reading)
