"""Commands for every day: daily, registry."""

from pathlib import Path
from typing import Annotated

import typer

from adrec.cli.options import ConfigOption, JsonOption, QuietOption, SeedOption, SetOption, TrustedKeyOption, run_stage

PANEL = "Every day"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    app.command("daily", rich_help_panel=PANEL)(daily)
    app.command("registry", rich_help_panel=PANEL)(registry)


def daily(
    trusted_key: TrustedKeyOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
) -> None:
    """Take in new files, train on from yesterday's bundle, judge it beside that one, and promote it or refuse it.

    Reads the configs of preprocess and finetune that it names. Writes the prepared folder, and the registry: a folder of
    bundles with their records, and `champion`, the one to serve. Exit code 0: promoted; 3: refused, yesterday's bundle stays;
    1: a fault. Killed anywhere, the same command finishes the work.

    Example: adrec daily --set preprocess=preprocess.yaml --set finetune=finetune.yaml --set registry=runs/registry
    """
    run_stage(
        "registry.daily", "training.daily:DailyConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed,
        options={"trusted_keys": trusted_key or None},
    )  # fmt: skip


def registry(
    path: Annotated[Path | None, typer.Argument(help="Folder that daily keeps.", show_default=False)] = None,
    promote: Annotated[str | None, typer.Option("--promote", help="Bundle to make the champion.", show_default=False)] = None,
    roll_back: Annotated[
        bool | None, typer.Option("--roll-back", help="Go back to the champion before.", show_default=False)
    ] = None,
    trusted_key: TrustedKeyOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the bundles of a registry and who is champion; promote one by hand, or roll back to the champion before.

    Reads the folder that `adrec daily` keeps. Writes which bundle its `champion` is, where asked to.

    Example: adrec registry runs/sample/registry --roll-back
    """
    run_stage(
        "registry.show", "training.daily:RegistryConfig", argument="path",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet,
        options={"trusted_keys": trusted_key or None, "path": path, "promote": promote, "roll_back": roll_back},
    )  # fmt: skip
