"""Commands that make data ready: sample, init, preprocess, inspect."""

import typer

from adrec.cli.options import ConfigOption, DeviceOption, JsonOption, QuietOption, SeedOption, SetOption, run_stage

PANEL = "Prepare"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    app.command("preprocess", rich_help_panel=PANEL)(preprocess)


def preprocess(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    device: DeviceOption = None,
) -> None:
    """Turn raw logs and ad copy into a prepared folder.

    Reads the CSV, TSV, JSONL or Parquet files named in the config. Writes the folder `output`: ads, users,
    impressions by split with point-in-time history and counters, fitted features, a tokenizer, manifest.json.

    Example: adrec preprocess --config configs/sample/preprocess.yaml
    """
    run_stage(
        "preprocess", "preprocess:PreprocessConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed, device=device,
    )  # fmt: skip
