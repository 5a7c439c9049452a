"""Commands that judge results: evaluate, compare."""

from pathlib import Path
from typing import Annotated

import typer

from adrec.cli.options import ConfigOption, JsonOption, QuietOption, SeedOption, SetOption, run_stage

PANEL = "Judge"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    app.command("evaluate", rich_help_panel=PANEL)(evaluate)


def evaluate(
    scored: Annotated[
        Path | None, typer.Argument(help="SCORED or RANKED Parquet (file or folder).", show_default=False)
    ] = None,
    config: ConfigOption = None,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", help="Another SCORED table of the same rows; may be repeated.", show_default=False),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Impressions with the clicks, where the table lacks them.", show_default=False),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.", show_default=False)] = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
) -> None:
    """Judge scored or ranked rows by what happened: metrics with intervals, slices, alarms, a report.

    Reads the table that `adrec score` or `adrec rank` wrote; loads no model. Writes the folder `output`:
    metrics.json, report.html (opens without a network), config.yaml.

    Example: adrec evaluate runs/sample/scored.parquet --against runs/other/scored.parquet
    """
    run_stage(
        "evaluate", "evaluate:EvaluateConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed,
        options={
            "scored": scored, "output": output, "labels": labels,
            "against": [str(path.absolute()) for path in against] if against else None,
        },
    )  # fmt: skip
