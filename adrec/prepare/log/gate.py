"""What the ordered events give away: labels that came after the cut, repeated rows, histories taken after the fact.

Everything is a DuckDB aggregate over table `events`, which spills where it must. Nothing is changed: what is found is told.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb

from adrec.config.data.preprocess import ColumnSplit, Split, TimeSplit
from adrec.config.training.features import HistoryConfig
from adrec.data.disk.engine import columns_of, moment_sql, name, one_row, text
from adrec.data.shape import LogShape
from adrec.schema import NOBODY, ROW_NAMES, SPLITS, WEIGHT

_MANY = 0.1
"""Share of the clicks that a history must know beforehand to be told: people do click the same ad again."""
_MORE_ALIKE = 0.3
"""Share of the rows outside training that may equal training rows beyond those that do so by chance, without a word."""
_ENOUGH = 10
"""Fewest such clicks."""


@dataclass(frozen=True)
class Finding:
    """Something in the log that deserves a line: what, how often, and what to do."""

    kind: str
    rows: int
    of: int
    problem: str
    """what is wrong, of which {rows} and {of} are the counts"""
    cure: str

    def __str__(self) -> str:
        return f"{self.problem.format(rows=f'{self.rows:,}', of=f'{self.of:,}')}. {self.cure}"

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {"kind": self.kind, "rows": self.rows, "of": self.of, "message": str(self)}


def cuts_of(
    connection: duckdb.DuckDBPyConnection, split: Split, before: Mapping[str, Mapping[str, Any]]
) -> dict[str, datetime]:
    """When validation and test begin (aware, UTC), where the split is in time order; else nothing.

    `before`: the splits of the output that is appended to, by the manifest.
    """
    if isinstance(split, TimeSplit) and split.test_from is not None:
        begins: dict[str, datetime | None] = {"valid": split.valid_from, "test": split.test_from}
        return {split_name: moment for split_name, moment in begins.items() if moment is not None}
    if not (isinstance(split, TimeSplit) or (isinstance(split, ColumnSplit) and split.in_time_order)):
        return {}
    found = connection.execute("SELECT part, min(shown_at), max(shown_at) FROM events GROUP BY part").fetchall()
    ends = {SPLITS[split_name]: (first.replace(tzinfo=UTC), last.replace(tzinfo=UTC)) for split_name, first, last in found}
    for split_name, counts in before.items():
        first, last = (datetime.fromisoformat(counts[end]) for end in ("first", "last"))
        ends[split_name] = (
            (min(first, ends[split_name][0]), max(last, ends[split_name][1])) if split_name in ends else (first, last)
        )
    cuts: dict[str, datetime] = {split_name: ends[split_name][0] for split_name in ("valid", "test") if split_name in ends}
    # A column may mix validation rows among the training rows: they begin nothing.
    if isinstance(split, ColumnSplit) and "valid" in cuts and "train" in ends and cuts["valid"] < ends["train"][1]:
        del cuts["valid"]
    return cuts


def moments_of(connection: duckdb.DuckDBPyConnection, history: HistoryConfig) -> dict[str, str]:
    """Label → column of the events with its moment, for the labels that have one."""
    known = columns_of(connection, "events")
    named = {"click": history.clicked_at, "conversion": history.converted_at}
    return {label: column for label, column in named.items() if column in known and label in known}


def immature_labels(
    connection: duckdb.DuckDBPyConnection, rows: str, cuts: Mapping[str, datetime], moments: Mapping[str, str]
) -> dict[str, dict[str, dict[str, int]]]:
    """Part → label → `rows` (of SQL `rows`) whose label came at or after the next part began, `of` so many with that label."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for number, part in enumerate(SPLITS[:2]):
        later = [cuts[other] for other in SPLITS[number + 1 :] if other in cuts]
        if not later:
            continue
        for label, column in moments.items():
            counts = one_row(
                connection,
                f"SELECT count(*) AS of, count_if({name(column)} >= {moment_sql(min(later))}) AS rows FROM ({rows}) "
                f"WHERE part = {number} AND {label} = 1",
            )
            found.setdefault(part, {})[label] = {"rows": counts["rows"] or 0, "of": counts["of"]}
    return found


def findings_of(connection: duckdb.DuckDBPyConnection, split: Split, shape: LogShape) -> list[Finding]:
    """Repeated rows, rows in two parts, histories that know what comes: a finding each, where there are any."""
    is_named = shape.user and shape.ad and shape.time
    found = [_repeats(connection), _shared(connection, split) if is_named else _copied(connection), _foreseen(connection)]
    return [finding for finding in found if finding is not None]


def _repeats(connection: duckdb.DuckDBPyConnection) -> Finding | None:
    """First the pairs (request, ad) that occur twice: all rows are grouped by eight bytes only.

    Rows of counts may agree by chance, since a segment need not be among the columns.
    """
    if WEIGHT in columns_of(connection, "events"):
        return None
    key = _columns(connection, "request", "ad_index", "user_index", "shown_at", "position", "click")
    counts = one_row(
        connection,
        "WITH twice AS (SELECT request, ad_index FROM events GROUP BY ALL HAVING count(*) > 1), "
        f"same AS (SELECT count(*) AS n FROM events SEMI JOIN twice USING (request, ad_index) GROUP BY {key}) "
        "SELECT coalesce(sum(n - 1), 0) AS rows, (SELECT count(*) FROM events) AS of FROM same",
    )
    if not counts["rows"]:
        return None
    return Finding(
        "repeats",
        int(counts["rows"]),
        counts["of"],
        "{rows} of {of} rows repeat an earlier row exactly (same user, ad, moment, request, position and label)",
        "Name each file once in the source, or leave the copies out of the export",
    )


