"""`adrec config`: the schema of a command's config, and what a file comes to."""

from typing import Annotated

import typer

from adrec.cli.listing import CommandList
from adrec.cli.options import (
    ConfigOption,
    JsonOption,
    SetOption,
    faults_shown,
)
from adrec.commands.system import PANEL

Command = Annotated[str, typer.Argument(help="The command whose config is meant, such as finetune.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    config = typer.Typer(cls=CommandList, help="Explain configs: the schema of a command's, or what a file comes to.")
    config.command("schema")(schema)
    config.command("show")(show)
    app.add_typer(config, name="config", rich_help_panel=PANEL)


def schema(command: Command) -> None:
    """Print the JSON schema of a command's config: every key, its type, range, default and meaning.

    Reads and writes nothing. Editors complete and check YAML by it.

    Example: adrec config schema finetune > finetune.schema.json
    """
    from adrec.terminal import Terminal

    terminal = Terminal()
    with faults_shown(terminal):
        from adrec.stages import config_schema

        terminal.show(config_schema.schema(command))


def show(command: Command, config: ConfigOption = None, overrides: SetOption = None, json_output: JsonOption = False) -> None:
    """Print a config as its command would see it: defaults filled in, paths resolved, overrides applied.

    Reads the config file. Writes nothing. Every fault is listed, and the exit code is then 1.

    Example: adrec config show finetune --config configs/sample/finetune.yaml --set training.epochs=2
    """
    from adrec.terminal import Terminal

    terminal = Terminal(json_output=json_output)
    with faults_shown(terminal):
        from adrec.stages import config_schema

        terminal.show(config_schema.show(command, config, overrides or ()))
