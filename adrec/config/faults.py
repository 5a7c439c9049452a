"""What is wrong with a config, in words: each fault of pydantic as one line with its path, what was found, and the cure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from adrec.config.retired import Retired, retired
from adrec.errors import did_you_mean


def describe(error: ValidationError, model: type[BaseModel], raw: Any) -> list[str]:
    """Every fault of `raw` against `model` once, a line each: dotted path, what is wrong, the fix."""
    lines: list[str] = []
    for fault in error.errors():
        if fault["type"] == "faults_below":  # told already by the model of another package
            path = ".".join(keys_of(fault["loc"], raw, also_last=False))
            lines += [f"{path}.{line}" for line in fault["ctx"]["lines"]]
        else:
            lines.append(_describe(fault, model, raw))
    return list(dict.fromkeys(_known_once([line.removeprefix(_WHOLE) for line in lines])))


_WHOLE = "(top): "
"""Place of a fault of several keys together, which the message names."""


def _known_once(lines: Sequence[str]) -> Iterator[str]:
    """The lines, each list of known keys in the first of them alone."""
    told: set[str] = set()
    for line in lines:
        head, known, names = line.partition(" Known keys: ")
        yield head if names in told else line
        told |= {names} if known else set()


def _describe(fault: Mapping[str, Any], model: type[BaseModel], raw: Any) -> str:
    """One pydantic fault as `dotted.path: what is wrong. fix`."""
    location = list(fault["loc"])
    path = ".".join(keys_of(location, raw, also_last=fault["type"] == "missing")) or "(top)"
    if fault["type"] == "extra_forbidden":
        gone = retired_key(fault, model, raw)
        if gone is not None:
            return f"{path}: no longer a key. {gone.successor}"
        known = _keys_at(model, location[:-1], raw)
        hint = did_you_mean(str(location[-1]), known) or f" Known keys: {', '.join(sorted(known))}."
        return f"{path}: unknown key.{hint}"
    if fault["type"] == "missing":
        return f"{path}: required and missing."
    if fault["type"] == "union_tag_not_found":
        tag = fault["ctx"]["discriminator"].strip("'")
        return f"{path}.{tag}: required and missing. It says which other keys there are."
    message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    value, hint = fault.get("input"), ""
    if fault["type"] == "union_tag_invalid":
        path = ".".join([path, fault["ctx"]["discriminator"].strip("'")])
        value, message = fault["ctx"]["tag"], f"input should be {fault['ctx']['expected_tags']}"
    if isinstance(value, str):
        hint = did_you_mean(value, _choices(fault))
    is_said = repr(value) in message or (_is_section(value) and (not location or len(str(value)) > 60))
    shown = "" if is_said else f", found {_short(repr(value))}"
    stop = "" if message.endswith(("?", ".")) else "."
    return f"{path}: {message[:1].lower()}{message[1:]}{shown}{stop}{hint}"


def _choices(fault: Mapping[str, Any]) -> list[str]:
    """What might have been written instead."""
    if fault["type"].startswith("bool"):
        return ["true", "false"]
    context = fault.get("ctx", {})
    return re.findall("'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))


def _is_section(value: Any) -> bool:
    return isinstance(value, dict | list)


def retired_key(fault: Mapping[str, Any], model: type[BaseModel], raw: Any) -> Retired | None:
    """What became of the key that a fault calls unknown; None where it has never been one, or the fault is another."""
    if fault["type"] != "extra_forbidden":
        return None
    *parents, key = fault["loc"]
    return next((gone for owner in _models_at(model, parents, raw) if (gone := retired(owner, str(key)))), None)


def keys_of(location: Sequence[str | int], raw: Any, *, also_last: bool) -> list[str]:
    """The parts of a pydantic location that the user wrote as keys or list items; the others name branches of a union."""
    kept: list[str] = []
    for number, key in enumerate(location):
        is_key = (isinstance(raw, dict) and key in raw) or (isinstance(raw, list) and isinstance(key, int))
        if is_key:
            raw = raw[key]
        if is_key or (also_last and number == len(location) - 1):
            kept.append(str(key))
    return kept


def _keys_at(model: type[BaseModel], location: Sequence[str | int], raw: Any) -> list[str]:
    """Field names allowed at a location."""
    return sorted({name for owner in _models_at(model, location, raw) for name in owner.model_fields})


def _models_at(model: type[BaseModel], location: Sequence[str | int], raw: Any) -> list[type[BaseModel]]:
    """The sections that may stand at a location, walking nested models, lists, dicts and unions.

    What `raw` does not have is no key but the branch of a union, even where a key is called like it.
    """
    candidates: list[Any] = [model]
    for key in location:
        reached: list[Any] = []
        is_key = (isinstance(raw, dict) and key in raw) or (isinstance(raw, list) and isinstance(key, int))
        for candidate in candidates if is_key else ():
            for option in models_in(candidate):
                field = option.model_fields.get(str(key))
                if field is not None:
                    reached.append(field.annotation)
        raw = raw[key] if is_key else raw
        if not reached:  # the branch of a union narrows it; list indices and dict keys do not change which models may follow
            options = [option for candidate in candidates for option in models_in(candidate)]
            reached = [option for option in options if _is_branch(option, key)]
        candidates = reached or candidates
    return [option for candidate in candidates for option in models_in(candidate)]


def _is_branch(model: type[BaseModel], tag: str | int) -> bool:
    """Whether `tag` names this model among the branches of a union (its `kind` or `format`)."""
    return any(tag in getattr(field.annotation, "__args__", ()) for field in model.model_fields.values())


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field's annotation allows, in unions, lists and dicts too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for argument in getattr(annotation, "__args__", ()):
        found.extend(models_in(argument))
    return found


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
