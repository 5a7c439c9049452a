"""Lines of JSON as rows of text: every value as it is written, whatever it looks like.

DuckDB's own reader takes dates, UUIDs and numbers for what they look like; here strings keep every character, and numbers the
digits that the file has. A line is parsed once, for all its keys.
"""

import json
from collections.abc import Sequence

import duckdb

from adrec.data.disk.engine import name, text
from adrec.errors import DataError

_LOOKED_AT = 100_000
"""Lines in which keys are looked for."""


def json_keys(connection: duckdb.DuckDBPyConnection, reader: str, where: str) -> list[str]:
    """The keys of the first objects that `reader` gives as `line`, in order of appearance. Raises DataError."""
    lines = f"SELECT TRY(json_keys(line)) AS keys FROM {reader} LIMIT {_LOOKED_AT}"
    # Objects are mostly alike: their keys are taken apart once a kind.
    kinds = f"SELECT keys, min(place) AS place FROM (SELECT keys, row_number() OVER () AS place FROM ({lines})) GROUP BY keys"
    found = connection.execute(
        f"SELECT key FROM (SELECT unnest(keys) AS key, generate_subscripts(keys, 1) AS number, place FROM ({kinds})) "
        "GROUP BY key ORDER BY min((place, number))"
    ).fetchall()
    keys = [key for (key,) in found]
    if not keys:
        raise DataError(f"{where}: no line is a JSON object. Write one object a line, or set `format` in the config.")
    seen: dict[str, str] = {}
    for key in keys:
        if seen.setdefault(key.lower(), key) != key:
            raise DataError(f"{where}: the keys '{seen[key.lower()]}' and '{key}' differ in case alone. Name them apart.")
    return keys


def object_columns(rows: str, keys: Sequence[str]) -> str:
    """SQL of `rows` (a query of `line` and what else to keep) with the values of `keys`, as text, without blank lines."""
    shape = text(json.dumps(dict.fromkeys(keys, "VARCHAR")))
    values = ", ".join(f"adrec_object[{text(key)}] AS {name(key)}" for key in keys)
    # A blank line is no JSON: the parser must not see it, wherever the planner puts the filter.
    parsed = f"from_json(CASE WHEN {_IS_FILLED} THEN line END, {shape}) AS adrec_object"
    return f"SELECT {values}, * EXCLUDE (line, adrec_object) FROM (SELECT *, {parsed} FROM ({rows}) WHERE {_IS_FILLED})"


# The first half is for speed: taking all kinds of space off takes longer than parsing the line.
_IS_FILLED = "(starts_with(line, '{') OR trim(line, ' ' || chr(9) || chr(13)) <> '')"


def is_broken() -> str:
    """SQL condition on `line`: it holds something, but no JSON."""
    return f"({_IS_FILLED} AND NOT json_valid(line))"


def text_items(cell: str, separator: str) -> str:
    """SQL of the items of a list that is text: of a JSON array, else what stands between separators."""
    is_list = f"starts_with(ltrim({cell}), '[')"
    # Python writes the items between single quotes.
    python = f"translate({cell}, {text(chr(39))}, {text(chr(34))})"
    return (
        f"CASE WHEN {is_list} AND json_valid({cell}) THEN from_json({cell}, '[\"VARCHAR\"]') "
        f"WHEN {is_list} AND json_valid({python}) THEN from_json({python}, '[\"VARCHAR\"]') "
        f"ELSE string_split({cell}, {text(separator)}) END"
    )
