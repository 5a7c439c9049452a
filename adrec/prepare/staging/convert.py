"""SQL that turns a raw cell, text or typed, into the value that its role asks for; NULL where it cannot be read so.

A cell is read by its role, never by its looks: an id or a category keeps every character, a number is a number only where a
role says so. The same SQL reads CSV, JSON lines, Parquet and Arrow tables, so that the same cell gives the same value.
"""

import re
from collections.abc import Sequence
from typing import Literal

import pyarrow as pa

from adrec import schema
from adrec.config.data.sources import Scalar
from adrec.data.disk.engine import text
from adrec.prepare.sources.base import Reading
from adrec.prepare.sources.json_lines import text_items

Role = Literal[schema.Role, "list", "vector", "media", "kept"]
"""`list` is a list of categories, `vector` numbers of a fixed width, `media` the bytes of a picture or sound or where it lies;
`kept` a column that no role is known of: text as it stands, else what is stored."""
_IDENTITIES = {"id", "person", "category"}

NOBODY_MEANS = ("\\N", "NULL", "null", "NaN", "nan")
MISSING = (*NOBODY_MEANS, "None", "NA", "N/A", "#N/A", "<NA>", "NaT")
_NULL_WORDS: dict[str, Sequence[str]] = {
    **dict.fromkeys(("id", "person", "moment", "flag"), MISSING),
    "number": tuple(word for word in MISSING if word.lower() != "nan"),
    **dict.fromkeys(("category", "list", "ids", "vector"), NOBODY_MEANS),
    **dict.fromkeys(("text", "kept", "media"), ("\\N",)),
}

_EXCEL_EPOCH_DAYS = 25_569
"""Days from 30 December 1899, where spreadsheets begin to count, to 1970."""
ISO = "iso"
"""Of `time_format`: ISO 8601."""
_SCALES = {"seconds": (1_000_000, 1), "milliseconds": (1_000, 1), "microseconds": (1, 1), "nanoseconds": (1, 1_000)}
_COUNT = r"[+-]?[0-9]+([.][0-9]*)?"
_NAIVE = r"[0-9]+[-/.][0-9]+[-/.][0-9]+([T ]+[0-9]+:[0-9]+(:[0-9]+([.][0-9]*)?)?)?"
_ZONED = r".*:.*[0-9] ?(Z|[+-][0-9]{2}(:?[0-9]{2})?|[A-Za-z][A-Za-z0-9_/+-]+)"
_SHARED_ZONES = r".*[ 0-9](CST|IST|BST|AST|SST)"
"""Abbreviations of more than one zone."""
_LARGEST = {"DOUBLE": 1 << 53, "FLOAT": 1 << 24}
"""From here on a float cannot tell two whole numbers apart."""


def sql_type(kind: pa.DataType) -> str:
    """DuckDB's name of a contract type."""
    if pa.types.is_timestamp(kind):
        return "TIMESTAMP"
    if pa.types.is_list(kind):
        return "VARCHAR[]"
    return {"string": "VARCHAR", "double": "DOUBLE", "float": "FLOAT", "int8": "TINYINT", "int32": "INTEGER", "int64": "BIGINT",
            "bool": "BOOLEAN"}[str(kind)]  # fmt: skip


def is_text(stored: str) -> bool:
    """Whether a raw column is text (bytes are taken for text in UTF-8)."""
    return stored in {"VARCHAR", "JSON", "BLOB"} or stored.startswith("ENUM")


def is_float(stored: str) -> bool:
    """Whether a raw column holds numbers that may be broken."""
    return stored in _LARGEST or stored.startswith("DECIMAL")


def null_words(reading: Reading, role: Role) -> Sequence[str]:
    """The words that mean a missing cell of this role."""
    return reading.null_values if reading.null_values is not None else _NULL_WORDS[role]


def trimmed(cell: str, stored: str) -> str:
    """SQL of a text cell without the space around it."""
    if stored == "BLOB":
        return f"trim(TRY(decode({cell})))"
    return f"trim(CAST({cell} AS VARCHAR))" if stored.startswith("ENUM") else f"trim({cell})"


def is_null_word(cell: str, words: Sequence[str]) -> str:
    """SQL: whether trimmed text is one of `words`."""
    if not words:
        return "false"
    longest = max(len(word.encode()) for word in words)  # long cells are passed by without a comparison
    return f"(strlen({cell}) <= {longest} AND {cell} IN ({', '.join(map(text, words))}))"


def filled(reading: Reading, cell: str, stored: str, role: Role) -> str:
    """SQL of the cell, text trimmed; NULL where it is empty or one of the words that mean so."""
    if not is_text(stored) or (stored == "BLOB" and role == "media"):
        return cell
    plain = trimmed(cell, stored)
    return f"CASE WHEN {is_null_word(plain, ['', *null_words(reading, role)])} THEN NULL ELSE {plain} END"


