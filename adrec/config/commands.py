"""Which config belongs to which command: found by the names of the classes, so there is no list to keep."""

import importlib
import pkgutil
import re

import adrec.config
from adrec.config.base import StageConfig
from adrec.errors import UsageError

ALIASES = {"pretrain-mlm": "pretrain"}


def config_models() -> dict[str, type[StageConfig]]:
    """Command name -> its config class, sorted: `FinetuneConfig` of any module of adrec.config is that of `finetune`.

    A class that others extend is a common base, not a command's.
    """
    found: dict[str, type[StageConfig]] = {}
    for module_info in pkgutil.walk_packages(adrec.config.__path__, "adrec.config."):
        module = importlib.import_module(module_info.name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, StageConfig) and value is not StageConfig:
                found[command_of(value)] = value
    return {name: model for name, model in sorted(found.items()) if not model.__subclasses__()}


def command_of(model: type[StageConfig]) -> str:
    """The command whose config this class is."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", model.__name__.removesuffix("Config")).lower()


def config_model(command: str) -> type[StageConfig]:
    """The config class of one command. Raises UsageError with the known commands."""
    models = config_models()
    model = models.get(ALIASES.get(command, command))
    if model is None:
        raise UsageError(f"'{command}' has no config. Commands with one: {', '.join(models)}.")
    return model
