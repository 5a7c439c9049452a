"""Every command, in one table: the command line is built from it, outputs are guarded by it, docs and configs are named by it.

Plain text alone, so that `adrec --help` imports nothing slow.
"""

from adrec.commands import apply, every_day, judge, prepare, ship, system, train
from adrec.commands.table import Command, Option

__all__ = ["COMMANDS", "Command", "Option", "command_named"]

COMMANDS: tuple[Command, ...] = tuple(
    command for room in (prepare, train, apply, judge, ship, every_day, system) for command in room.COMMANDS
)


def command_named(name: str) -> Command | None:
    """The command of a name or another name of it; None where there is none."""
    return next((command for command in COMMANDS if name in (command.name, command.alias)), None)
