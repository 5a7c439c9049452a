"""Plain tables with column mapping: three, two, or one wide table that carries ads and users in the impressions."""

from collections.abc import Callable, Collection, Sequence

import duckdb

from adrec import schema
from adrec.config.data.sources import Scalar, TableInput, TablesSource
from adrec.data.disk.engine import columns_of, name, text
from adrec.errors import DataError, listed
from adrec.prepare.sources.base import RawTable, RawTables, Reading
from adrec.prepare.sources.files import find_files, read_files
from adrec.prepare.sources.json_lines import text_items
from adrec.prepare.sources.malformed import set_lines_aside
from adrec.prepare.sources.nested import find_nested, path_cell


def open_tables(connection: duckdb.DuckDBPyConnection, config: TablesSource, skip: int = 0) -> RawTables:
    """Views over the tables of `config`. Raises DataError for files or mapped columns that are not there."""
    named = {"ads": config.ads, "users": config.users, **config.tables}
    others = {label: open_table(connection, f"raw_{label}", table) for label, table in named.items() if table is not None}
    impressions = open_table(connection, "raw_impressions", config.impressions, skip)
    told = {label: table for label, table in (("clicks", config.clicks), ("conversions", config.conversions)) if table}
    events = {label: open_table(connection, f"raw_{label}", table) for label, table in told.items()}
    return RawTables(impressions=impressions, **others, events=events, can_skip=True)


def open_table(
    connection: duckdb.DuckDBPyConnection,
    view: str,
    table: TableInput,
    skip: int = 0,
    *,
    head: int | None = None,
    may_lack: Callable[[str], bool] = lambda canonical: False,
) -> RawTable:
    """One table, without its first `skip` files, with its columns renamed to the canonical names.

    `head` is for a first look: of files that must be decoded, about so many bytes are enough. `may_lack` says of which
    canonical columns the mapping is passed over where the files lack what it names.
    """
    files, stored = find_files(table.files), f"{view}_files"
    first_column = next(iter(table.leave_out.values()), [])
    read_files(
        connection, stored, files[skip:], all_files=files, format=table.format, delimiter=table.delimiter, header=table.header,
        skip_lines=table.skip_lines, left_out=[str(value) for value in first_column], quote=table.quote, escape=table.escape,
        encoding=table.encoding, sheet=table.sheet, head=head,
    )  # fmt: skip
    found = columns_of(connection, stored)
    try:
        nested = find_nested(connection, stored)
    except duckdb.InvalidInputException:
        if not set_lines_aside(connection, files):
            raise
        nested = find_nested(connection, stored)
    cells = {**{column: name(column) for column in found}, **nested.cells}
    named = {ours: [theirs] if isinstance(theirs, str) else theirs for ours, theirs in table.columns.items()}
    firsts = {ours: [theirs] for ours, theirs in table.first_of.items()}
    asked = [*named.items(), *firsts.items(), *((f"leave_out.{column}", [column]) for column in table.leave_out)]
    for column in dict.fromkeys(column for _, columns in asked for column in columns if column not in cells):
        inside = path_cell(connection, stored, column)
        if inside is not None:
            cells[column] = inside
    lacking = {ours for ours, columns in asked if may_lack(ours) and not set(columns) <= set(cells)}
    if lacking or table.at_least:
        table = _without(table, lacking, {*cells, *named, *firsts}, may_lack)
        named, firsts, asked = (
            {ours: columns for ours, columns in named.items() if ours not in lacking},
            {ours: columns for ours, columns in firsts.items() if ours not in lacking},
            [(ours, columns) for ours, columns in asked if ours not in lacking],
        )
    missing = [f"'{column}' (for {ours})" for ours, columns in asked for column in columns if column not in cells]
    if missing:
        known = listed(list(cells)[:20])
        raise DataError(f"{files[0]}: column {', '.join(missing)} is missing. Columns: {known}. Mend `columns` in the config.")
    selected = [
        f"{_joined(ours, [cells[column] for column in theirs], table)} AS {name(ours)}" for ours, theirs in named.items()
    ]
    for ours, theirs in table.first_of.items():
        items = cells[theirs] if found.get(theirs, "").endswith("[]") else text_items(cells[theirs], table.list_separator)
        selected.append(f"{items}[1] AS {name(ours)}")
    # A column already called like the target of a mapping would be a second one of that name: the mapping wins.
    renamed = {theirs[0] for theirs in named.values() if len(theirs) == 1}
    taken = {column.lower() for column in {*renamed, *named, *firsts}}
    selected += [f"{cell} AS {name(column)}" for column, cell in cells.items() if column.lower() not in taken]
    rows = "".join(f" AND NOT {_is_left_out(cells[column], values)}" for column, values in table.leave_out.items())
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS SELECT {', '.join(selected)} FROM {stored} WHERE true{rows}")
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
        positive={str(flag): words for flag, words in table.positive.items()},
        at_least={flag: next(iter(bound.items())) for flag, bound in table.at_least.items()},
        first_position=table.first_position,
        own_names={ours: " + ".join(theirs) for ours, theirs in asked if [ours] != theirs},
    )
    return RawTable(view, tuple(files), reading)


def _joined(ours: str, cells: Sequence[str], table: TableInput) -> str:
    """SQL of one cell made of several, the empty ones passed over: a moment's stand side by side, an id's are told apart."""
    if len(cells) == 1:
        return cells[0]
    is_moment = table.types.get(ours) == "timestamp" or any(
        ours in spec and spec[ours].role == "moment" for spec in schema.TABLES
    )
    mark = " " if is_moment else "|"
    listed = ", ".join(f"nullif(trim(CAST({cell} AS VARCHAR)), '')" for cell in cells)
    return f"nullif(concat_ws({text(mark)}, {listed}), '')"


def _is_left_out(cell: str, values: Sequence[Scalar]) -> str:
    return f"coalesce(trim(CAST({cell} AS VARCHAR)) IN ({', '.join(text(str(value)) for value in values)}), false)"


def _without(
    table: TableInput, lacking: Collection[str], found: Collection[str], may_lack: Callable[[str], bool]
) -> TableInput:
    """`table` without the mappings called `lacking`, and without the flags that may lack and whose column is not `found`."""
    kept = {
        "columns": {ours: theirs for ours, theirs in table.columns.items() if ours not in lacking},
        "first_of": {ours: theirs for ours, theirs in table.first_of.items() if ours not in lacking},
        "leave_out": {column: values for column, values in table.leave_out.items() if f"leave_out.{column}" not in lacking},
        "at_least": {flag: bound for flag, bound in table.at_least.items() if set(bound) <= set(found) or not may_lack(flag)},
    }
    return table.model_copy(update=kept)
