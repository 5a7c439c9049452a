"""Which table is the log, which the ads, which the users, and which holds clicks or conversions of the log's impressions."""

import re

from adrec.explore.guessing.findings import Guess
from adrec.explore.guessing.names import likeness, plain, snake
from adrec.explore.guessing.ties import Rows
from adrec.explore.look import Column, Table

_OF_EVENTS = {
    "clicks": re.compile(r"(^|_)(click|clicks|clicked|clk|taps?)(_|$)|点击"),
    "conversions": re.compile(r"(^|_)(conversions?|converted|purchases?|orders?|installs?|transactions?)(_|$)|转化|订单"),
}
_MOSTLY = 0.5


def named_for(table: Table, canonical: str) -> Column | None:
    """The column with the likeliest name for `canonical`, whatever it holds."""
    ranked = [(place, column) for column in table.columns.values() if (place := likeness(column.name, canonical)) is not None]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def the_log(tables: list[Table]) -> Table:
    """The table that says most of who saw what and whether it was clicked; the longest of several."""
    return max(tables, key=lambda table: (_is_log(table), table.rows))


def _is_log(table: Table) -> int:
    user, ad, time = (named_for(table, canonical) is not None for canonical in ("user_id", "ad_id", "shown_at"))
    label = any(column.distinct == 2 and likeness(column.name, "click") is not None for column in table.columns.values())
    counts = all(named_for(table, canonical) is not None for canonical in ("impressions", "clicks"))
    points = 3 * (label or counts) + 2 * user + 2 * ad + (user and ad) + time + (named_for(table, "rating") is not None)
    key = named_for(table, "ad_id")
    is_a_catalogue = key is not None and key.distinct == table.rows > 1 and not (label or counts or user)
    return 0 if is_a_catalogue else points


def find_others(guess: Guess, others: list[Table], rows: dict[int, Rows]) -> None:
    """Say which of the other tables are ads, users, clicks and conversions; what is left is noted."""
    log = guess.tables["impressions"]
    for role in ("clicks", "conversions"):
        table = next((table for table in others if _has_events(table, role, log)), None)
        if table is not None:
            others.remove(table)
            guess.tables[role] = table
    for role, canonical in (("ads", "ad_id"), ("users", "user_id")):
        keyed = [(table, *pair) for table in others if (pair := _key_of(table, canonical, log, rows)) is not None]
        if keyed:
            chosen, column, _ = max(keyed, key=lambda item: (round(item[2], 2), _richness(item[0], role)))
            others.remove(chosen)
            guess.tables[role] = chosen
            guess.take(role, canonical, column.name, "each of its values once, a row each")
    guess.notes += [f"{table.label} is none of impressions, clicks, ads and users: left out." for table in others]


def _richness(table: Table, role: str) -> int:
    """How many columns of the contract a table has, by name: of two tables of ads the one that describes them is taken."""
    canonical = ("title", "description", "category", "advertiser_id", "bid") if role == "ads" else ("interests",)
    return sum(named_for(table, name) is not None for name in canonical)


def _has_events(table: Table, role: str, log: Table) -> bool:
    """A table of clicks names itself or its moment so, and shares the log's ids."""
    sign = _OF_EVENTS[role]
    times = [column.name for column in table.columns.values() if column.time is not None]
    is_named = any(sign.search(snake(name)) for name in (*(file.name.split(".", 1)[0] for file in table.files), *times))
    shares = {plain(name) for name in table.columns} & {plain(name) for name in log.columns}
    has_ids = any(likeness(name, canonical) is not None for name in table.columns for canonical in ("ad_id", "request_id"))
    return is_named and has_ids and bool(shares)


def _key_of(table: Table, canonical: str, log: Table, rows: dict[int, Rows]) -> tuple[Column, float] | None:
    """The column that names a row each, as the log's column of this meaning does, and how much of the log it covers."""
    ours, theirs = named_for(log, canonical), named_for(table, canonical)
    other = "user_id" if canonical == "ad_id" else "ad_id"
    unique = [
        column
        for column in table.columns.values()
        if column.filled == table.rows == column.distinct
        and not column.is_list
        and (likeness(column.name, canonical) is not None or likeness(column.name, other) is None)
    ]
    if ours is None:
        shared = [
            column for column in unique if plain(column.name) in {plain(name) for name in log.columns} and column is theirs
        ]
        return (shared[0], 0.0) if shared else None
    covers = {column.name: rows[id(log)].share_inside(ours.name, rows[id(table)], column.name) for column in unique}
    best = max(unique, key=lambda column: (covers[column.name], column is theirs), default=None)
    if best is not None and covers[best.name] >= _MOSTLY:
        return best, covers[best.name]
    return (theirs, 0.0) if theirs is not None and theirs in unique and log.rows >= table.rows else None
