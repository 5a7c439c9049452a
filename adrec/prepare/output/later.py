"""Which texts exist only after the cut: neither tokenizer nor pretraining nor corpus weights may learn from them.

A row of ads or users was known at the cut where it was shown before it; else where it starts (`starts_at`) before it; else
where it was never shown at all: then it is a line of the catalogue that nobody dated. A row whose first version is known only
from after the cut (`known_from`) was not. A query is known from its first search.
"""

from datetime import datetime

import duckdb

from adrec.data.disk.engine import columns_of, moment_sql, one_row, text
from adrec.schema import KNOWN_FROM, TableSpec


def later_rows(connection: duckdb.DuckDBPyConnection, spec: TableSpec, cut: datetime | None) -> tuple[str, str]:
    """SQL that is true for the rows of table `spec.name` AS t that come after the cut, and the join that it needs.

    When a row was first shown stands in table `people`.
    """
    if cut is None or spec.index not in columns_of(connection, "events"):
        return "false", ""
    moment = moment_sql(cut)
    kind = spec.index.removesuffix("_index")
    shown = f"SELECT index AS {spec.index}, min(first) AS shown FROM people WHERE kind = '{kind}' GROUP BY 1"
    starts = (
        "WHEN t.starts_at IS NOT NULL THEN t.starts_at >= " + moment if "starts_at" in columns_of(connection, spec.name) else ""
    )
    known, first = "", ""
    if one_row(connection, f"SELECT count(*) AS n FROM duckdb_tables() WHERE table_name = {text(spec.versions)}")["n"]:
        known = f"WHEN k.first >= {moment} THEN true "
        first = (
            f" LEFT JOIN (SELECT {spec.index}, min(coalesce({KNOWN_FROM}, TIMESTAMP '-infinity')) AS first "
            f"FROM {spec.versions} GROUP BY 1) k USING ({spec.index})"
        )
    return (
        f"CASE {known}WHEN f.shown < {moment} THEN false {starts} ELSE coalesce(f.shown >= {moment}, false) END",
        f"LEFT JOIN ({shown}) f USING ({spec.index}){first}",
    )
