"""Fields inside cells: of structs, JSON objects, maps, and lists of key and value records (as analytics exports write events).

`user.id` is the field `id` of the column `user`; `event_params.page` is the value of the record whose key is `page`. Fields are
reached where a row is read: nothing is copied. What has no path: a list of other records, and a field behind six others.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
from duckdb.sqltypes import DuckDBPyType

from adrec.data.disk.engine import name, one_row, text

_LOOKED_AT = 2_000
"""Rows in which fields are looked for."""
_DEEPEST = 6
_VALUES = ("string_value", "int_value", "float_value", "double_value", "value")
"""Fields of which one holds the value of a record."""


@dataclass(frozen=True)
class Nested:
    """The fields found in a view. `cells` says by path how each is read; `parents` are the columns that they lie in."""

    cells: Mapping[str, str]
    parents: frozenset[str]


def find_nested(connection: duckdb.DuckDBPyConnection, view: str) -> Nested:
    """The paths into the columns of `view`. Those of text are looked for in its first rows."""
    cells: dict[str, str] = {}
    parents = set()
    columns = _types(connection, view)
    texts = [column for column, kind in columns.items() if kind.id == "varchar"]
    first = _first_texts(connection, view, texts)
    for column, kind in columns.items():
        if kind.id == "varchar":
            paths = _json_paths(connection, view, column) if first[column].lstrip().startswith(("{", "[")) else []
        else:
            paths = list(_typed_paths(connection, view, name(column), kind, ()))
        for path in paths:
            full = ".".join((column, *path))
            cell = _reach(name(column), kind, path)
            if cell is not None and full not in columns:
                cells[full] = cell
                parents.add(column)
    return Nested(cells, frozenset(parents))


def path_cell(connection: duckdb.DuckDBPyConnection, view: str, path: str) -> str | None:
    """SQL of what lies at `path`, also where no first row holds it; None where its column is not there or has no fields."""
    columns, steps = _types(connection, view), path.split(".")
    for cut in range(len(steps) - 1, 0, -1):
        column = ".".join(steps[:cut])
        if column in columns:
            return _reach(name(column), columns[column], steps[cut:])
    return None


def _types(connection: duckdb.DuckDBPyConnection, view: str) -> dict[str, DuckDBPyType]:
    relation = connection.sql(f"SELECT * FROM {view} LIMIT 0")
    return dict(zip(relation.columns, relation.types, strict=True))


def _typed_paths(
    connection: duckdb.DuckDBPyConnection, view: str, cell: str, kind: DuckDBPyType, above: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    if kind.id == "struct" and len(above) < _DEEPEST:
        for field, inner in _fields(kind).items():
            deeper = list(_typed_paths(connection, view, f"struct_extract({cell}, {text(field)})", inner, (*above, field)))
            yield from deeper or [(*above, field)]
    elif _is_records(kind) or kind.id == "map":
        keys = f"list_transform({cell}, lambda x: x.key)" if kind.id == "list" else f"map_keys({cell})"
        rows = f"SELECT unnest({keys}) AS key FROM {_first_rows(view)}"
        for (key,) in connection.execute(
            f"SELECT key FROM ({rows}) WHERE key IS NOT NULL GROUP BY key ORDER BY key"
        ).fetchall():
            yield (*above, str(key))


def _first_texts(connection: duckdb.DuckDBPyConnection, view: str, columns: Sequence[str]) -> dict[str, str]:
    """A filled cell of each column, of the first rows; empty where there is none."""
    if not columns:
        return {}
    cells = ", ".join(f"first({name(column)}) FILTER ({name(column)} <> '') AS {name(column)}" for column in columns)
    return {column: cell or "" for column, cell in one_row(connection, f"SELECT {cells} FROM {_first_rows(view)}").items()}


def _first_rows(view: str) -> str:
    return f"(SELECT * FROM {view} LIMIT {_LOOKED_AT})"


def _json_paths(connection: duckdb.DuckDBPyConnection, view: str, column: str) -> list[tuple[str, ...]]:
    """Paths into a column whose every filled cell is a JSON object, or an array of records."""
    cell = name(column)
    rows = f"SELECT {cell} FROM {_first_rows(view)} WHERE {cell} <> ''"
    is_nested = f"regexp_matches({cell}, '^\\s*(\\{{|\\[\\s*\\{{|\\[\\s*\\])') AND json_valid({cell})"
    grouped = f"json_group_structure(CAST(CASE WHEN {is_nested} THEN {cell} END AS JSON))"
    structure = one_row(connection, f"SELECT CASE WHEN bool_and({is_nested}) THEN {grouped} END AS found FROM ({rows})")[
        "found"
    ]
    if structure is None:
        return []
    shape = json.loads(structure)
    if isinstance(shape, dict):
        return list(_leaves(shape, ()))
    if _are_records(shape):
        records = f'from_json({cell}, \'[{{"key":"VARCHAR"}}]\')'
        keys = f"SELECT unnest({records}).key AS key FROM ({rows})"
        return [
            (key,)
            for (key,) in connection.execute(f"SELECT DISTINCT key FROM ({keys}) WHERE key IS NOT NULL ORDER BY 1").fetchall()
        ]
    return []


def _leaves(shape: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for key, inner in shape.items():
        if isinstance(inner, dict) and inner and len(above) < _DEEPEST:
            yield from _leaves(inner, (*above, key))
        else:
            yield (*above, key)


def _are_records(shape: object) -> bool:
    return isinstance(shape, list) and bool(shape) and isinstance(shape[0], dict) and {"key", "value"} <= set(shape[0])


def _is_records(kind: DuckDBPyType) -> bool:
    """A list of structs that have a key and a value."""
    inner = _fields(kind)["child"] if kind.id == "list" else None
    return inner is not None and inner.id == "struct" and {"key", "value"} <= set(_fields(inner))


def _fields(kind: DuckDBPyType) -> dict[str, DuckDBPyType]:
    """What a type is made of, by name: a struct's fields, a list's child, a map's key and value."""
    return {str(part[0]): part[1] for part in kind.children if isinstance(part[1], DuckDBPyType)}


