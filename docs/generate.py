"""Write from the code: `commands.md` (each command's help, each setting of its config) and the tables of `data.md`.

`make docs` runs it; a test holds the committed pages against it, so they cannot drift.
"""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import typer
from pydantic_core import PydanticUndefined

from adrec.cli.app import app
from adrec.config.commands import ALIASES, config_models
from adrec.schema import RANKED, SCORED, TABLES, Column, TableSpec

PAGE = Path(__file__).parent / "commands.md"
DATA = Path(__file__).parent / "data.md"
_BEGIN, _END = "<!-- columns of {} -->", "<!-- end of columns -->"
_HEAD = """# Commands and their settings

Made by `make docs` from the code; do not edit. Every command takes `--config FILE`, `--set dotted.key=value` (repeated),
`--json`, `--quiet`, `--seed` and `--device auto|cpu|cuda`. `adrec config schema COMMAND` prints the same as a JSON schema.
"""


def page() -> str:
    """The whole page."""
    models = config_models()
    parts = [_HEAD]
    commands: dict[str, Any] = typer.main.get_group(app).commands
    for name, command in sorted(commands.items()):
        model = models.get(ALIASES.get(name, name))
        if model is None or command.hidden:
            continue
        parts.append(f"## adrec {name}\n\n{inspect.cleandoc(command.help or '')}\n".replace("\b\n", ""))
        schema = model.model_json_schema()
        rows = "\n".join(_settings(schema, schema, ""))
        parts.append(f"| setting | type | default | meaning |\n| --- | --- | --- | --- |\n{rows}\n")
    return "\n".join(parts)


def data_page(page: str) -> str:
    """`page` with every table of columns as `adrec/schema.py` has it now. A table without a place on the page is a fault."""
    specs = {spec.name: spec for spec in (*TABLES, SCORED, RANKED)}
    added = {f"prepared {spec.name}": _only_new(spec) for spec in TABLES}
    for name, spec in {**specs, **added}.items():
        if not spec.columns:
            continue
        before, begin, rest = page.partition(_BEGIN.format(name))
        _, end, after = rest.partition(_END)
        if not begin or not end:
            raise SystemExit(f"{DATA}: has no '{_BEGIN.format(name)}' and '{_END}' behind it. Say there what the table is.")
        page = f"{before}{begin}\n{_columns(spec)}\n{end}{after}"
    return page


def _only_new(spec: TableSpec) -> TableSpec:
    """What preprocess adds to a table, or says otherwise."""
    return TableSpec(spec.name, tuple(column for column in spec.stored.columns if column not in spec.columns))


def _columns(spec: TableSpec) -> str:
    rows = ["| column | type | |", "| --- | --- | --- |"]
    for column in spec.columns:
        notes = ". Required" * (column.required and spec in TABLES) + ". An outcome: a label, never a feature" * column.outcome
        rows.append(f"| `{column.name}` | {_kind(column)} | {column.meaning}{notes} |")
    return "\n".join(rows)


def _kind(column: Column) -> str:
    """A type as people say it."""
    if pa.types.is_list(column.type):
        items = {"ids": "ids", "text": "text"} if pa.types.is_string(column.type.value_type) else {"ids": "rows"}
        return f"list of {items.get(column.role, 'numbers')}"
    if column.role == "flag":
        return "true or false" if pa.types.is_boolean(column.type) else "0 or 1"
    if pa.types.is_timestamp(column.type):
        return "moment"
    if pa.types.is_integer(column.type):
        return "whole number"
    return "number" if pa.types.is_floating(column.type) else "text"


def _settings(schema: dict[str, Any], root: dict[str, Any], path: str) -> Iterator[str]:
    """A table row a setting; sections are gone into, in the order of the class."""
    for name, field in schema.get("properties", {}).items():
        section = _section(field, root)
        if section is None:
            yield _row(f"{path}{name}", field, name in schema.get("required", ()), root)
        else:
            yield from _settings(section, root, f"{path}{name}{'[]' if field.get('type') == 'array' else ''}.")


def _section(field: dict[str, Any], root: dict[str, Any]) -> dict[str, Any] | None:
    """The object that a field holds (or lists), where it is one with settings of its own."""
    reference = field.get("$ref") or field.get("items", {}).get("$ref")
    if reference is None:
        return None
    found: dict[str, Any] = root["$defs"][reference.rsplit("/", 1)[-1]]
    return found if "properties" in found else None


def _row(path: str, field: dict[str, Any], required: bool, root: dict[str, Any]) -> str:
    default = field.get("default", PydanticUndefined)
    shown = "required" if required else "" if default is PydanticUndefined else f"`{json.dumps(default, ensure_ascii=False)}`"
    meaning = " ".join(str(field.get("description", "")).split())
    cells = (f"`{path}`", _type(field, root), shown, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(field: dict[str, Any], root: dict[str, Any]) -> str:
    """In a word or two, with its bounds."""
    if "$ref" in field:
        return _type(root["$defs"][field["$ref"].rsplit("/", 1)[-1]], root)
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(dict.fromkeys(_type(option, root) for option in field[key]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}), root)}"
    bounds = [f"{sign} {field[key]:g}" for key, sign in _BOUNDS.items() if key in field]
    return " ".join([str(field.get("title") if "properties" in field else field.get("type", "any")), *bounds])


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    DATA.write_text(data_page(DATA.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE}, {DATA}: written")
