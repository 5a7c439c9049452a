"""Which config belongs to which command, as the table of commands says."""

import importlib
from typing import cast

from adrec.commands import COMMANDS, Command, command_named
from adrec.config.base import StageConfig
from adrec.errors import UsageError


def config_models() -> dict[str, type[StageConfig]]:
    """Command name -> its config class, sorted."""
    return {command.key: _model(command) for command in sorted(COMMANDS, key=lambda command: command.key)}


def command_of(model: type[StageConfig]) -> str:
    """The command whose config this class is."""
    return next(command.key for command in COMMANDS if command.config.split(":")[1] == model.__name__)


def config_model(command: str) -> type[StageConfig]:
    """The config class of one command. Raises UsageError with the known commands."""
    found = command_named(command)
    if found is None:
        raise UsageError(f"'{command}' has no config. Commands with one: {', '.join(sorted(each.key for each in COMMANDS))}.")
    return _model(found)


def _model(command: Command) -> type[StageConfig]:
    module, name = command.config.split(":")
    return cast(type[StageConfig], getattr(importlib.import_module(f"adrec.config.{module}"), name))