def converted(reading: Reading, column: str, cell: str, stored: str | None, kind: str, role: Role) -> str:
    """SQL of type `kind` for `cell`, which `filled` made of a column stored as `stored` (None: absent, the default alone)."""
    default = reading.defaults.get(column)
    if stored is None:
        return _constant(default, kind)
    plain = "VARCHAR" if is_text(stored) else stored
    value = _flag(reading, column, cell, plain, kind) if role == "flag" else _value(reading, cell, plain, kind, role)
    if column == "position" and reading.first_position != 1:
        value = f"{value} + {1 - reading.first_position}"
    return value if default is None else f"CASE WHEN {cell} IS NULL THEN {_constant(default, kind)} ELSE {value} END"


def reached(reading: Reading, cell: str, stored: str, least: float, kind: str) -> str:
    """SQL of a flag of type `kind`: whether the number in a cell that `filled` made is `least` or more; NULL where none."""
    number = _value(reading, cell, "VARCHAR" if is_text(stored) else stored, "DOUBLE", "number")
    return f"CASE WHEN isfinite({number}) THEN CAST({number} >= {least!r} AS {kind}) END"


def _flag(reading: Reading, column: str, cell: str, stored: str, kind: str) -> str:
    """0 or 1 from numbers, booleans and words; where the source says what is positive, everything else that is filled is 0."""
    if column not in reading.positive:
        number = _value(reading, cell, stored, kind, "number")
        if not is_text(stored):
            return number
        words = f"CASE WHEN lower({cell}) IN ('t', 'yes', 'y') THEN 1 WHEN lower({cell}) IN ('f', 'no', 'n') THEN 0 END"
        return f"CAST(coalesce({number}, {words}) AS {kind})"
    wanted = list(reading.positive[column])
    if True in wanted:  # YAML takes Yes, On and true for one
        wanted += ["true", "t", "yes", "y", "on", "1"]
    spelled = sorted({str(word).strip().lower() for word in wanted})
    conditions = [f"lower(trim(CAST({cell} AS VARCHAR))) IN ({', '.join(map(text, spelled))})"]
    numbers = sorted({float(word) for word in wanted if isinstance(word, int | float) and not isinstance(word, bool)})
    if numbers:
        number = _value(reading, cell, stored, "DOUBLE", "number")
        conditions.append(f"coalesce({number} IN ({', '.join(map(repr, numbers))}), false)")
    return f"CASE WHEN {cell} IS NOT NULL THEN CAST({' OR '.join(conditions)} AS {kind}) END"


def _value(reading: Reading, cell: str, stored: str, kind: str, role: Role) -> str:
    if kind == "VARCHAR":
        return _identity(cell, stored) if role in _IDENTITIES or not is_text(stored) else cell
    if kind == "BLOB":
        return cell
    if kind == "VARCHAR[]":
        return _list(reading, cell, stored, role)
    if kind == "TIMESTAMP":
        return _moment(reading, cell, stored)
    if role == "vector":
        return _vector(vector_items(reading, cell, stored), kind)
    if not is_text(stored):
        is_whole = kind.endswith("INT") or kind == "INTEGER"
        return _whole(cell, kind) if is_whole and is_float(stored) else f"try_cast({cell} AS {kind})"
    number = _number(reading, cell)
    if kind in {"DOUBLE", "FLOAT"}:
        return number if kind == "DOUBLE" else f"try_cast({number} AS FLOAT)"
    if kind == "BOOLEAN":
        return f"try_cast({number} AS BOOLEAN)"
    if kind == "BIGINT":  # 19 digits are more than a float can hold
        exact = f"CASE WHEN regexp_full_match({cell}, '[+-]?[0-9]+') THEN try_cast({cell} AS BIGINT) END"
        return f"coalesce({exact}, {_whole(number, kind)})"
    return _whole(number, kind)


def _number(reading: Reading, cell: str) -> str:
    """SQL of a DOUBLE from trimmed text. true is 1, false 0; no mark but the declared ones is skipped."""
    plain = cell
    if reading.thousands:
        mark, point = (f"[{one}]" for one in (reading.thousands, reading.decimal))
        grouped = f"[+-]?[0-9]{{1,3}}({mark}[0-9]{{3}})+({point}[0-9]*)?"
        plain = (
            f"CASE WHEN NOT contains({cell}, {text(reading.thousands)}) THEN {cell} WHEN regexp_full_match({cell}, "
            f"{text(grouped)}) THEN replace({cell}, {text(reading.thousands)}, '') END"
        )
    if reading.decimal == ",":
        plain = f"CASE WHEN NOT contains({plain}, '.') THEN replace({plain}, ',', '.') END"
    # The engine itself would read 320_50 as 32050.
    number = f"CASE WHEN NOT contains({plain}, '_') THEN try_cast({plain} AS DOUBLE) END"
    return f"coalesce({number}, CASE lower({cell}) WHEN 'true' THEN 1.0 WHEN 'false' THEN 0.0 END)"


