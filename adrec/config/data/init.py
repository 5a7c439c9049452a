"""Config of `adrec init`: which files to look at, what the user knows better, and where the configs go."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from adrec import schema
from adrec.config.base import ConfigPath, StageConfig
from adrec.errors import did_you_mean


class InitConfig(StageConfig):
    """Look at the user's own files and write a first set of configs for them."""

    data: Annotated[list[ConfigPath], Field(min_length=1)]
    """Files and folders: impressions, and ads, users, clicks where they are tables of their own."""
    output: ConfigPath = Path("configs/mine")
    """Folder of the configs; it must be new or empty."""
    runs: ConfigPath | None = None
    """Folder where the commands will write; None: `runs/<name of output>` in the working folder."""
    columns: dict[str, str | Annotated[list[str], Field(min_length=1)] | None] = {}
    """What you know better: canonical name -> your column, or several that are joined (`columns.ad_id=adgroup_id`); null: none
    of them."""

    @field_validator("columns")
    @classmethod
    def _canonical(cls, columns: dict[str, str | list[str] | None]) -> dict[str, str | list[str] | None]:
        known = sorted({name for spec in schema.TABLES for name in spec.names} - {schema.KNOWN_FROM})
        for name in columns:
            if name not in known:
                near = did_you_mean(name, known)
                raise ValueError(f"{name!r} is no column of adrec.{near} It is `ours=yours`, and ours are {', '.join(known)}")
        return columns
