"""A command of the table → a command of Typer, with options made from its config class: built when it is called, for the config
classes are slow to import.
"""

import importlib
import inspect
import re
import types
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import typer
from typer.main import get_command_from_info
from typer.models import CommandInfo

from adrec.cli.options import SHARED, run_stage
from adrec.commands import Command, Option

_COMMON = (
    Option("bundle"),
    Option("trusted_keys", "--trusted-key"),
    Option("output"),
    Option("seed"),
    Option("device"),
    Option("cluster", keys=("cluster.address",), metavar="local|auto|ADDRESS"),
)
"""Options of every command whose config has the setting."""
_SHORT = {"output": ("-o",)}


class _Parameter(NamedTuple):
    name: str
    kind: Any
    keys: tuple[str, ...]
    """the settings that its value is, or its values are"""


def built(command: Command, name: str) -> Any:
    """The Click command `name` of the table's `command`."""
    module, class_name = command.config.split(":")
    model: Any = getattr(importlib.import_module(f"adrec.config.{module}"), class_name)
    parameters = list(_parameters(command, model))
    names = [*SHARED, *(parameter.name for parameter in parameters)]

    def callback(**values: Any) -> None:
        options = dict.fromkeys(key for parameter in parameters for key in parameter.keys)
        for parameter in parameters:
            value = values[parameter.name]
            if value is not None and value != []:
                options.update(zip(parameter.keys, value if len(parameter.keys) > 1 else [value], strict=True))
        run_stage(command, **{shared: values[shared] for shared in SHARED}, options=options)

    kinds = {**SHARED, **{parameter.name: parameter.kind for parameter in parameters}}
    keyword = inspect.Parameter.KEYWORD_ONLY
    defaults = {shared: False if get_args(kind)[0] is bool else None for shared, kind in SHARED.items()}
    callback.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name_, keyword, default=defaults.get(name_), annotation=kinds[name_]) for name_ in names]
    )
    callback.__annotations__ = kinds
    info = CommandInfo(name=name, callback=callback, help=help_of(command, name), rich_help_panel=command.panel)
    return get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode="rich")


def help_of(command: Command, name: str) -> str:
    """What Typer is given as help: brackets are words here (`columns=[arm]`), not Rich's markup."""
    text = f"The same as {command.name}." if name == command.alias else command.help
    return text.replace("[", "\\[")


def _parameters(command: Command, model: Any) -> Any:
    if command.argument is not None:
        field = model.model_fields[command.argument]
        yield _Parameter(
            command.argument,
            Annotated[_typed(field.annotation), typer.Argument(help=_said(field), show_default=False)],
            (command.argument,),
        )
    common = [option for option in _COMMON if option.field in model.model_fields and option.field != command.argument]
    for option in (*common, *command.own_options):
        field = model.model_fields[option.field]
        flags = [option.flag] if option.flag else [f"--{option.field.replace('_', '-')}", *_SHORT.get(option.field, ())]
        kind = _typed(field.annotation)
        if len(option.keys) > 1:
            kind = tuple[(str,) * len(option.keys)] | None  # type: ignore[misc]
        metavar = option.metavar or ("|".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else None)
        shown = typer.Option(*flags, help=_said(field), metavar=metavar, show_default=False, hidden=option.is_hidden)
        name = flags[0].strip("-").replace("-", "_")  # one a function may have: not `global`
        yield _Parameter(f"{name}_" if iskeyword(name) else name, Annotated[kind, shown], option.keys or (option.field,))


def _typed(annotation: Any) -> Any:
    """What Typer reads for a setting: paths, numbers, switches and words, or several of them; None where nothing is given."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _typed(inside[0])
    if origin in (Union, types.UnionType):
        return _typed(next(kind for kind in inside if kind is not type(None)))
    if origin is list:
        return list[get_args(_typed(inside[0]))[0]] | None  # type: ignore[misc]
    if origin is Literal:
        return str | None
    return (annotation if annotation in (bool, int, float, Path) else str) | None


def _said(field: Any) -> str:
    """The first sentence of what the config says of a setting."""
    text = " ".join((field.description or "").split())
    return re.split(r"(?<=\.) ", text, maxsplit=1)[0].replace("[", "\\[")
