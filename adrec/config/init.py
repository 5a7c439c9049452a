"""Config of `adrec init`: which files to look at, and where the configs go."""

from typing import Annotated

from pydantic import Field

from adrec.config.base import ConfigPath, StageConfig


class InitConfig(StageConfig):
    """Look at the user's own files and write a first set of configs for them."""

    data: Annotated[list[ConfigPath], Field(min_length=1)]
    """Files and folders: impressions, and ads and users where they are tables of their own."""
    output: ConfigPath
    """Folder of the configs; it must be new or empty."""
    runs: ConfigPath | None = None
    """Folder where the commands will write; None: `runs/<name of output>` in the working folder."""
