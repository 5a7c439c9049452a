"""Raw views -> typed tables checked against the contract. Every fault of every row is found in one streaming pass.

A row's faults are bits of one integer column, so checking costs no text; the words are made for the rows that fail.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import duckdb

from adrec.data.counts import counts_among
from adrec.data.disk.engine import columns_of, name, one_row, text
from adrec.errors import DataError, listed
from adrec.prepare.sources import RawTable
from adrec.prepare.sources.malformed import lines_of, refuse_lone_quotes
from adrec.prepare.staging.convert import (
    Role,
    converted,
    filled,
    given,
    is_float,
    is_text,
    null_words,
    reached,
    sql_type,
    trimmed,
    vector_type,
    width_of,
)
from adrec.prepare.staging.notes import notes_of
from adrec.prepare.staging.roles import Roles
from adrec.schema import COUNTS, PROPENSITY, PROPENSITY_GIVEN_ABOVE, TableSpec

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
    notes: tuple[str, ...] = ()
    """what deserves a word though it is no fault"""


_SAY_WHAT_IS_POSITIVE = (
    "Say which words mean 1 (`positive` in the source), or from which number on (`at_least: {click: {rating: 4}}`)."
)
_CHECKS: Mapping[str, tuple[str, str, str]] = {
    "click": ("{v} NOT IN (0, 1)", "is not 0 or 1", _SAY_WHAT_IS_POSITIVE),
    "conversion": ("{v} NOT IN (0, 1)", "is not 0 or 1", _SAY_WHAT_IS_POSITIVE),
    "position": ("{v} < 1", "is below 1", "Where slots count from 0, set `first_position: 0` in the source."),
    **dict.fromkeys(
        (PROPENSITY, PROPENSITY_GIVEN_ABOVE),
        ("NOT ({v} > 0 AND {v} <= 1)", "is not in (0, 1]", "A propensity is the probability of showing the ad."),
    ),
    "dwell_seconds": ("{v} < 0", "is negative", "Seconds are 0 or more."),
    "bid": ("{v} < 0", "is negative", "A bid is 0 or more."),
    "budget": ("{v} < 0", "is negative", "A budget is 0 or more."),
    **dict.fromkeys(COUNTS, ("{v} < 0", "is negative", "A count is 0 or more.")),
}


Create = Callable[[duckdb.DuckDBPyConnection, RawTable, str, str], None]


def create_here(connection: duckdb.DuckDBPyConnection, raw: RawTable, target: str, query: str) -> None:
    """Create table `target` from the query that types the rows of `raw`, in this engine."""
    refuse_lone_quotes(connection, raw.files)
    connection.execute(f"CREATE OR REPLACE TABLE {target} AS {query}")


def stage_table(
    connection: duckdb.DuckDBPyConnection,
    raw: RawTable,
    spec: TableSpec,
    target: str,
    *,
    extra: Sequence[str] = (),
    optional_extra: Sequence[str] = (),
    roles: Roles | None = None,
    nan_is_missing: bool = False,
    known_ads: str | None = None,
    private: Callable[[str, str, str], str] | None = None,
    remembered: Callable[[str], str | None] = lambda user_id: None,
    since: str | None = None,
    create: Create = create_here,
) -> Staged:
    """Create table `target`: the columns of `spec` that exist and `extra`, typed, with source_* and `faults`.

    `roles` says how extra columns are read. `known_ads` names a table of ad ids that every row must be among (adds
    `ad_index`). `private(column, sql, type)` may wrap a value (pseudonyms, masks). `remembered(user_id)` may be the condition
    under which a user's rows are taken. `since` leaves earlier rows out. `create` makes the table from a query over the view of
    `raw`; all else that is done here reads the table. Raises DataError listing every missing column.
    """
    stored = columns_of(connection, raw.view)
    refuse_missing(raw, spec, stored, extra)
    made = {*raw.reading.defaults, *raw.reading.at_least}
    wanted = [column for column in spec.names if column in stored or column in made]
    counted = counts_among(wanted)
    wanted = [column for column in wanted if column not in COUNTS or column in counted or spec.key is not None]
    wanted += [column for column in extra if column not in spec]
    wanted += [column for column in optional_extra if column in stored and column not in wanted]
    plan = plan_columns(raw, spec, stored, wanted, roles or Roles({}), private=private, nan_is_missing=nan_is_missing)
    checks = list(plan.checks)
    if known_ads is not None:
        checks.append(
            Check("ad_id", f"known.ad_id IS NULL AND {_typed('ad_id')} IS NOT NULL", UNKNOWN_AD, "Add the ad to the ads table.")
        )
    outer = [*plan.outer, *(f"{mask} AS faults_{number}" for number, mask in enumerate(_masks(checks)))]
    words = list(plan.words)
    outer += [f"{mask} AS notes_{number}" for number, mask in enumerate(masks([_typed("word " + column) for column in words]))]
    outer += ["known.ad_index"] if known_ads is not None else []
    joined = f" LEFT JOIN {known_ads} known ON known.ad_id = typed.ad_id" if known_ads is not None else ""
    conditions = [f"({_typed('shown_at')} IS NULL OR {_typed('shown_at')} >= TIMESTAMP {text(since)})"] if since else []
    if "user_id" in wanted and (known := remembered(_typed("user_id"))) is not None:
        conditions.append(known)
    taken = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    create(
        connection, raw, target,
        f"SELECT {', '.join(outer)}, source_file, source_row, source_order FROM ({plan.inner}) typed{joined}{taken}",
    )  # fmt: skip
    counts = one_row(connection, f"SELECT count(*) AS n, count_if({_bad(checks)}) AS bad FROM {target}")
    lines = lines_of(connection, raw.files)
    unread = one_row(connection, f"SELECT count(*) AS n FROM {lines}")["n"] if lines else 0
    if counts["n"] + unread == 0:
        raise DataError(f"{raw.files[0]}: holds no rows.")
    notes = notes_of(connection, raw, spec, target, words, plan.moments)
    return Staged(target, counts["n"] + unread, (counts["bad"] or 0) + unread, tuple(checks), lines, tuple(notes))


@dataclass(frozen=True)
class Plan:
    """SQL that types the columns of one table. `outer` and the conditions of `checks` are over `inner` called `typed`."""

    inner: str
    outer: tuple[str, ...]
    checks: tuple[Check, ...]
    words: tuple[str, ...]
    """columns whose text may be a word for a missing cell: `typed."word <column>"` says whether it is"""
    moments: tuple[str, ...]


def plan_columns(
    raw: RawTable,
    spec: TableSpec,
    kinds: Mapping[str, str],
    wanted: Sequence[str],
    roles: Roles,
    *,
    private: Callable[[str, str, str], str] | None = None,
    nan_is_missing: bool = False,
    carried: Sequence[str] = (),
) -> Plan:
    """How the `wanted` columns of `raw`, stored as `kinds` says, become values and checks. `carried` ones stay as they are.

    Three layers: cells without space around them and without words for nothing; values, each converted once; checks.
    """
    reading = raw.reading
    cells, words, inner, outer, checks = [], [], [], [], []
    moments = []
    for column in carried:
        cells.append(f"adrec_raw.{name(column)}")
        inner.append(f"adrec_cells.{name(column)}")
        outer.append(_typed(column))
    for column in wanted:
        stored, role = kinds.get(column), spec[column].role if column in spec else roles[column]
        if stored == "BLOB" and roles[column] == "media":
            role, kind = "media", "BLOB"
        elif column in spec:
            kind = sql_type(spec[column].type)
            role = "list" if kind == "VARCHAR[]" and role != "ids" else role
        else:
            role, kind = _extra_kind(role, reading.types.get(column), stored or "VARCHAR", roles.widths.get(column))
        raw_cell, cell = f"adrec_raw.{name(column)}", f"adrec_cells.{name(column)}"
        if column in reading.at_least:
            source, least = reading.at_least[column]
            of = f"adrec_cells.{name('of ' + column)}"
            cells.append(f"{filled(reading, f'adrec_raw.{name(source)}', kinds[source], 'number')} AS {name('of ' + column)}")
            flag = reached(reading, of, kinds[source], least, kind)
            inner += [f"{flag} AS {name(column)}", f"{of} IS NOT NULL AS {name('given ' + column)}"]
            check = Check(source, f"{_typed('given ' + column)} AND {_typed(column)} IS NULL", *_NO_NUMBER)
            checks += [check] if source not in wanted else []
            outer.append(_typed(column))
            continue
        if stored is not None:
            cells.append(f"{filled(reading, raw_cell, stored, role)} AS {name(column)}")
            if stored == "BLOB":
                cells.append(f"{raw_cell} IS NOT NULL AS {name('given ' + column)}")
            if is_text(stored) and kind != "BLOB" and null_words(reading, role):
                words.append(column)
                cells.append(f"strlen({trimmed(raw_cell, stored)}) > 0 AS {name('word ' + column)}")
                inner.append(f"adrec_cells.{name('word ' + column)} AND {cell} IS NULL AS {name('word ' + column)}")
        value = converted(reading, column, cell, stored, kind, role)
        inner.append(f"{private(column, value, kind) if private is not None else value} AS {name(column)}")
        is_given = f"adrec_cells.{name('given ' + column)}" if stored == "BLOB" else given(cell, stored, role)
        inner.append(f"{is_given} AS {name('given ' + column)}")
        checks += _checks(spec, column, stored, kind, role, nan_is_missing=nan_is_missing)
        finite = f"CASE WHEN isfinite({_typed(column)}) THEN {_typed(column)} END AS {name(column)}"
        outer.append(finite if kind == "DOUBLE" else _typed(column))
        if kind == "TIMESTAMP":
            moments.append(column)
    if "starts_at" in wanted and "ends_at" in wanted:
        later = f"{_typed('starts_at')} >= {_typed('ends_at')}"
        checks.append(Check("ends_at", later, "is not after starts_at", "An ad ends after it starts."))
    if COUNTS[0] in wanted and COUNTS[0] in spec:
        checks += _counts_fit([column for column in COUNTS[1:] if column in wanted])
    source = "source_file, source_row, source_order"
    layer = f"SELECT {', '.join([*cells, source])} FROM {raw.view} adrec_raw"
    return Plan(
        f"SELECT {', '.join([*inner, source])} FROM ({layer}) adrec_cells",
        tuple(outer),
        tuple(checks),
        tuple(words),
        tuple(moments),
    )


def _counts_fit(columns: Sequence[str]) -> list[Check]:
    """Every row counts impressions, and what follows them is counted among them."""
    shown, cure = _typed(COUNTS[0]), "Map `impressions` to the column that counts how often the ad was shown."
    found = [Check(column, f"{_typed(column)} > {shown}", "is more than the row's impressions", cure) for column in columns]
    missing = f"{shown} IS NULL AND NOT {_typed('given ' + COUNTS[0])}"
    return [*found, Check(COUNTS[0], missing, "is missing", "Every row of a log of counts needs one.")]


def _typed(column: str) -> str:
    return f"typed.{name(column)}"


def _masks(checks: Sequence[Check]) -> list[str]:
    return masks([check.condition for check in checks]) or ["CAST(0 AS BIGINT)"]


def masks(conditions: Sequence[str]) -> list[str]:
    """SQL of integers whose bits say which of `conditions` hold, `BITS` an integer."""
    found = []
    for start in range(0, len(conditions), BITS):
        terms = [f"CASE WHEN {condition} THEN {1 << bit} ELSE 0 END"
                 for bit, condition in enumerate(conditions[start : start + BITS])]  # fmt: skip
        found.append(f"CAST({' + '.join(terms)} AS BIGINT)")
    return found


def _bad(checks: Sequence[Check]) -> str:
    count = len(_masks(checks))
    return " OR ".join(f"faults_{index} <> 0" for index in range(count))


def refuse_missing(raw: RawTable, spec: TableSpec, kinds: Mapping[str, str], extra: Sequence[str]) -> None:
    """Raise DataError listing the required columns, and those of `extra`, that the table lacks."""
    faults = missing_columns(raw, spec, kinds, extra)
    if faults:
        raise DataError("\n".join(faults))


def missing_columns(raw: RawTable, spec: TableSpec, kinds: Mapping[str, str], extra: Sequence[str]) -> list[str]:
    """A line for each of the required columns, and those of `extra`, that the table lacks."""
    faults = []
    known = listed(kinds)
    for flag, (column, _) in raw.reading.at_least.items():
        if column not in kinds:
            faults.append(
                f"{raw.files[0]}: column '{column}' is missing, of which at_least makes '{flag}'. Columns: {known}. "
                "Mend `at_least` in the config."
            )
        elif flag in kinds:
            faults.append(f"{raw.files[0]}: has a column '{flag}', which at_least makes too. Leave `at_least.{flag}` out.")
    for column in [*spec.required, *extra]:
        if column not in kinds and column not in raw.reading.defaults:
            fix = (
                f"Name it under `columns` ({column}: <its name in the file>), or give a default."
                if column in spec
                else ("Mend the config that names it.")
            )
            faults.append(f"{raw.files[0]}: column '{column}' is missing ({spec.name} need it). Columns: {known}. {fix}")
    counted = counts_among({*kinds, *raw.reading.defaults, *raw.reading.at_least})
    if spec.key is None and counted and COUNTS[0] not in counted:
        faults.append(
            f"{raw.files[0]}: column '{COUNTS[0]}' is missing: `{counted[0]}` counts of how many impressions? Name it under "
            f"`columns` ({COUNTS[0]}: <its name in the file>), or map `click` to a column of 0 and 1. Columns: {known}."
        )
    return list(dict.fromkeys(faults))


def _extra_kind(role: Role, declared: str | None, stored: str, width: int | None) -> tuple[Role, str]:
    """Role and DuckDB type of a column beyond the contract. A role of the config goes before a declared `string`.

    `width`: of a column of vectors, None for others.
    """
    if width is not None:
        return "vector", vector_type(width)
    if declared is not None and not (declared == "string" and role == "number"):
        kinds: dict[str, tuple[Role, str]] = {
            "string": (role if role in {"category", "text"} else "kept", "VARCHAR"), "integer": ("number", "BIGINT"),
            "number": ("number", "DOUBLE"), "boolean": ("flag", "BOOLEAN"), "timestamp": ("moment", "TIMESTAMP"),
            "list": ("list", "VARCHAR[]"),
        }  # fmt: skip
        return kinds[declared]
    if stored.endswith("[]"):
        return "list", "VARCHAR[]"
    if stored.startswith(("TIMESTAMP", "DATE")):
        return "moment", "TIMESTAMP"
    if role in {"number", "moment", "list"}:
        return role, {"number": "DOUBLE", "moment": "TIMESTAMP", "list": "VARCHAR[]"}[role]
    if is_float(stored):
        return role, "VARCHAR" if role == "category" else "DOUBLE"
    return role, "VARCHAR" if is_text(stored) or stored == "UUID" else stored


def _checks(spec: TableSpec, column: str, stored: str | None, kind: str, role: Role, *, nan_is_missing: bool) -> list[Check]:
    checks = []
    value, is_given = _typed(column), _typed("given " + column)
    may_fail = kind != "VARCHAR" or stored == "BLOB" or role in {"id", "person", "category"}
    if stored is not None and may_fail:
        unreadable = ("is not 0 or 1", _SAY_WHAT_IS_POSITIVE) if role == "flag" else _UNREADABLE.get(kind, _NO_NUMBER)
        if role == "vector":
            unreadable = (
                f"is no list of {width_of(kind)} finite numbers",
                "Leave the cell empty where there is none, or set `width`.",
            )
        checks.append(Check(column, f"{is_given} AND {value} IS NULL", *unreadable))
    if kind == "BLOB":
        return []
    if stored == "BLOB" and kind == "VARCHAR":
        checks[-1] = Check(column, checks[-1].condition, "is not UTF-8 text", "Write the column as a string.")
    if kind == "TIMESTAMP":
        outside = f"{value} < TIMESTAMP '1970-01-01' OR {value} >= TIMESTAMP '2200-01-01'"
        checks.append(Check(column, outside, "is not between 1970 and 2200", "Set `time_unit` in the config."))
    if kind == "DOUBLE" and not nan_is_missing:
        fix = "Leave the cell empty, or set validation.nan_is_missing."
        checks.append(Check(column, f"NOT isfinite({value})", "is NaN or infinite", fix))
    if column in spec and spec[column].needs_cells:
        missing = f"{value} IS NULL" + (f" AND NOT {is_given}" if may_fail else "")
        checks.append(Check(column, missing, "is missing", "Every row needs one."))
    if column in _CHECKS and column in spec:
        condition, problem, fix = _CHECKS[column]
        checks.append(Check(column, condition.format(v=value), problem, fix))
    return checks


_NO_NUMBER = (
    "is not a number of its range",
    "Write a number, leave the cell empty where it is unknown, or set `decimal` or `thousands` in the config.",
)
_UNREADABLE = {
    "TIMESTAMP": (
        "is not a timestamp",
        "Write ISO 8601 (2026-11-24 18:30:00, with Z, +08:00 or a zone such as Europe/Berlin), or set `time_format` (or "
        "`time_unit`) in the config.",
    ),
    "VARCHAR[]": ("is not a list", "Write a list."),
    "BOOLEAN": ("is not a boolean", _NO_NUMBER[1]),
    "BIGINT": ("is not a whole number", _NO_NUMBER[1]),
    "VARCHAR": ("is a float too large to tell ids apart", "Store the column as text or as whole numbers."),
}
