"""What came out, by split: the numbers a user checks first. One pass of SQL over `events`."""

from typing import Any

import duckdb

from adrec.prepare.engine import columns_of, one_row
from adrec.schema import SPLITS


def split_summary(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, Any]]:
    """Rows, requests, clicks, users, ads, time range, cold shares (of rows) of each split that has rows."""
    click = "click" in columns_of(connection, "events")
    clicks = "count_if(click = 1), count(click)" if click else "0, 0"
    rows = connection.execute(
        f"SELECT part, count(*), count(DISTINCT request), {clicks}, count(DISTINCT user_index), count(DISTINCT ad_index), "
        "min(shown_at), max(shown_at) FROM events GROUP BY part ORDER BY part"
    ).fetchall()
    connection.execute("CREATE OR REPLACE TEMP TABLE train_ads AS SELECT DISTINCT ad_index FROM events WHERE part = 0")
    connection.execute("CREATE OR REPLACE TEMP TABLE train_users AS SELECT DISTINCT user_index FROM events WHERE part = 0")
    summary: dict[str, dict[str, Any]] = {}
    for part, count, requests, clicked, labelled, users, ads, first, last in rows:
        if part >= len(SPLITS):
            summary["left_out"] = {"rows": count}
            continue
        entry: dict[str, Any] = {
            "rows": count,
            "requests": requests,
            "clicks": clicked,
            "labelled": labelled,
            "click_rate": clicked / labelled if labelled else None,
            "users": users,
            "ads": ads,
            "first": f"{first.isoformat()}Z",
            "last": f"{last.isoformat()}Z",
        }
        if part:
            entry |= _beside_training(connection, part, count, ads, users)
        summary[SPLITS[part]] = entry
    return summary


def _beside_training(connection: duckdb.DuckDBPyConnection, part: int, rows: int, ads: int, users: int) -> dict[str, Any]:
    """What this part shares with training, and the share of its rows whose ad or user training never saw."""
    found = one_row(
        connection,
        "SELECT count(DISTINCT e.ad_index) FILTER (a.ad_index IS NOT NULL) AS shared_ads, "
        "count(DISTINCT e.user_index) FILTER (u.user_index IS NOT NULL) AS shared_users, "
        "count_if(a.ad_index IS NULL) AS cold_ad_rows, count_if(u.user_index IS NULL) AS cold_user_rows "
        "FROM events e LEFT JOIN train_ads a ON a.ad_index = e.ad_index LEFT JOIN train_users u ON u.user_index = e.user_index "
        f"WHERE e.part = {part}",
    )
    return {
        "shared_ads": found["shared_ads"],
        "shared_users": found["shared_users"],
        "cold_ads": 1 - found["shared_ads"] / ads,
        "cold_users": 1 - found["shared_users"] / users,
        "cold_ad_rows": found["cold_ad_rows"] / rows,
        "cold_user_rows": found["cold_user_rows"] / rows,
    }


def totals(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Rows, requests, clicks and the time range of everything."""
    click = "count_if(click = 1)" if "click" in columns_of(connection, "events") else "0"
    found = one_row(
        connection,
        f"SELECT count(*) AS rows, count(DISTINCT request) AS requests, {click} AS clicks, min(shown_at) AS first, "
        "max(shown_at) AS last FROM events",
    )
    return found | {"first": f"{found['first'].isoformat()}Z", "last": f"{found['last'].isoformat()}Z"}
