"""Staged rows of counts -> a row for each outcome, before anything is ordered. Costs one pass, in logs of counts only.

The rows of one row of counts share its source order, so that they go to one part of a split and one request.
"""

import duckdb

from adrec.data.counts import counts_among, outcome_rows
from adrec.data.disk.engine import columns_of, one_row
from adrec.errors import DataError
from adrec.prepare.log.events import good
from adrec.schema import COUNTS, WEIGHT

_MOST_AT_ONCE = (1 << 32) - 1
"""Impressions of one moment that a counter holds."""


def split_counts(connection: duckdb.DuckDBPyConnection, staged: str, *, is_implicit: bool = False) -> list[str]:
    """Replace the good rows of `staged` that count impressions by rows with `click`, `conversion` and WEIGHT; returns notes.

    A table without counts stays as it is. Raises DataError for a column of the user's own named as the weight is, where
    nothing was shown at all, and for `negatives` to a log that has its own (`is_implicit`).
    """
    columns = columns_of(connection, staged)
    counted = counts_among(columns)
    if not counted:
        return []
    if is_implicit:
        raise DataError("negatives: the impressions count how often an ad was shown and not clicked. Leave `negatives` out.")
    if WEIGHT in columns:
        raise DataError(
            f"impressions: column '{WEIGHT}' is made of the counts. Map yours to another name with `columns` in the config."
        )
    passed = good(connection, staged)
    zero = one_row(connection, f"SELECT count(*) AS n, count_if({COUNTS[0]} = 0) AS zero FROM {staged} WHERE {passed}")
    if zero["n"] == zero["zero"]:
        raise DataError("impressions: column 'impressions' is 0 in every row: nothing was shown.")
    rows = outcome_rows(f"(SELECT * FROM {staged} WHERE {passed})", columns)
    connection.execute(
        f"CREATE OR REPLACE TABLE {staged} AS {rows} "
        f"UNION ALL BY NAME SELECT * EXCLUDE ({', '.join(counted)}) "
        f"FROM {staged} WHERE NOT ({passed})"
    )
    most = one_row(
        connection,
        f"SELECT max(n) AS most FROM (SELECT sum({WEIGHT}) AS n FROM {staged} WHERE {passed} GROUP BY shown_at)",
    )["most"]
    if most > _MOST_AT_ONCE:
        raise DataError(
            f"impressions: {most:,.0f} impressions are counted at one moment; a counter holds {_MOST_AT_ONCE:,}. "
            "Give the rows their days, or split the log."
        )
    return [f"impressions: {zero['zero']:,} rows of 0 impressions are left out."] if zero["zero"] else []
