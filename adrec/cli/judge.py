"""Commands that judge results: evaluate, compare, audit."""

from pathlib import Path
from typing import Annotated

import typer

from adrec.cli.options import (
    ClusterOption,
    ConfigOption,
    DeviceOption,
    JsonOption,
    OutputOption,
    QuietOption,
    SeedOption,
    SetOption,
    run_stage,
)

PANEL = "Judge"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    app.command("evaluate", rich_help_panel=PANEL)(evaluate)
    app.command("compare", rich_help_panel=PANEL)(compare)
    app.command("audit", rich_help_panel=PANEL)(audit)


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
    cluster: ClusterOption = None,
) -> None:
    """Judge scored or ranked rows by what happened: metrics with intervals, slices, alarms, a report.

    Reads the table that `adrec score` or `adrec rank` wrote; loads no model. Writes the folder `output`:
    metrics.json, report.html (opens without a network), config.yaml.

    Example: adrec evaluate runs/sample/scored.parquet --against runs/other/scored.parquet
    """
    run_stage(
        "evaluation.evaluate", "evaluation.evaluate:EvaluateConfig", argument="scored",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed,
        options={
            "scored": scored, "output": output, "labels": labels,
            "against": [str(path) for path in against] if against else None, "cluster.address": cluster,
        },
    )  # fmt: skip


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Evaluation or bundle folders, or a folder with runs below it.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="A column; may be repeated.", show_default=False)
    ] = None,
    sort: Annotated[str | None, typer.Option("--sort", help="Metric to sort by, best first.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option("--task", help="Which label, such as click.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page.", show_default=False)] = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put runs side by side, best first, with the settings in which they differ.

    Reads the metrics.json that `adrec evaluate` or `adrec finetune` wrote. Writes nothing unless `--output` or `--html` names a
    file. For a paired test of two runs on the same rows, use `adrec evaluate A --against B`.

    Example: adrec compare runs/
    """
    run_stage(
        "evaluation.compare", "evaluation.compare:CompareConfig", argument="runs",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet,
        options={
            "runs": [str(path) for path in runs] if runs else None,
            "metrics": metrics or None, "sort": sort, "task": task, "output": output, "html": html,
        },
    )  # fmt: skip


def audit(
    config: ConfigOption = None,
    finetune: Annotated[
        Path | None, typer.Option("--finetune", help="Finetune config whose training is attacked.", show_default=False)
    ] = None,
    output: OutputOption = None,
    models: Annotated[int | None, typer.Option("--models", min=2, help="Trainings, each on half of the users.")] = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    device: DeviceOption = None,
) -> None:
    """Attack a training: who was in it, and which planted secrets does it know?

    Reads a finetune config (or a pretrain config in `canaries`) and its prepared folder, trains it several times on random
    halves of the users, and asks each model whom it has seen. Writes a JSON file, with the epsilon that the attack proves
    beside the one that is claimed. Interrupted, the same command goes on after the last model.

    Example: adrec audit --finetune configs/sample/finetune-private.yaml --output runs/sample/audit.json
    """
    run_stage(
        "evaluation.audit", "evaluation.audit:AuditConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed, device=device,
        options={"finetune": finetune, "output": output, "models": models},
    )  # fmt: skip