def _shared(connection: duckdb.DuckDBPyConnection, split: Split) -> Finding | None:
    if isinstance(split, TimeSplit):
        return None  # rows of one moment and request lie in one part
    counts = one_row(
        connection,
        "SELECT coalesce(sum(n), 0) AS rows, (SELECT count(*) FROM events WHERE part > 0) AS of FROM ("
        "SELECT count_if(part > 0) AS n FROM events GROUP BY user_index, ad_index, shown_at "
        "HAVING count(*) > 1 AND bool_or(part = 0) AND bool_or(part > 0))",
    )
    if not counts["rows"]:
        return None
    return Finding(
        "shared_rows",
        int(counts["rows"]),
        counts["of"],
        "{rows} of {of} rows outside training are training rows too (same user, ad and moment): figures on them mean nothing",
        "Split by time (split.method: time), or give each file to one part",
    )


def _copied(connection: duckdb.DuckDBPyConnection) -> Finding | None:
    """As `_shared`, where rows do not say who, what and when: rows whose every cell is that of a training row.

    Rows of few values are alike by chance, so only more of them than that are told.
    """
    own = {"request", "part", "request_id", *ROW_NAMES}
    columns = ", ".join(name(column) for column in columns_of(connection, "events") if column not in own)
    counts = one_row(
        connection,
        "SELECT coalesce(sum(later) FILTER (trained > 0), 0) AS rows, sum(later) AS of, sum(trained) AS trained, "
        "coalesce(sum(trained) FILTER (trained > 1), 0) AS repeated FROM (SELECT count_if(part > 0) AS later, "
        f"count_if(part = 0) AS trained FROM events GROUP BY {columns})",
    )
    # As many training rows equal another training row where it is chance.
    if counts["rows"] <= (_MORE_ALIKE + counts["repeated"] / max(counts["trained"], 1)) * counts["of"]:
        return None
    return Finding(
        "shared_rows",
        int(counts["rows"]),
        counts["of"],
        "{rows} of {of} rows outside training equal training rows in every cell: figures on them mean little",
        "Where files hold the same rows, name each once in the source; else declare more columns, or split otherwise",
    )


def _foreseen(connection: duckdb.DuckDBPyConnection) -> Finding | None:
    """Given histories that hold what their user clicks in that request or later, at the first request of each user.

    One request a user: what a history holds there, before the user's clicks of the log, can only be chance or hindsight.
    """
    if not {"history", "click"} <= set(columns_of(connection, "events")):
        return None
    counts = one_row(
        connection,
        "WITH firsts AS (SELECT user_index, arg_min(history, request) AS history FROM events GROUP BY user_index), "
        "clicks AS (SELECT DISTINCT e.user_index, a.ad_id FROM events e JOIN ads a USING (ad_index) "
        f"JOIN users u USING (user_index) WHERE e.click = 1 AND u.user_id <> {text(NOBODY)}) "
        "SELECT count(*) AS of, count_if(list_contains(f.history, c.ad_id)) AS rows "
        "FROM clicks c JOIN firsts f USING (user_index) WHERE len(f.history) > 0",
    )
    own = one_row(
        connection,
        "SELECT count(*) AS of, count_if(list_contains(e.history, a.ad_id)) AS rows FROM events e JOIN ads a USING (ad_index) "
        "WHERE e.click = 1 AND len(e.history) > 0",
    )
    worst = max((counts, own), key=lambda found: (found["rows"] or 0) / max(found["of"], 1))
    if (worst["rows"] or 0) < max(_ENOUGH, _MANY * worst["of"]):
        return None
    when = "in that very row" if worst is own else "later in the log"
    return Finding(
        "history_after_the_fact",
        worst["rows"],
        worst["of"],
        f"{{rows}} of {{of}} clicks are on ads that the given `history` holds before they are clicked ({when}): "
        "it seems to have been taken after the fact",
        "Set history.source to clicks, so that histories are made from the log",
    )


def merged(earlier: list[dict[str, Any]], later: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Findings of an output and of the rows appended to it; of one kind the later stand, which counted last."""
    kinds = {finding["kind"] for finding in later}
    return [*(finding for finding in earlier if finding["kind"] not in kinds), *later]


def sum_counts(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings of counts as one: counts add up."""
    total: dict[str, Any] = dict(earlier)
    for key, value in later.items():
        total[key] = sum_counts(total.get(key, {}), value) if isinstance(value, Mapping) else total.get(key, 0) + value
    return total


def _columns(connection: duckdb.DuckDBPyConnection, *wanted: str) -> str:
    known = columns_of(connection, "events")
    return ", ".join(column for column in wanted if column in known)
