"""SQL that turns a raw cell, text or typed, into its canonical value; NULL where it cannot be read."""

import pyarrow as pa

from adrec.config.sources import Scalar
from adrec.data.engine import name, text
from adrec.prepare.sources.base import Reading

_UNITS = {"seconds": 1_000_000, "milliseconds": 1_000, "microseconds": 1}
_OFFSET = r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"
_NUMBER = r"[+-]?[0-9]+([.][0-9]*)?"


def sql_type(kind: pa.DataType) -> str:
    """DuckDB's name of a contract type."""
    if pa.types.is_timestamp(kind):
        return "TIMESTAMP"
    if pa.types.is_list(kind):
        return "VARCHAR[]"
    return {"string": "VARCHAR", "double": "DOUBLE", "float": "FLOAT", "int8": "TINYINT", "int32": "INTEGER", "int64": "BIGINT",
            "bool": "BOOLEAN"}[str(kind)]  # fmt: skip


def is_text(stored: str) -> bool:
    """Whether a raw column is text."""
    return stored in {"VARCHAR", "JSON"} or stored.startswith("ENUM")


def converted(reading: Reading, column: str, stored: str | None, kind: str) -> str:
    """SQL expression of canonical type `kind` for `column` stored as `stored` (None: absent, the default alone)."""
    default = reading.defaults.get(column)
    if stored is None:
        return _constant(default, kind)
    value = _value(reading, name(column), stored, kind)
    if default is None:
        return value
    empty = f"{name(column)} IS NULL" + (f" OR trim({name(column)}) = ''" if is_text(stored) else "")
    return f"CASE WHEN {empty} THEN {_constant(default, kind)} ELSE {value} END"


def _value(reading: Reading, cell: str, stored: str, kind: str) -> str:
    if stored.startswith("ENUM"):
        cell = f"CAST({cell} AS VARCHAR)"
    if kind == "VARCHAR":
        return _string(cell, stored)
    if kind == "VARCHAR[]":
        return _list(reading, cell, stored)
    if kind == "TIMESTAMP":
        return _timestamp(reading, cell, stored)
    if kind in {"TINYINT", "BOOLEAN"} and is_text(stored):
        words = f"CASE lower(trim({cell})) WHEN 'true' THEN 1 WHEN 'false' THEN 0 ELSE try_cast(trim({cell}) AS DOUBLE) END"
        return f"try_cast({words} AS {kind})" if kind == "BOOLEAN" else _whole(words, kind)
    if kind.endswith("INT") or kind == "INTEGER":
        if is_text(stored) or stored in {"DOUBLE", "FLOAT"} or stored.startswith("DECIMAL"):
            return _whole(f"try_cast({f'trim({cell})' if is_text(stored) else cell} AS DOUBLE)", kind)
        return f"try_cast({cell} AS {kind})"
    return f"try_cast({f'trim({cell})' if is_text(stored) else cell} AS {kind})"


def _whole(number: str, kind: str) -> str:
    """3.0 is 3, but 3.5 is no integer."""
    return f"CASE WHEN {number} = floor({number}) THEN try_cast({number} AS {kind}) END"


def _string(cell: str, stored: str) -> str:
    if is_text(stored):
        return f"nullif(trim({cell}), '')"
    if stored in {"DOUBLE", "FLOAT"}:  # an id that a data frame turned into a float because some were missing
        return f"CASE WHEN {cell} = floor({cell}) AND abs({cell}) < 9e15 THEN CAST(CAST({cell} AS BIGINT) AS VARCHAR) " \
               f"WHEN isfinite({cell}) THEN CAST({cell} AS VARCHAR) END"  # fmt: skip
    return f"CAST({cell} AS VARCHAR)"


def _list(reading: Reading, cell: str, stored: str) -> str:
    if stored.endswith("[]"):
        items = f"CAST({cell} AS VARCHAR[])"
    elif is_text(stored):
        items = f"list_transform(string_split({cell}, {text(reading.list_separator)}), lambda item: trim(item))"
    else:
        return "CAST(NULL AS VARCHAR[])"
    return f"list_filter({items}, lambda item: item IS NOT NULL AND item <> '')"


def _timestamp(reading: Reading, cell: str, stored: str) -> str:
    """Naive UTC. Numbers count from 1970; text is ISO 8601 or `time_format`; a zone is applied where none is given."""
    scale = _UNITS[reading.time_unit]
    if stored == "TIMESTAMP WITH TIME ZONE":
        return f"timezone('UTC', {cell})"
    if stored.startswith("TIMESTAMP") or stored == "DATE":
        return _localised(reading, f"CAST({cell} AS TIMESTAMP)")
    if not is_text(stored):
        return f"make_timestamp(try_cast(round(try_cast({cell} AS DOUBLE) * {scale}) AS BIGINT))" if stored in {
            "DOUBLE", "FLOAT"} else f"make_timestamp(try_cast(try_cast({cell} AS HUGEINT) * {scale} AS BIGINT))"  # fmt: skip
    trimmed = f"trim({cell})"
    if reading.time_format is not None:
        return _localised(reading, f"try_strptime({trimmed}, {text(reading.time_format)})")
    number = f"make_timestamp(try_cast(try_cast({trimmed} AS DECIMAL(38, 6)) * {scale} AS BIGINT))"
    aware = f"timezone('UTC', try_cast({trimmed} AS TIMESTAMPTZ))"
    naive = _localised(reading, f"try_cast({trimmed} AS TIMESTAMP)")
    return (
        f"CASE WHEN regexp_full_match({trimmed}, {text(_NUMBER)}) THEN {number} "
        f"WHEN regexp_matches({trimmed}, {text(':.*' + _OFFSET)}) THEN {aware} ELSE {naive} END"
    )


def _localised(reading: Reading, naive: str) -> str:
    if reading.time_zone == "UTC":
        return naive
    return f"timezone('UTC', timezone({text(reading.time_zone)}, {naive}))"


def _constant(value: Scalar | None, kind: str) -> str:
    if value is None:
        return f"CAST(NULL AS {kind})"
    return f"CAST({text(str(value))} AS {kind})"
