"""The list that `adrec --help` prints, commands by panel in plain text, and one line for a wrong command line.

Typer's own rich help imports Markdown and syntax colouring, which takes longer than everything else together
(benchmarks/startup.py measures it); the help of a single command still uses it.
"""

import re
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from adrec.commands import COMMANDS, command_named
from adrec.errors import visible

_WrongUsage: Any = typer.BadParameter.__mro__[1]
"""Typer's base of every fault of the command line itself; Typer gives it no public name."""


class CommandList(TyperGroup):
    """A group whose help needs nothing that is slow to import."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run, and exit: 2 with one line where the command line is wrong."""
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except _WrongUsage as error:
            context = getattr(error, "ctx", None)
            path = context.command_path if context is not None else "adrec"
            message = _named_config(error.format_message(), path)
            stop = "" if message.endswith((".", "?")) else "."
            typer.echo(visible(f"error: {message}{stop} See '{path} --help'."), err=True)
            sys.exit(2)
        sys.exit(code if isinstance(code, int) else 0)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Print the help where nothing was asked for (Typer's own way goes through its rich help); exit code 2."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            ctx.exit(2)
        return list(super().parse_args(ctx, args))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, what adrec is, the commands by panel, the options."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        panels: dict[str, list[tuple[str, Any]]] = {}
        for name, command in self.commands.items():
            if not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, command))
        longest = max((len(name) for rows in panels.values() for name, _ in rows), default=0)
        for panel, rows in panels.items():
            with formatter.section(typer.style(panel, bold=True)):
                formatter.write_dl([(name.ljust(longest), _first_line(command)) for name, command in rows])
        with formatter.section(typer.style("Options", bold=True)):
            formatter.write_dl([row for param in self.get_params(ctx) if (row := param.get_help_record(ctx)) is not None])


class AllCommands(CommandList):
    """The commands of the table, each built when it is called: until then there are its name and what it is for."""

    def __init__(self, **attributes: Any) -> None:
        """As Typer makes it."""
        super().__init__(**attributes)
        rest = dict(self.commands)
        self.commands.clear()
        for command in COMMANDS:
            for name in filter(None, (command.name, command.alias)):
                text = f"The same as {command.name}." if name == command.alias else command.help
                self.commands[name] = TyperCommand(name, help=text, rich_help_panel=command.panel)
        self.commands.update(rest)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command with all its options."""
        command = command_named(cmd_name)
        if command is None:
            return super().get_command(ctx, cmd_name)
        from adrec.cli.building import built

        return built(command, cmd_name)


def _named_config(message: str, path: str) -> str:
    """The message; where a config was given without its option, how to give it."""
    extra = re.fullmatch(r"Got unexpected extra argument\(s\) \((\S+\.ya?ml)\b.*\)", message)
    return f"a config is given by name: {path} --config {extra[1]}." if extra else message


def _first_line(command: Any) -> str:
    return (command.help or "").strip().split("\n", 1)[0]
