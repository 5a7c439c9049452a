"""`adrec config schema` and `adrec config show`: what a command's config may hold, and what a file comes to."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import RenderableType
from rich.text import Text

from adrec.config.base import load_config
from adrec.config.commands import config_model


@dataclass(frozen=True)
class Document:
    """Plain data that is shown as it stands. `text` is its form for people and pipes."""

    data: dict[str, Any]
    text: str

    def as_dict(self) -> dict[str, Any]:
        """The data."""
        return self.data

    def render(self) -> Iterable[RenderableType]:
        """The text, unstyled, so that it can be piped into a file."""
        yield Text(self.text)


def schema(command: str) -> Document:
    """The JSON schema (draft 2020-12) of a command's config. Raises UsageError for an unknown command."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **config_model(command).model_json_schema(),
    }
    return Document(document, json.dumps(document, ensure_ascii=False, indent=2))


def show(command: str, file: Path | None, overrides: Sequence[str]) -> Document:
    """The config as the command would see it: defaults filled in, paths absolute. Raises ConfigError, UsageError."""
    config = load_config(file, config_model(command), overrides)
    data = config.model_dump(mode="json")
    return Document(data, yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip())
