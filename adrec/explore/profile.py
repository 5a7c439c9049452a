"""What is in a table: types, missing values, distinct values, ranges, days, text lengths, languages, a few rows.

One aggregating pass of the engine over any number of rows; texts are looked at in a fixed sample of distinct ones.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.data.disk.engine import columns_of, fetch, name, one_row
from adrec.prepare.text.clean import language

SAMPLED_TEXTS = 20_000
_COUNTED_EXACTLY = 200_000
_LONGEST_CELL = 60
_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "U")
"""How the names of numeric types begin; `U` for the unsigned ones."""


@dataclass(frozen=True)
class ColumnProfile:
    """One column. `missing` is a share of the rows; low, middle and high depend on the type (see `profile_columns`)."""

    name: str
    type: str
    missing: float
    distinct: int
    low: str
    middle: str
    high: str


def count_rows(connection: duckdb.DuckDBPyConnection, relation: str) -> int:
    """Rows of a table, view or subquery."""
    return int(one_row(connection, f"SELECT count(*) AS n FROM {relation}")["n"])


def profile_columns(connection: duckdb.DuckDBPyConnection, relation: str) -> list[ColumnProfile]:
    """Numbers and moments: least, mean, greatest. Texts: shortest, mean and greatest length. Lists: lengths likewise.

    Distinct values of large tables are counted approximately (HyperLogLog, Flajolet et al. 2007).
    """
    kinds = columns_of(connection, relation)
    rows = count_rows(connection, relation)
    parts = []
    for at, (column, kind) in enumerate(kinds.items()):
        cell = name(column)
        is_float = kind in {"FLOAT", "DOUBLE"}
        value = f"CASE WHEN isfinite({cell}) THEN {cell} END" if is_float else cell
        if kind.endswith("[]") or kind == "VARCHAR":
            value = f"len({cell})"
        mean = f"avg({value})" if (kind.startswith(_NUMBERS) and kind != "UUID") or value != cell else "NULL"
        missing = f"count({cell}) - count_if(isnan({cell}))" if is_float else f"count({cell})"
        count = "count(DISTINCT {cell})" if rows <= _COUNTED_EXACTLY else "approx_count_distinct({cell})"
        distinct = count.format(cell=cell) if not kind.endswith("[]") else "NULL"
        low, high = (_portable(f"{end}({value})", kind if value == cell else "") for end in ("min", "max"))
        parts.append(
            f"{missing} AS present_{at}, {distinct} AS distinct_{at}, {low} AS low_{at}, {mean} AS middle_{at}, "
            f"{high} AS high_{at}"
        )
    values = one_row(connection, f"SELECT {', '.join(parts)} FROM {relation}")
    return [
        ColumnProfile(
            column,
            kind.lower().replace("timestamp with time zone", "timestamp"),
            1 - values[f"present_{at}"] / max(rows, 1),
            int(values[f"distinct_{at}"] or 0),
            *(shown(values[f"{end}_{at}"]) for end in ("low", "middle", "high")),
        )
        for at, (column, kind) in enumerate(kinds.items())
    ]


def _portable(value: str, kind: str) -> str:
    """A value as the engine itself writes it where Python has nothing that holds it: moments of any year, nested types."""
    if kind.startswith("TIMESTAMP"):
        return f"strftime({value}, '%Y-%m-%d %H:%M:%S')"
    return f"CAST({value} AS VARCHAR)" if kind and not kind.startswith((*_NUMBERS, "VARCHAR", "BOOLEAN")) else value


def clicks_by_day(connection: duckdb.DuckDBPyConnection, relation: str) -> list[dict[str, Any]]:
    """Rows and clicks of each day (UTC); nothing where there is no readable `shown_at`."""
    kinds = columns_of(connection, relation)
    if "shown_at" not in kinds:
        return []
    moment = "shown_at" if kinds["shown_at"].startswith("TIMESTAMP") else "try_cast(shown_at AS TIMESTAMP)"
    click = "CAST(count_if(try_cast(click AS INTEGER) = 1) AS BIGINT)" if "click" in kinds else "NULL"
    table = fetch(
        connection,
        f"SELECT strftime({moment}, '%Y-%m-%d') AS day, count(*) AS rows, {click} AS clicks FROM {relation} "
        f"WHERE {moment} IS NOT NULL GROUP BY 1 ORDER BY 1",
    )
    return rows_of(table)


def profile_texts(connection: duckdb.DuckDBPyConnection, relation: str, column: str) -> dict[str, Any]:
    """Quantiles of the length in characters, and the languages, of a sample of the distinct texts of a column."""
    cell = name(column)
    texts = fetch(
        connection,
        f"SELECT DISTINCT {cell} AS text FROM {relation} WHERE {cell} <> '' ORDER BY md5({cell}) LIMIT {SAMPLED_TEXTS}",
    )["text"]
    if not len(texts):
        return {"texts": 0, "characters": {}, "languages": {}}
    lengths = pc.utf8_length(texts).to_numpy()
    languages = pc.value_counts(language(texts))
    counts = dict(zip(languages.field("values").tolist(), languages.field("counts").tolist(), strict=True))
    return {
        "texts": len(texts),
        "characters": {f"{share:.0%}": int(np.quantile(lengths, share)) for share in (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)},
        "languages": {name: counts[name] / len(texts) for name in sorted(counts, key=counts.__getitem__, reverse=True)},
    }


def histogram(connection: duckdb.DuckDBPyConnection, relation: str, value: str, bins: int = 30) -> list[tuple[float, int]]:
    """Counts of a numeric SQL expression in equal bins: (left edge, rows)."""
    ends = one_row(connection, f"SELECT min({value}) AS low, max({value}) AS high FROM {relation}")
    if ends["low"] is None:
        return []
    low, width = float(ends["low"]), (float(ends["high"]) - float(ends["low"])) / bins or 1.0
    found = connection.execute(
        f"SELECT least(CAST(floor(({value} - {low!r}) / {width!r}) AS INTEGER), {bins - 1}) AS bin, count(*) FROM {relation} "
        f"WHERE {value} IS NOT NULL GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return [(low + number * width, count) for number, count in found]


def first_rows(connection: duckdb.DuckDBPyConnection, relation: str, count: int) -> list[dict[str, str]]:
    """A few rows as short texts."""
    if not count:
        return []
    cells = [f"{_portable(name(column), kind)} AS {name(column)}" for column, kind in columns_of(connection, relation).items()]
    return [
        {key: shown(value) for key, value in row.items()}
        for row in rows_of(fetch(connection, f"SELECT {', '.join(cells)} FROM {relation} LIMIT {count}"))
    ]


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """A small table as dicts."""
    columns = [[value.as_py() for value in column] for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def shown(value: Any) -> str:
    """A value in a cell: short, numbers readable, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, datetime):
        value = value.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…"