def _whole(number: str, kind: str) -> str:
    """3.0 is 3, but 3.5 is no integer."""
    return f"CASE WHEN {number} = floor({number}) THEN try_cast({number} AS {kind}) END"


def _identity(cell: str, stored: str) -> str:
    """Text as it stands. `17.0` is 17: so frames write whole numbers where some are missing. NULL for what a float blurred."""
    if is_text(stored):
        # What a float of 2^53 or more looks like in text: digits and .0, or 1.2345678901234568e+18.
        return (
            f"CASE WHEN ends_with({cell}, '.0') AND regexp_full_match({cell}, '-?[0-9]+[.]0') THEN "
            f"CASE WHEN abs(CAST({cell} AS DOUBLE)) >= {_LARGEST['DOUBLE']} THEN NULL "
            f"WHEN regexp_full_match({cell}, '-?(0|[1-9][0-9]*)[.]0') THEN left({cell}, -2) ELSE {cell} END "
            f"WHEN contains({cell}, 'e+') AND regexp_full_match({cell}, '-?[0-9]([.][0-9]+)?e[+][0-9]+') THEN NULL "
            f"ELSE {cell} END"
        )
    if stored in _LARGEST:
        whole = f"WHEN {cell} = floor({cell}) THEN CAST(CAST({cell} AS BIGINT) AS VARCHAR)"
        other = f"WHEN isfinite({cell}) THEN CAST({cell} AS VARCHAR)"
        return f"CASE WHEN abs({cell}) >= {_LARGEST[stored]} THEN NULL {whole} {other} END"
    if stored.startswith("DECIMAL"):
        return f"regexp_replace(CAST({cell} AS VARCHAR), '[.]0+$', '')"
    return f"CAST({cell} AS VARCHAR)"


def _list(reading: Reading, cell: str, stored: str, role: Role) -> str:
    if stored.endswith("[]"):
        inner = stored[:-2]
        item = trimmed("item", inner) if is_text(inner) else _identity("item", inner)
        items = f"list_transform({cell}, lambda item: {item})"
    elif is_text(stored):
        items = f"list_transform({text_items(cell, reading.list_separator)}, lambda item: trim(item))"
    else:
        return "CAST(NULL AS VARCHAR[])"
    kept = (
        f"list_filter({items}, lambda item: item IS NOT NULL AND NOT {is_null_word('item', ['', *null_words(reading, role)])})"
    )
    return f"list_transform({kept}, lambda item: {_identity('item', 'VARCHAR')})" if role == "ids" else kept


def vector_type(width: int) -> str:
    """DuckDB's name of a vector of so many numbers."""
    return f"FLOAT[{width}]"


def width_of(kind: str) -> int:
    """Of a vector, by the name that `vector_type` gives."""
    return int(kind.removeprefix("FLOAT[").removesuffix("]"))


def vector_items(reading: Reading, cell: str, stored: str) -> str:
    """SQL of the numbers of a cell as a list of FLOAT, NULL where one is none: of a stored list, a JSON array, or text that
    separates them by spaces, commas (unless those are decimal marks), semicolons or `|`.
    """
    if stored.endswith("]"):
        return f"try_cast({cell} AS FLOAT[])"
    if not is_text(stored):
        return "CAST(NULL AS FLOAT[])"
    marks = "[]();|\t\n\r" + ("" if reading.decimal == "," else ",")
    plain = f"translate({cell}, {text(marks)}, {text(' ' * len(marks))})"
    if reading.decimal == ",":
        plain = f"replace({plain}, ',', '.')"
    return f"try_cast(list_filter(string_split({plain}, ' '), lambda item: item <> '') AS FLOAT[])"


def _vector(items: str, kind: str) -> str:
    """SQL of a vector of the width that `kind` says; NULL for another width, and where a number is missing or infinite."""
    width = width_of(kind)
    is_whole = f"len({items}) = {width} AND len(list_filter({items}, lambda item: isfinite(item))) = {width}"
    return f"CASE WHEN {is_whole} THEN CAST({items} AS {kind}) END"


