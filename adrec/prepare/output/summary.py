"""Who and what each split holds and shares with training: read off the counts by ad and user."""

from typing import Any

import duckdb

from adrec.data.disk.engine import one_row, text
from adrec.schema import NOBODY, SPLITS


def add_people(connection: duckdb.DuckDBPyConnection, splits: dict[str, dict[str, Any]]) -> None:
    """Put users, ads and, beside training, shared and cold ones of table `people` into each split's counts.

    Cold: training has no row of it. Rows of nobody, or of no ad, are counted with none.

    `cold_ads` and `cold_users` are shares of the distinct ads and users, `cold_ad_rows` and `cold_user_rows` of the rows.
    """
    for number, split in enumerate(SPLITS):
        if split not in splits:
            continue
        for kind in ("ad", "user"):
            counts = one_row(
                connection,
                "SELECT count(*) AS n, count(*) - count(trained) AS cold, "
                "coalesce(sum(rows) FILTER (trained IS NULL), 0) AS rows, sum(rows) AS of FROM people LEFT JOIN "
                f"(SELECT index, true AS trained FROM people WHERE part = 0 AND kind = '{kind}') USING (index) "
                f"WHERE part = {number} AND kind = '{kind}' AND index NOT IN "
                f"(SELECT {kind}_index FROM {kind}s WHERE {kind}_id = {text(NOBODY)})",
            )
            splits[split][f"{kind}s"] = counts["n"]
            if split != "train" and "train" in splits:
                splits[split] |= {
                    f"shared_{kind}s": counts["n"] - counts["cold"],
                    f"cold_{kind}s": counts["cold"] / max(counts["n"], 1),
                    f"cold_{kind}_rows": int(counts["rows"]) / max(int(counts["of"] or 0), 1),
                }


def totals(splits: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rows, requests (one that is split counts in each part), clicks and the time range of everything."""
    counted = {"impressions": sum(split["impressions"] for split in splits.values() if "impressions" in split)}
    return {
        **(counted if counted["impressions"] else {}),
        "rows": sum(split["rows"] for split in splits.values()),
        "requests": sum(split["requests"] for split in splits.values()),
        "clicks": sum(split["clicks"] for split in splits.values()),
        "first": min((split["first"] for split in splits.values() if split["first"]), default=None),
        "last": max((split["last"] for split in splits.values() if split["last"]), default=None),
    }


def added(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Two reports as one: counts add up, everything else is the later one's."""
    return {
        key: value + earlier[key] if isinstance(value, int) and isinstance(earlier.get(key), int) else value
        for key, value in later.items()
    }
