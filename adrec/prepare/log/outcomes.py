"""Clicks and conversions in files of their own, joined to the impressions inside the engine, whatever their size.

By identifiers (`on` alone) the first event of a key belongs to its first impression, the second to the second. With `within` an
event belongs to the latest impression of its key at or before it, unless that was longer ago: DuckDB's ASOF join, which sorts
and spills. One event an impression: further ones repeat the first. What matches nothing is counted and told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import duckdb

from adrec.config.data.sources import EventsInput, Source, TablesSource
from adrec.config.data.spans import span_of
from adrec.data.disk.engine import columns_of, name, one_row
from adrec.errors import DataError
from adrec.prepare.log.events import good
from adrec.schema import IMPRESSIONS, TIMESTAMP, Column, TableSpec

LABELS = {"clicks": ("click", "clicked_at"), "conversions": ("conversion", "converted_at")}
"""Table of events → the label that it gives the impressions, and the column of its moment."""


def events_of(source: Source) -> Mapping[str, EventsInput]:
    """The tables of events that a source names."""
    if not isinstance(source, TablesSource):
        return {}
    return {label: table for label in LABELS if (table := getattr(source, label)) is not None}


def made_columns(source: Source) -> set[str]:
    """Columns of the impressions that events make, and no file of impressions holds."""
    return {column for label in events_of(source) for column in LABELS[label]}


def joined_by(source: Source) -> list[str]:
    """Columns beyond the contract by which events are joined: identifiers, read for the join alone."""
    named = dict.fromkeys(column for table in events_of(source).values() for column in table.on)
    return [column for column in named if column not in IMPRESSIONS]


def spec_of(label: str, table: EventsInput) -> TableSpec:
    """The contract of a table of events: its keys and its moment."""
    moment = Column(LABELS[label][1], TIMESTAMP, False, "when it happened", "moment")
    keys = (replace(IMPRESSIONS[column], filled=False) for column in table.on if column in IMPRESSIONS)
    return TableSpec(label, (*keys, moment))


def join_events_to(
    connection: duckdb.DuckDBPyConnection, staged: str, label: str, table: EventsInput, file: str, *, may_miss: bool = False
) -> dict[str, int]:
    """Give the staged impressions the label, and its moment where there is one, of table `staged_<label>`.

    Returns how many events there are and how many are matched, late, repeated and unmatched. Raises DataError for columns that
    either side lacks, and where no event matches, unless all `may_miss`.
    """
    flag, moment = LABELS[label]
    events = f"staged_{label}"
    ours, theirs = columns_of(connection, staged), columns_of(connection, events)
    where = f"{file}: {label}"
    if flag in ours:
        raise DataError(
            f"{where}: the impressions have a column '{flag}' already. Leave it unmapped, or leave source.{label} out."
        )
    for column in table.on:
        for columns, side in ((ours, "impressions"), (theirs, label)):
            if column not in columns:
                raise DataError(f"{where}: `on` names '{column}', which the {side} lack. Name a column that both have.")
    if table.within is not None and not (moment in theirs and "shown_at" in ours):
        side, column = (label, moment) if moment not in theirs else ("impressions", "shown_at")
        raise DataError(f"{where}: `within` needs the moment '{column}' of the {side}. Map it, or join by an identifier.")
    keys = [f"CAST({name(column)} AS VARCHAR) AS k{number}" for number, column in enumerate(table.on)]
    has_moment = moment in theirs
    at = name(moment) if has_moment else "CAST(NULL AS TIMESTAMP)"
    known = " AND ".join(f"{name(column)} IS NOT NULL" for column in table.on)
    shown = f"SELECT {', '.join(keys)}, source_order{', shown_at' if 'shown_at' in ours else ''} FROM {staged} WHERE {known}"
    shown += f" AND {good(connection, staged)}"
    told = f"SELECT {', '.join(keys)}, {at} AS moment, source_order FROM {events} WHERE {good(connection, events)}"
    matched = _by_moment(shown, told, len(keys), table.within) if table.within else _by_key(shown, told, len(keys))
    connection.execute(f"CREATE OR REPLACE TEMP TABLE matched AS {matched}")
    counts = one_row(
        connection,
        "SELECT count(*) AS events, count(*) FILTER (impression IS NULL AND NOT is_spare) AS unmatched, "
        "count(*) FILTER (is_late) AS late, count(DISTINCT impression) FILTER (NOT is_late) AS matched FROM matched",
    )
    counts["repeated"] = counts["events"] - counts["unmatched"] - counts["late"] - counts["matched"]
    if counts["events"] and not counts["matched"] and not may_miss:
        raise DataError(f"{where}: none of {counts['events']:,} belongs to an impression. Check `on` ({', '.join(table.on)}).")
    own = f", h.moment AS {name(moment)}" if has_moment else ""
    hits = "SELECT impression, min(moment) AS moment FROM matched WHERE impression IS NOT NULL AND NOT is_late GROUP BY 1"
    connection.execute(
        f"CREATE OR REPLACE TABLE {staged} AS SELECT s.*, CAST(h.impression IS NOT NULL AS TINYINT) AS {flag}{own} "
        f"FROM {staged} s LEFT JOIN ({hits}) h ON s.source_order = h.impression ORDER BY s.source_order"
    )
    connection.execute("DROP TABLE matched")
    return counts


def told_of(label: str, table: EventsInput, counts: Mapping[str, int]) -> str:
    """A line for people."""
    parts = [f"{counts['matched']:,} of {counts['events']:,} {label} belong to an impression (by {', '.join(table.on)})"]
    parts += [f"{counts['late']:,} came later than {table.within}"] if counts["late"] else []
    parts += [f"{counts['repeated']:,} repeat one"] if counts["repeated"] else []
    parts += [f"{counts['unmatched']:,} match none"] if counts["unmatched"] else []
    return "; ".join(parts) + "."


def _by_moment(shown: str, told: str, keys: int, within: str) -> str:
    """SQL of moment, impression (its source_order, null where none), is_late, is_spare."""
    columns = ", ".join(f"k{number}" for number in range(keys))
    on = " AND ".join(f"c.k{number} = i.k{number}" for number in range(keys))
    seconds = int(span_of(within)[0].total_seconds())
    same = f"OVER (PARTITION BY {columns}, shown_at ORDER BY source_order)"
    first = f"SELECT * FROM ({shown}) WHERE shown_at IS NOT NULL QUALIFY row_number() {same} = 1"
    return (
        f"SELECT c.moment, i.source_order AS impression, false AS is_spare, "
        f"coalesce(c.moment - i.shown_at > to_seconds({seconds}), false) AS is_late "
        f"FROM ({told}) c ASOF LEFT JOIN ({first}) i ON {on} AND c.moment >= i.shown_at"
    )


def _by_key(shown: str, told: str, keys: int) -> str:
    """SQL of the same: the n-th event of a key is the n-th impression's; more of them are spare."""
    columns = ", ".join(f"k{number}" for number in range(keys))
    on = " AND ".join(f"c.k{number} = i.k{number}" for number in range(keys))

    def numbered(rows: str, order: Sequence[str]) -> str:
        return f"SELECT *, row_number() OVER (PARTITION BY {columns} ORDER BY {', '.join(order)}) AS nth FROM ({rows})"

    sizes = f"SELECT {columns}, count(*) AS n FROM ({shown}) GROUP BY ALL"
    return (
        "SELECT c.moment, i.source_order AS impression, false AS is_late, "
        "z.n IS NOT NULL AND i.source_order IS NULL AS is_spare "
        f"FROM ({numbered(told, ['moment', 'source_order'])}) c "
        f"LEFT JOIN ({numbered(shown, ['source_order'])}) i ON {on} AND c.nth = i.nth "
        f"LEFT JOIN ({sizes}) z ON {on.replace('i.', 'z.')}"
    )
