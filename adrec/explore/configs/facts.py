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


def facts_of(guess: Guess) -> Facts:
    """Counts of the log that was guessed."""
    log, names = guess.tables["impressions"], guess.names["impressions"]
    total = max(log.total_rows, log.rows)
    scale = total / max(log.rows, 1)
    with rows_of(log) as rows:
        weight = _sum(rows, guess, "impressions") if guess.shape == "counts" else log.rows
        clicks = _clicks(rows, guess)
        users, ads, requests = (_distinct(rows, guess, canonical) for canonical in ("user_id", "ad_id", "request_id"))
        if not requests and {"user_id", "shown_at"} <= set(names):
            keys = [*_listed(names["user_id"]), *_listed(names["shown_at"])]
            requests = _distinct_of(rows, keys)
        hours = _hours(rows, guess)
        moments = _distinct(rows, guess, "shown_at")
        texts, languages = _texts(rows, guess) if "title" in names else (0, {})
    if "ads" in guess.tables:
        ads = max(ads, guess.tables["ads"].total_rows)
        if "title" in guess.names["ads"]:
            with rows_of(guess.tables["ads"]) as rows:
                texts, languages = _texts(rows, guess, "ads")
    has_time = "shown_at" in names
    return Facts(
        rows=round(total),
        clicks=clicks * scale,
        ads=max(ads, 1),
        users=users,
        rows_a_request=log.rows / requests if requests and guess.shape != "counts" else 1.0,
        texts=texts,
        languages=languages,
        hours=hours if weight else (),
        has_time=has_time,
        has_spread=moments >= _FEWEST_MOMENTS or total > log.rows,  # the first rows of more may all be of one day
        has_category=guess.has("category"),
        has_description=guess.has("description"),
        has_interests=guess.has("interests"),
        has_bid=guess.has("bid"),
        is_clicks_alone=guess.shape == "clicks",
        has_position="position" in names and guess.shape not in {"clicks", "unlabelled"},
        segments=_segments(guess),
        split_given={"train", "test"} <= set(log.parts.values()),
    )


def _listed(columns: str | list[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def _distinct(rows: Rows, guess: Guess, canonical: str) -> int:
    columns = guess.names["impressions"].get(canonical)
    return _distinct_of(rows, _listed(columns)) if columns is not None else 0


def _distinct_of(rows: Rows, columns: list[str]) -> int:
    return int(rows.ask(f"count(DISTINCT {rows.cells(columns)})"))


def _sum(rows: Rows, guess: Guess, canonical: str) -> float:
    column = guess.names["impressions"][canonical]
    return float(rows.ask(f"coalesce(sum(try_cast({rows.cell(str(column))} AS DOUBLE)), 0)"))


def _clicks(rows: Rows, guess: Guess) -> float:
    if guess.shape == "counts":
        return _sum(rows, guess, "clicks")
    if guess.shape == "events":
        return float(guess.tables["clicks"].rows) if "clicks" in guess.tables else 0.0
    if guess.shape in {"clicks", "unlabelled"}:
        return float(rows.table.rows) if guess.shape == "clicks" else 0.0
    return float(rows.ask(f"coalesce(sum({guess.clicked}), 0)")) if guess.clicked is not None else 0.0


def _texts(rows: Rows, guess: Guess, role: str = "impressions") -> tuple[int, dict[str, float]]:
    title = guess.names[role]["title"]
    profile = profile_texts(rows.connection, Rows.RELATION, str(title))
    return _distinct_of(rows, [str(title)]), profile["languages"]


def _hours(rows: Rows, guess: Guess) -> tuple[float, ...]:
    """Rows by hour of the day, as the moments say it; none where they cannot be read, or are days."""
    column = guess.column("impressions", "shown_at")
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


def _segments(guess: Guess) -> list[str]:
    """Categories of users (of rows, where rows name no user) of a few values."""
    role = "users" if "user_id" in guess.names["impressions"] else "impressions"
    table = guess.tables.get(role, guess.tables["impressions"])
    columns = [table.columns.get(column) for column in guess.features[role]["categorical"]]
    return [column.name for column in columns if column is not None and _SEGMENT[0] <= column.distinct <= _SEGMENT[1]]
