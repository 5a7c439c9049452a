"""A folder of another format version is refused in one line that ends in the command that makes it again."""

import shlex
from pathlib import Path


def other_format(folder: Path, *, version: object, ours: int, command: str, config: Path | None) -> str:
    """Why `folder` is refused, and the cure: `command` with `config`, where that lies in the folder.

    A format of a later adrec needs that adrec: making the folder again would lose what it holds more.
    """
    if isinstance(version, int) and version > ours:
        return (
            f"{folder}: format {version} is of a later adrec, this one reads {ours}. Update it: `pip install --upgrade adrec`."
        )
    again = f"`{command}` with the config that made it"
    if config is not None and config.is_file():
        again = f"`{command} --config {shlex.quote(str(config))}`"
    return f"{folder}: format {version} is of an earlier adrec, this one reads {ours}. Make it again: {again}."
