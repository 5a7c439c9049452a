"""Who and what each split holds and shares with training: counted from the written shards."""

from pathlib import Path
from typing import Any

import duckdb

from adrec.data.engine import one_row, text
from adrec.schema import SPLITS


def add_people(connection: duckdb.DuckDBPyConnection, folder: Path, splits: dict[str, dict[str, Any]]) -> None:
    """Put users, ads and, beside training, shared and cold ones into each split's counts. Cold: training has no row of it.

    `cold_ads` and `cold_users` are shares of the distinct ads and users, `cold_ad_rows` and `cold_user_rows` of the rows.
    """
    for split in SPLITS:
        if split not in splits:
            continue
        source = f"read_parquet({text(str(folder / 'impressions' / split / '*.parquet'))})"
        for kind in ("ad", "user"):
            connection.execute(
                f"CREATE OR REPLACE TEMP TABLE {split}_{kind} AS SELECT {kind}_index, count(*) AS rows FROM {source} GROUP BY 1"
            )
            found = one_row(connection, f"SELECT count(*) AS n FROM {split}_{kind}")["n"]
            splits[split][f"{kind}s"] = found
            if split != "train" and "train" in splits:
                cold = one_row(
                    connection,
                    f"SELECT count(*) AS n, coalesce(sum(rows), 0) AS rows FROM {split}_{kind} "
                    f"WHERE {kind}_index NOT IN (SELECT {kind}_index FROM train_{kind})",
                )
                splits[split] |= {
                    f"shared_{kind}s": found - cold["n"],
                    f"cold_{kind}s": cold["n"] / found,
                    f"cold_{kind}_rows": int(cold["rows"]) / splits[split]["rows"],
                }


def totals(splits: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rows, requests (one that is split counts in each part), clicks and the time range of everything."""
    return {
        "rows": sum(split["rows"] for split in splits.values()),
        "requests": sum(split["requests"] for split in splits.values()),
        "clicks": sum(split["clicks"] for split in splits.values()),
        "first": min(split["first"] for split in splits.values()),
        "last": max(split["last"] for split in splits.values()),
    }


def added(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Two reports as one: counts add up, everything else is the later one's."""
    return {
        key: value + earlier[key] if isinstance(value, int) and isinstance(earlier.get(key), int) else value
        for key, value in later.items()
    }