def _moment(reading: Reading, cell: str, stored: str) -> str:
    """Naive UTC. Numbers count from 1970; text is ISO 8601 or `time_format`; a zone is applied where none is given."""
    if stored.startswith("TIMESTAMP") and (stored.endswith("WITH TIME ZONE") or stored.startswith("TIMESTAMPTZ")):
        return f"timezone('UTC', CAST({cell} AS TIMESTAMPTZ))"
    if stored.startswith("TIMESTAMP") or stored == "DATE":
        return _localised(reading, f"CAST({cell} AS TIMESTAMP)")
    formats = [reading.time_format] if isinstance(reading.time_format, str) else list(reading.time_format or ())
    if not is_text(stored):
        digits = [form for form in formats if _is_digits(form)]
        whole = f"CAST(try_cast({cell} AS BIGINT) AS VARCHAR)"
        return _first([_formatted(reading, whole, form) for form in digits]) if digits else _counted(reading, cell, stored)
    read = [_iso(reading, cell) if form == ISO else _formatted(reading, cell, form) for form in formats]
    return _first(read) if read else _iso(reading, cell)


def _first(expressions: Sequence[str]) -> str:
    return expressions[0] if len(expressions) == 1 else f"coalesce({', '.join(expressions)})"


def _is_digits(form: str) -> bool:
    """Whether a time so written looks like a whole number (`%Y%m%d%H`)."""
    return re.fullmatch("(%[YymdHMSj])+", form) is not None


def _formatted(reading: Reading, cell: str, form: str) -> str:
    """SQL of text written as `form` says; whole numbers that passed through a float end in .0."""
    plain = f"regexp_replace({cell}, '[.]0+$', '')" if _is_digits(form) else cell
    parsed = f"try_strptime({plain}, {text(form)})"
    has_zone = any(mark in form.replace("%%", "") for mark in ("%z", "%Z"))
    return f"timezone('UTC', {parsed})" if has_zone else _localised(reading, f"CAST({parsed} AS TIMESTAMP)")


def _counted(reading: Reading, cell: str, stored: str) -> str:
    """SQL of a number that counts units from 1970 (days from 1899)."""
    if reading.time_unit == "excel":
        # Spreadsheets know no more than milliseconds.
        days = f"replace({cell}, ',', '.')" if is_text(stored) else cell
        milliseconds = f"round((try_cast({days} AS DOUBLE) - {_EXCEL_EPOCH_DAYS}) * 86400000)"
        return _localised(reading, f"make_timestamp(try_cast({milliseconds} AS BIGINT) * 1000)")
    times, over = _SCALES[reading.time_unit]
    if is_text(stored):
        scaled = f"try_cast({cell} AS DECIMAL(38, 6)) * {times}"
        return f"make_timestamp(try_cast({scaled if over == 1 else f'{scaled} / {over}'} AS BIGINT))"
    if is_float(stored) and not stored.startswith("DECIMAL"):
        return f"make_timestamp(try_cast(round(try_cast({cell} AS DOUBLE) * {times} / {over}) AS BIGINT))"
    return f"make_timestamp(try_cast(try_cast({cell} AS HUGEINT) * {times} // {over} AS BIGINT))"


def _iso(reading: Reading, cell: str) -> str:
    """SQL of text in ISO 8601, or of a number."""
    number = _counted(reading, cell, "VARCHAR")
    is_count = f"regexp_full_match({cell}, {text(_COUNT.replace('[.]', '[.,]') if reading.decimal == ',' else _COUNT)})"
    # A zone that the engine does not know would be left out of a naive reading: then the cell is no moment.
    plain = f"regexp_replace(regexp_replace({cell}, '([+-][0-9:]+|Z)\\[[^]]*\\]$', '\\1'), ' ([+-]|Z$)', '\\1')"
    aware = f"timezone('UTC', try_cast({plain} AS TIMESTAMPTZ))"
    naive = _localised(reading, f"try_cast({cell} AS TIMESTAMP)")
    return (
        f"CASE WHEN {is_count} THEN {number} "
        f"WHEN regexp_full_match({cell}, {text(_NAIVE)}) THEN {naive} "
        f"WHEN regexp_full_match({plain}, {text(_ZONED)}) "
        f"AND NOT regexp_full_match({cell}, {text(_SHARED_ZONES)}) THEN {aware} END"
    )


def _localised(reading: Reading, naive: str) -> str:
    if reading.time_zone == "UTC":
        return naive
    return f"timezone('UTC', timezone({text(reading.time_zone)}, {naive}))"


def _constant(value: Scalar | None, kind: str) -> str:
    if value is None:
        return f"CAST(NULL AS {kind})"
    return f"CAST({text(str(value))} AS {kind})"


def given(cell: str, stored: str | None, role: Role) -> str:
    """SQL: whether the cell that `filled` made holds anything. NaN is how frames write a missing id."""
    if stored is None:
        return "false"
    is_nan = f" AND NOT isnan({cell})" if stored in _LARGEST and role in _IDENTITIES else ""
    return f"({cell} IS NOT NULL{is_nan})"
