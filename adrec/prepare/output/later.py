"""Which texts exist only after the cut: neither tokenizer nor pretraining nor corpus weights may learn from them.

A row of ads or users was known at the cut where it was shown before it; else where it starts (`starts_at`) before it; else
where it was never shown at all: then it is a line of the catalogue that nobody dated. A query is known from its first search.
"""

from datetime import datetime
from pathlib import Path

import duckdb

from adrec.data.engine import columns_of, moment_sql, text
from adrec.schema import TableSpec


def later_rows(
    connection: duckdb.DuckDBPyConnection, spec: TableSpec, cut: datetime | None, earlier: Path | None
) -> tuple[str, str]:
    """SQL that is true for the rows of table `spec.name` AS t that come after the cut, and the join that it needs.

    `earlier` is the prepared folder that is appended to: what its rows showed counts too.
    """
    events = columns_of(connection, "events")
    if cut is None or spec.index not in events:
        return "false", ""
    moment = moment_sql(cut)
    shown = f"SELECT {spec.index}, shown_at FROM events"
    if earlier is not None:
        shards = text(str(earlier / "impressions" / "*" / "*.parquet"))
        shown += f" UNION ALL SELECT {spec.index}, CAST(shown_at AS TIMESTAMP) FROM read_parquet({shards})"
    starts = (
        "WHEN t.starts_at IS NOT NULL THEN t.starts_at >= " + moment if "starts_at" in columns_of(connection, spec.name) else ""
    )
    return (
        f"CASE WHEN f.shown < {moment} THEN false {starts} ELSE coalesce(f.shown >= {moment}, false) END",
        f"LEFT JOIN (SELECT {spec.index}, min(shown_at) AS shown FROM ({shown}) GROUP BY 1) f USING ({spec.index})",
    )
