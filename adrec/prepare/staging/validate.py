"""Raw views -> typed tables checked against the contract. Every fault of every row is found in one streaming pass.

A row's faults are bits of one integer column, so checking costs no text; the words are made for the rows that fail.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import duckdb

from adrec.data.engine import columns_of, name, one_row, text
from adrec.errors import DataError
from adrec.prepare.sources import RawTable
from adrec.prepare.sources.malformed import lines_of
from adrec.prepare.staging.convert import converted, is_text, sql_type
from adrec.schema import TableSpec

UNKNOWN_AD = "is no ad's ad_id"
BITS = 60
"""Checks an integer holds, with room for the sign."""


@dataclass(frozen=True)
class Check:
    """One fault that a row may have: a SQL condition on the raw row, and what to tell."""

    column: str
    condition: str
    problem: str
    fix: str


@dataclass(frozen=True)
class Rejected:
    """One kind of fault: how many rows have it, and the first of them."""

    table: str
    column: str
    problem: str
    fix: str
    rows: int
    source_file: str
    source_row: int
    value: str | None
    line: int | None = None
    """of the file, where the whole line is at fault"""

    def __str__(self) -> str:
        more = f" ({self.rows:,} rows in all)" if self.rows > 1 else ""
        shown = f"{self.value!r} " if self.value is not None else ""
        where = f"column '{self.column}', row {self.source_row:,}" if self.line is None else f"line {self.line:,}"
        return f"{self.source_file}: {where}: {shown}{self.problem}{more}. {self.fix}"


@dataclass(frozen=True)
class Staged:
    """A typed table in the engine, its rows marked: `faults` is 0 for the good ones."""

    table: str
    rows: int
    bad_rows: int
    checks: tuple[Check, ...]
    lines: str = ""
    """SQL of the lines of its files that could not be read (counted in `rows` and `bad_rows`), if there are any"""


_CHECKS: Mapping[str, tuple[str, str, str]] = {
    "click": ("{v} NOT IN (0, 1)", "is not 0 or 1", "A click is 0 or 1; map a rating to it first."),
    "conversion": ("{v} NOT IN (0, 1)", "is not 0 or 1", "A conversion is 0 or 1."),
    "position": ("{v} < 1", "is below 1", "Positions count from 1."),
    "propensity": ("NOT ({v} > 0 AND {v} <= 1)", "is not in (0, 1]", "A propensity is the probability of showing the ad."),
    "dwell_seconds": ("{v} < 0", "is negative", "Seconds are 0 or more."),
    "bid": ("{v} < 0", "is negative", "A bid is 0 or more."),
    "budget": ("{v} < 0", "is negative", "A budget is 0 or more."),
}


def stage_table(
    connection: duckdb.DuckDBPyConnection,
    raw: RawTable,
    spec: TableSpec,
    target: str,
    *,
    extra: Sequence[str] = (),
    optional_extra: Sequence[str] = (),
    nan_is_missing: bool = False,
    known_ads: str | None = None,
    private: Callable[[str, str, str], str] | None = None,
    since: str | None = None,
) -> Staged:
    """Create table `target`: the columns of `spec` that exist and `extra`, typed, with source_* and `faults`.

    `known_ads` names a table of ad ids that every row must be among (adds `ad_index`). `private(column, sql,
    type)` may wrap a value (pseudonyms, masks). `since` leaves earlier rows out. Raises DataError listing every missing column.
    """
    found = columns_of(connection, raw.view)
    _refuse_missing(raw, spec, found, extra)
    values: dict[str, str] = {}
    given: dict[str, str] = {}
    kinds: dict[str, str] = {}
    checks: list[Check] = []
    wanted = [column for column in spec.names if column in found or column in raw.reading.defaults]
    wanted += [column for column in extra if column not in spec]
    wanted += [column for column in optional_extra if column in found and column not in wanted]
    extra_kinds = extra_types(connection, raw, [column for column in wanted if column not in spec], found)
    for column in wanted:
        kind = sql_type(spec[column].type) if column in spec else extra_kinds[column]
        value = converted(raw.reading, column, found.get(column), kind)
        checks += _checks(spec, column, found.get(column), kind, nan_is_missing=nan_is_missing)
        given[column] = _given(column, found.get(column))
        values[column] = private(column, value, kind) if private is not None else value
        kinds[column] = kind
    if "starts_at" in values and "ends_at" in values:
        later = f"{_typed('starts_at')} >= {_typed('ends_at')}"
        checks.append(Check("ends_at", later, "is not after starts_at", "An ad ends after it starts."))
    if known_ads is not None:
        checks.append(
            Check("ad_id", f"known.ad_id IS NULL AND {_typed('ad_id')} IS NOT NULL", UNKNOWN_AD, "Add the ad to the ads table.")
        )
    # Inside, each cell is converted once; outside, the values are checked and the ad is looked up.
    inner = [f"{value} AS {name(column)}" for column, value in values.items()]
    inner += [f"{sql} AS {name('given ' + column)}" for column, sql in given.items()]
    outer = [
        f"CASE WHEN isfinite({_typed(column)}) THEN {_typed(column)} END AS {name(column)}"
        if kind == "DOUBLE"
        else _typed(column)
        for column, kind in kinds.items()
    ]
    outer += [f"{mask} AS faults_{number}" for number, mask in enumerate(_masks(checks))]
    outer += ["known.ad_index"] if known_ads is not None else []
    joined = f" LEFT JOIN {known_ads} known ON known.ad_id = typed.ad_id" if known_ads is not None else ""
    kept = f" WHERE {_typed('shown_at')} IS NULL OR {_typed('shown_at')} >= TIMESTAMP {text(since)}" if since else ""
    connection.execute(
        f"CREATE OR REPLACE TABLE {target} AS SELECT {', '.join(outer)}, source_file, source_row, source_order "
        f"FROM (SELECT {', '.join(inner)}, source_file, source_row, source_order FROM {raw.view}) typed{joined}{kept}"
    )
    counts = one_row(connection, f"SELECT count(*) AS n, count_if({_bad(checks)}) AS bad FROM {target}")
    lines = lines_of(connection, raw.files)
    unread = one_row(connection, f"SELECT count(*) AS n FROM {lines}")["n"] if lines else 0
    if counts["n"] + unread == 0:
        raise DataError(f"{raw.files[0]}: holds no rows.")
    return Staged(target, counts["n"] + unread, (counts["bad"] or 0) + unread, tuple(checks), lines)


def _typed(column: str) -> str:
    return f"typed.{name(column)}"


def _given(column: str, stored: str | None) -> str:
    """Whether the raw cell holds anything."""
    if stored is None:
        return "false"
    return f"({name(column)} IS NOT NULL" + (f" AND trim({name(column)}) <> '')" if is_text(stored) else ")")


def _masks(checks: Sequence[Check]) -> list[str]:
    """SQL of the fault bits, `BITS` checks an integer."""
    masks = []
    for start in range(0, max(len(checks), 1), BITS):
        terms = [
            f"CASE WHEN {check.condition} THEN {1 << bit} ELSE 0 END" for bit, check in enumerate(checks[start : start + BITS])
        ]
        masks.append(f"CAST({' + '.join(terms) or '0'} AS BIGINT)")
    return masks


def _bad(checks: Sequence[Check]) -> str:
    count = len(_masks(checks))
    return " OR ".join(f"faults_{index} <> 0" for index in range(count))


def _refuse_missing(raw: RawTable, spec: TableSpec, found: Mapping[str, str], extra: Sequence[str]) -> None:
    faults = []
    known = ", ".join(column for column in found if not column.startswith("source_"))
    for column in [*spec.required, *extra]:
        if column not in found and column not in raw.reading.defaults:
            fix = (
                f"Name it under `columns` ({column}: <its name in the file>), or give a default."
                if column in spec
                else ("Mend the config that names it.")
            )
            faults.append(f"{raw.files[0]}: column '{column}' is missing ({spec.name} need it). Columns: {known[:300]}. {fix}")
    if faults:
        raise DataError("\n".join(dict.fromkeys(faults)))


def extra_types(
    connection: duckdb.DuckDBPyConnection, raw: RawTable, columns: Sequence[str], found: Mapping[str, str]
) -> dict[str, str]:
    """DuckDB types of declared columns that are not in the contract: as declared, as stored, or guessed from text."""
    types = {column: _stored_type(raw.reading.types.get(column), found.get(column, "VARCHAR")) for column in columns}
    unclear = [column for column in columns if column not in raw.reading.types and types[column] == "VARCHAR" and raw.is_text]
    if not unclear:
        return types
    parts = []
    for number, column in enumerate(unclear):
        cell = f"trim({name(column)})"
        empty = f"{name(column)} IS NULL OR {cell} = ''"
        parts.append(f"bool_and({empty} OR try_cast({cell} AS DOUBLE) IS NOT NULL) AS number_{number}")
        parts.append(f"bool_and({empty} OR regexp_full_match({cell}, '-?[1-9][0-9]{{0,17}}|0')) AS whole_{number}")
    guessed = one_row(connection, f"SELECT {', '.join(parts)} FROM {raw.view}")
    for number, column in enumerate(unclear):
        types[column] = "BIGINT" if guessed[f"whole_{number}"] else "DOUBLE" if guessed[f"number_{number}"] else "VARCHAR"
    return types


def _stored_type(declared: str | None, stored: str) -> str:
    if declared is not None:
        return {"string": "VARCHAR", "integer": "BIGINT", "number": "DOUBLE", "boolean": "BOOLEAN", "timestamp": "TIMESTAMP",
                "list": "VARCHAR[]"}[declared]  # fmt: skip
    if stored.endswith("[]"):
        return "VARCHAR[]"
    if stored.startswith(("TIMESTAMP", "DATE")):
        return "TIMESTAMP"
    if stored.startswith(("DECIMAL", "FLOAT")):
        return "DOUBLE"
    return "VARCHAR" if is_text(stored) else stored


def _checks(spec: TableSpec, column: str, stored: str | None, kind: str, *, nan_is_missing: bool) -> list[Check]:
    checks = []
    value = _typed(column)
    if stored is not None and kind != "VARCHAR":
        fix = {
            "TIMESTAMP": "Write ISO 8601 (2026-11-24 18:30:00), or set `time_format` (or `time_unit`) in the config.",
            "VARCHAR[]": "Write a list.",
        }.get(kind, "Write a number, or leave the cell empty where it is unknown.")
        what = {"TIMESTAMP": "timestamp", "VARCHAR[]": "list", "BOOLEAN": "boolean"}.get(kind, "number of its range")
        checks.append(Check(column, f"{_typed('given ' + column)} AND {value} IS NULL", f"is not a {what}", fix))
    if kind == "TIMESTAMP":
        outside = f"{value} < TIMESTAMP '1970-01-01' OR {value} >= TIMESTAMP '2200-01-01'"
        checks.append(Check(column, outside, "is not between 1970 and 2200", "Set `time_unit` in the config."))
    if kind == "DOUBLE" and not nan_is_missing:
        fix = "Leave the cell empty, or set validation.nan_is_missing."
        checks.append(Check(column, f"NOT isfinite({value})", "is NaN or infinite", fix))
    if column in spec and spec[column].required:
        missing = f"{value} IS NULL" + (f" AND NOT {_typed('given ' + column)}" if kind != "VARCHAR" else "")
        checks.append(Check(column, missing, "is missing", "Every row needs one."))
    if column in _CHECKS and column in spec:
        condition, problem, fix = _CHECKS[column]
        checks.append(Check(column, condition.format(v=value), problem, fix))
    return checks
