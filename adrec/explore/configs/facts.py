"""What the recipe wants to know of a log, counted on the rows that `look` read and scaled to the whole."""

from dataclasses import replace

from adrec.data.disk.engine import columns_of, name, one_row
from adrec.errors import AdrecError
from adrec.explore.configs.recipe import Facts
from adrec.explore.guessing.findings import Guess
from adrec.explore.guessing.ties import Rows, rows_of
from adrec.explore.profile import profile_texts
from adrec.prepare.sources.base import Reading
from adrec.prepare.staging.convert import converted, filled

_SEGMENT = (2, 30)
"""A segment has at least and at most so many values."""

_FEWEST_MOMENTS = 5


def facts_of(found: Guess) -> Facts:
    """Counts of the log that was guessed."""
    log, names = found.tables["impressions"], found.names["impressions"]
    total = max(log.total_rows, log.rows)
    scale = total / max(log.rows, 1)
    with rows_of(log) as rows:
        weight = _sum(rows, found, "impressions") if found.shape == "counts" else log.rows
        clicks = _clicks(rows, found)
        users, ads, requests = (_distinct(rows, found, canonical) for canonical in ("user_id", "ad_id", "request_id"))
        if not requests and {"user_id", "shown_at"} <= set(names):
            keys = [*_listed(names["user_id"]), *_listed(names["shown_at"])]
            requests = _distinct_of(rows, keys)
        hours = _hours(rows, found)
        moments = _distinct(rows, found, "shown_at")
        texts, languages = _texts(rows, found) if "title" in names else (0, {})
    if "ads" in found.tables:
        ads = max(ads, found.tables["ads"].total_rows)
        if "title" in found.names["ads"]:
            with rows_of(found.tables["ads"]) as rows:
                texts, languages = _texts(rows, found, "ads")
    has_time = "shown_at" in names
    return Facts(
        rows=round(total),
        clicks=clicks * scale,
        ads=max(ads, 1),
        users=users,
        rows_a_request=log.rows / requests if requests and found.shape != "counts" else 1.0,
        texts=texts,
        languages=languages,
        hours=hours if weight else (),
        has_time=has_time,
        has_spread=moments >= _FEWEST_MOMENTS or total > log.rows,  # the first rows of more may all be of one day
        has_category=found.has("category"),
        has_description=found.has("description"),
        has_interests=found.has("interests"),
        has_bid=found.has("bid"),
        is_clicks_alone=found.shape == "clicks",
        has_position="position" in names and found.shape not in {"clicks", "unlabelled"},
        segments=_segments(found),
        split_given={"train", "test"} <= set(log.parts.values()),
    )


def _listed(columns: str | list[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def _distinct(rows: Rows, found: Guess, canonical: str) -> int:
    columns = found.names["impressions"].get(canonical)
    return _distinct_of(rows, _listed(columns)) if columns is not None else 0


def _distinct_of(rows: Rows, columns: list[str]) -> int:
    return int(rows.ask(f"count(DISTINCT {rows.cells(columns)})"))


def _sum(rows: Rows, found: Guess, canonical: str) -> float:
    column = found.names["impressions"][canonical]
    return float(rows.ask(f"coalesce(sum(try_cast({rows.cell(str(column))} AS DOUBLE)), 0)"))


def _clicks(rows: Rows, found: Guess) -> float:
    if found.shape == "counts":
        return _sum(rows, found, "clicks")
    if found.shape == "events":
        return float(found.tables["clicks"].rows) if "clicks" in found.tables else 0.0
    if found.shape in {"clicks", "unlabelled"}:
        return float(rows.table.rows) if found.shape == "clicks" else 0.0
    return float(rows.ask(f"coalesce(sum({found.clicked}), 0)")) if found.clicked is not None else 0.0


def _texts(rows: Rows, found: Guess, role: str = "impressions") -> tuple[int, dict[str, float]]:
    title = found.names[role]["title"]
    profile = profile_texts(rows.connection, Rows.RELATION, str(title))
    return _distinct_of(rows, [str(title)]), profile["languages"]


def _hours(rows: Rows, found: Guess) -> tuple[float, ...]:
    """Rows by hour of the day, as the moments say it; none where they cannot be read, or are days."""
    column = found.column("impressions", "shown_at")
    if column is None or column.time is None:
        return ()
    reading = replace(Reading(), **column.time)
    stored = columns_of(rows.connection, Rows.RELATION)[column.name]
    moment = converted(reading, "shown_at", filled(reading, name(column.name), stored, "moment"), stored, "TIMESTAMP", "moment")
    counts = ", ".join(f"count_if(hour(m) = {hour}) AS h{hour}" for hour in range(24))
    try:
        row = one_row(rows.connection, f"SELECT {counts} FROM (SELECT {moment} AS m FROM {Rows.RELATION})")
    except AdrecError:
        return ()
    hours = tuple(float(row[f"h{hour}"] or 0) for hour in range(24))
    return hours if sum(count > 0 for count in hours) > 1 else ()


def _segments(found: Guess) -> list[str]:
    """Categories of users (of rows, where rows name no user) of a few values."""
    role = "users" if "user_id" in found.names["impressions"] else "impressions"
    table = found.tables.get(role, found.tables["impressions"])
    columns = [table.columns.get(column) for column in found.features[role]["categorical"]]
    return [column.name for column in columns if column is not None and _SEGMENT[0] <= column.distinct <= _SEGMENT[1]]
