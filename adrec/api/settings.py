"""Python arguments as the config that the command line would have made of them."""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from adrec.config.base import StageConfig, load_config

ConfigT = TypeVar("ConfigT", bound=StageConfig)


def config_of(model: type[ConfigT], config: str | Path | Mapping[str, Any] | None, overrides: Mapping[str, Any]) -> ConfigT:
    """A config from a YAML file, a mapping or nothing, with overrides on top; `training__epochs` is `training.epochs`.

    Paths of the file are relative to it, others to the working folder. Raises ConfigError, a line a fault.
    """
    given = dict(config) if isinstance(config, Mapping) else {}
    path = None if config is None or isinstance(config, Mapping) else Path(config).expanduser()
    settings = {**given, **{key.replace("__", "."): value for key, value in overrides.items()}}
    return load_config(path, model, [f"{key}={_as_yaml(value)}" for key, value in settings.items()])


def _as_yaml(value: Any) -> str:
    """JSON is YAML; paths and moments are texts in both."""
    return json.dumps(value, default=_as_text, ensure_ascii=False)


def _as_text(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, date):  # datetime is one
        return value.isoformat()
    if hasattr(value, "item"):  # numbers of numpy
        return value.item()
    raise TypeError(f"{type(value).__name__} is no value of a config")
