"""Nested values as YAML with comments where people will read them; what is short stays on one line."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_WIDEST = 100


def written(
    section: Mapping[str, Any],
    behind: Mapping[str, str] | None = None,
    above: Mapping[str, Sequence[str]] | None = None,
    path: str = "",
) -> list[str]:
    """Lines of `section`. `behind`: dotted key -> comment on its line; `above`: dotted key -> comment lines before it."""
    behind, above = behind or {}, above or {}
    commented = {*behind, *above}
    lines: list[str] = []
    for key, value in section.items():
        dotted = f"{path}.{key}" if path else key
        indent = "  " * dotted_depth(path)
        lines += [f"{indent}# {line}" for line in above.get(dotted, ())]
        comment = f"  # {behind[dotted]}" if dotted in behind else ""
        is_commented_inside = any(other.startswith(f"{dotted}.") for other in commented)
        flat = f"{indent}{scalar(key)}: {flow(value)}"
        is_section = isinstance(value, Mapping) and value and (path == "" or len(flat) > _WIDEST or is_commented_inside)
        if isinstance(value, Mapping) and is_section:
            lines.append(f"{indent}{scalar(key)}:{comment}")
            lines += written(value, behind, above, dotted)
        elif isinstance(value, list) and len(flat) > _WIDEST:
            lines.append(f"{indent}{scalar(key)}:{comment}")
            lines += [f"{indent}  - {flow(item)}" for item in value]
        else:
            lines.append(flat + comment)
    return lines


def dotted_depth(path: str) -> int:
    """How deep the keys below `path` stand."""
    return path.count(".") + 1 if path else 0


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    """Text in quotes where it would be read as something else without."""
    if not isinstance(value, str):
        return json.dumps(value)
    return value if _is_plain(value) else json.dumps(value, ensure_ascii=False)


def _is_plain(value: str) -> bool:
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-")
    words = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
    return bool(value) and set(value) <= allowed and value[0] not in "-0123456789" and value.lower() not in words
