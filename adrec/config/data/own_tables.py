"""Tables of the user's own that a bundle is applied to: a path alone, or a path with what is written otherwise there.

What is not said is what the log that the bundle learned from was written like: the bundle keeps its `source` section.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from adrec.config.base import StageConfig
from adrec.config.data.sources import TableInput

STANDARD_INPUT = "-"


class OwnFiles(TableInput):
    """Files and how they are written. Only what was set is kept: the rest is the bundle's to say."""

    model_config = ConfigDict(title="table")

    @model_serializer(mode="wrap")
    def _as_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}

    @property
    def is_standard_input(self) -> bool:
        """Whether the rows come through a pipe."""
        return self.files == STANDARD_INPUT

    @property
    def name(self) -> str:
        """For messages."""
        files = [self.files] if isinstance(self.files, str) else self.files
        return "standard input" if self.is_standard_input else files[0] if len(files) == 1 else f"{files[0]}, ..."


def _as_files(value: Any) -> Any:
    if value == [None]:  # what YAML takes an unquoted dash for
        value = STANDARD_INPUT
    return {"files": str(value) if isinstance(value, Path) else value} if isinstance(value, str | Path | list) else value


OwnTable = Annotated[OwnFiles, BeforeValidator(_as_files, json_schema_input_type=str | list[str] | OwnFiles)]
"""A file, folder, glob or list of them (CSV, TSV, lines of JSON, Parquet, plain or compressed), `-` for standard input; or
these as `files` beside the keys of a table of the preprocess config (`delimiter`, `time_format`, `columns`, ...), which go
before the bundle's."""


class OnOwnTables(StageConfig):
    """A command that applies a bundle to tables of the user's own."""

    columns: dict[str, str | list[str]] = {}
    """Canonical name -> name in the rows' (requests') files, where it is called otherwise than in the bundle's log."""