def _reach(cell: str, kind: DuckDBPyType, steps: Sequence[str]) -> str | None:
    """SQL of what lies behind `steps` in `cell`; None where nothing can."""
    if not steps:
        return cell
    first, rest = steps[0], steps[1:]
    if kind.id == "struct":
        fields = _fields(kind)
        return _reach(f"struct_extract({cell}, {text(first)})", fields[first], rest) if first in fields else None
    if kind.id == "map":
        return _reach(f"map_extract_value({cell}, {text(first)})", _fields(kind)["value"], rest)
    if _is_records(kind):
        value = _fields(_fields(kind)["child"])["value"]
        record = f"list_filter({cell}, lambda x: x.key = {text(first)})[1].value"
        if value.id == "struct" and not rest:
            filled = [
                f"CAST(struct_extract({record}, {text(field)}) AS VARCHAR)"
                for field, inner in _fields(value).items()
                if not _has_fields(inner)
            ]
            return f"coalesce({', '.join(filled)})" if filled else None
        return _reach(record, value, rest)
    if kind.id == "varchar":
        return _reach_json(cell, steps)
    return None


def _has_fields(kind: DuckDBPyType) -> bool:
    return kind.id in {"struct", "list", "map"}


def _reach_json(cell: str, steps: Sequence[str]) -> str:
    """Text that is no JSON, or has no such field, gives NULL."""
    inside = f"TRY(json_extract_string({cell}, {text(_pointer(steps))}))"
    records = f'TRY(from_json({cell}, \'[{{"key":"VARCHAR","value":"JSON"}}]\'))'
    record = f"list_filter({records}, lambda x: x.key = {text(steps[0])})[1].value"
    fields = [_pointer([field]) for field in _VALUES] if len(steps) == 1 else [_pointer(steps[1:])]
    values = [f"json_extract_string({record}, {text(field)})" for field in fields]
    plain = [f"CASE WHEN json_type({record}) NOT IN ('OBJECT', 'ARRAY') THEN {record} ->> '$' END"] if len(steps) == 1 else []
    return f"CASE WHEN starts_with(ltrim({cell}), '[') THEN coalesce({', '.join([*values, *plain, 'NULL'])}) ELSE {inside} END"


def _pointer(steps: Sequence[str]) -> str:
    return "$" + "".join('."' + step.replace("\\", "\\\\").replace('"', '\\"') + '"' for step in steps)
