"""The `adrec` command: every command of the table, and `config`."""

import io
import os
import sys
from typing import Annotated

import typer

from adrec import __version__
from adrec.cli import system
from adrec.cli.listing import AllCommands

app = typer.Typer(
    name="adrec",
    cls=AllCommands,
    help="The whole life of a language-model ad recommender: raw logs in, calibrated click probabilities and ranked ads out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"adrec {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


system.register(app)


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are about choices of ours
    if isinstance(sys.stdout, io.TextIOWrapper):  # a letter that the terminal lacks is no reason to fail
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            app(prog_name="adrec")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
