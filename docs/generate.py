"""Write from the code: a page a command in `commands/` (help, each setting of its config), the tables of `data/contract.md`.

`make docs` runs it before it builds the site; a test holds the committed pages against it, so they cannot drift.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic_core import PydanticUndefined

from adrec.commands import COMMANDS as TABLE
from adrec.config.commands import config_model
from adrec.schema import RANKED, SCORED, TABLES, Column, TableSpec

DOCS = Path(__file__).parent
COMMANDS = DOCS / "commands"
DATA = DOCS / "data" / "contract.md"
TOPICS = {  # where a command's ideas are explained
    "daily": "how-to/daily.md", "registry": "how-to/daily.md", "init": "how-to/your-log.md",
    "sample": "data/sample.md", "preprocess": "data/preprocess.md", "inspect": "how-to/daily.md",
    "pretrain": "training/pretrain.md", "pretrain-mlm": "training/pretrain.md", "distill": "training/pretrain.md",
    "audit": "how-to/privacy.md", "federate": "how-to/federated.md", "forget": "how-to/forget.md",
    "finetune": "training/finetune.md", "tune": "training/tune.md", "train-reranker": "training/reranker.md",
    "score": "using/score.md", "encode": "using/score.md", "rank": "using/rank.md", "explain": "using/explain.md",
    "export": "using/export.md", "serve": "using/serve.md", "events": "using/serve.md", "sign": "using/bundle.md",
    "evaluate": "judging/evaluate.md", "compare": "judging/evaluate.md",
}  # fmt: skip
_BEGIN, _END = "<!-- columns of {} -->", "<!-- end of columns -->"
_MADE = "<!-- Made by `make docs` from the code; do not edit. -->\n"
_INDEX = """# Every command and its settings

Every command takes `--config FILE`, `--set dotted.key=value` (repeated), `--json` and `--quiet`; `--seed` where it draws at
random, `--device auto|cpu|cuda` where it runs a network. `adrec config schema COMMAND` prints a page's table as a JSON schema.

| command | |
| --- | --- |
"""


def pages() -> dict[str, str]:
    """File name → the page of a command, and the index of them."""
    made, index = {}, _MADE + _INDEX
    for command in sorted(TABLE):
        name, schema = command.name, config_model(command.name).model_json_schema()
        rows = "\n".join(_settings(schema, schema))
        help_text = command.help
        help_text = re.sub(r"^Example: (.*)$", r"```bash\n\1\n```", help_text, flags=re.MULTILINE)
        topic = f"Explained in docs/{TOPICS[name]}.\n\n" if name in TOPICS else ""
        table = f"| setting | type | default | meaning |\n| --- | --- | --- | --- |\n{rows}\n"
        made[f"{name}.md"] = _linked(f"{_MADE}# adrec {name}\n\n{help_text}\n\n{topic}{table}")
        index += f"| [`{name}`]({name}.md) | {help_text.split(chr(10))[0]} |\n"
    return {"README.md": index, **made}


def _linked(page: str) -> str:
    """`page` with every page of docs that it names as a link."""

    def link(match: re.Match[str]) -> str:
        return f"[{Path(match[1]).stem}]({os.path.relpath(DOCS / match[1], COMMANDS)}{match[2] or ''})"

    return re.sub(r"docs/([\w/-]+\.md)(#[\w-]+)?", link, page)


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


def _settings(
    schema: dict[str, Any], root: dict[str, Any], path: str = "", kind: str = "", told: dict[str, str] | None = None
) -> Iterator[str]:
    """A table row a setting; sections are gone into, in the order of the class, each kind of section once (`told`)."""
    told = {} if told is None else told
    for name, field in schema.get("properties", {}).items():
        suffix, options = _options(field)
        named = [option["$ref"].rsplit("/", 1)[-1] for option in options if "$ref" in option]
        sections = [name for name in named if "properties" in root["$defs"][name]]
        inner = f"{path}{name}{suffix}."
        again = [told[section] for section in sections if section in told]
        if len(options) != 1 or len(sections) != 1 or again:  # it may be something else, too
            row = _row(f"{path}{name}", kind, field, name in schema.get("required", ()), root)
            yield row.removesuffix(" |") + f" Keys as under `{again[0]}`. |" if again else row
        for section in sections:
            if section not in told:
                if len(root["$defs"][section]["properties"]) > 3:
                    told[section] = inner.removesuffix(".")
                own = _kind_of(root["$defs"][section]) if len(sections) > 1 else kind
                yield from _settings(root["$defs"][section], root, inner, own, told)


def _options(field: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """All that a field may be, hold or name, and how the path to it goes on: nothing, `[]`, `.NAME`."""
    for suffix, key in (("[]", "items"), (".NAME", "additionalProperties")):
        if isinstance(field.get(key), dict):
            return suffix, _options(field[key])[1]
    inner = field.get("anyOf", field.get("oneOf", ()))
    if not inner:
        return "", [field]
    found = [_options(option) for option in inner]
    return next((suffix for suffix, _ in found if suffix), ""), [option for _, options in found for option in options]


def _kind_of(section: dict[str, Any]) -> str:
    """What chooses a section among others: `format: tables`; or its name."""
    constants = [f"{name}: {field['const']}" for name, field in section["properties"].items() if "const" in field]
    return constants[0] if constants else str(section.get("title", ""))


def _row(path: str, kind: str, field: dict[str, Any], required: bool, root: dict[str, Any]) -> str:
    default = field.get("default", PydanticUndefined)
    shown = "required" if required else "" if default is PydanticUndefined else f"`{json.dumps(default, ensure_ascii=False)}`"
    meaning = " ".join(str(field.get("description", "")).split())
    cells = (f"`{path}`" + f" ({kind})" * bool(kind), _type(field, root), shown, meaning)
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
    COMMANDS.mkdir(exist_ok=True)
    made = pages()
    for stale in set(COMMANDS.glob("*.md")) - {COMMANDS / name for name in made}:
        stale.unlink()  # of a command that is no more
    for name, page in made.items():
        (COMMANDS / name).write_text(page, encoding="utf-8")
    DATA.write_text(data_page(DATA.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{COMMANDS}, {DATA}: written")
