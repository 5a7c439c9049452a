"""What a table holds that is no fault but deserves a word: words for missing cells, and moments far from today."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import duckdb

from adrec.data.disk.engine import columns_of, name, one_row
from adrec.prepare.sources import RawTable
from adrec.prepare.staging.convert import trimmed
from adrec.schema import TableSpec

_BITS = 60
_EARLIEST = datetime(1990, 1, 1)
_AHEAD = timedelta(days=366)


def notes_of(
    connection: duckdb.DuckDBPyConnection,
    raw: RawTable,
    spec: TableSpec,
    table: str,
    words: Sequence[str],
    moments: Sequence[str],
) -> list[str]:
    """One line a thing that was met in the staged `table`, whose `notes_*` columns (bits of `words`) are dropped."""
    found = _null_words(connection, raw, table, words)
    masks = [column for column in columns_of(connection, table) if column.startswith("notes_")]
    for mask in masks:
        connection.execute(f"ALTER TABLE {table} DROP COLUMN {mask}")
    return found + (_far_moments(connection, raw, spec, table, moments) if raw.reading.has_real_moments else [])


def _null_words(connection: duckdb.DuckDBPyConnection, raw: RawTable, table: str, words: Sequence[str]) -> list[str]:
    notes, stored = [], columns_of(connection, raw.view)
    bits = {column: f"(notes_{number // _BITS} & {1 << number % _BITS}) <> 0" for number, column in enumerate(words)}
    for start in range(0, len(words), _BITS):
        any_bit = one_row(connection, f"SELECT bit_or(notes_{start // _BITS}) AS bits FROM {table}")["bits"] or 0
        for number, column in enumerate(words[start : start + _BITS]):
            if not any_bit >> number & 1:
                continue
            met = one_row(
                connection,
                f"SELECT count(*) AS n, min(source_order) AS at, arg_min(source_row, source_order) AS row, "
                f"arg_min(source_file, source_order) AS file FROM {table} WHERE {bits[column]}",
            )
            cell = trimmed(name(column), stored[column])
            word = one_row(connection, f"SELECT {cell} AS word FROM {raw.view} WHERE source_order = {met['at']}")["word"]
            shown = raw.reading.own_names.get(column, column)
            notes.append(
                f"{met['file']}: column '{shown}', row {met['row']:,}: {word!r} is read as a missing value ({met['n']:,} such "
                "cells). Set `null_values` in the config where it is a value."
            )
    return notes


def _far_moments(
    connection: duckdb.DuckDBPyConnection, raw: RawTable, spec: TableSpec, table: str, moments: Sequence[str]
) -> list[str]:
    """Campaigns may end in a far year; nothing of a log lies there."""
    notes = []
    latest = datetime.now(UTC).replace(tzinfo=None) + _AHEAD
    for column in moments:
        outside = f"{name(column)} < TIMESTAMP '{_EARLIEST}'"
        if spec.key is None:
            outside += f" OR {name(column)} > TIMESTAMP '{latest}'"
        met = one_row(
            connection,
            f"SELECT count(*) AS n, arg_min({name(column)}, source_order) AS moment, arg_min(source_row, source_order) AS row, "
            f"arg_min(source_file, source_order) AS file FROM {table} WHERE {outside}",
        )
        if met["n"]:
            shown = raw.reading.own_names.get(column, column)
            notes.append(
                f"{met['file']}: column '{shown}', row {met['row']:,}: {met['moment']:%Y-%m-%d} is far from today "
                f"({met['n']:,} such rows). Check `time_unit` and `time_format` in the config."
            )
    return notes
