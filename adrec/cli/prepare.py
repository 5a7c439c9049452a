"""Commands that make data ready: sample, init, preprocess, inspect."""

from pathlib import Path
from typing import Annotated

import typer

from adrec.cli.options import ConfigOption, DeviceOption, JsonOption, QuietOption, SeedOption, SetOption, run_stage

PANEL = "Prepare"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    app.command("sample", rich_help_panel=PANEL)(sample)
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


def sample(
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write.", show_default=False)] = None,
    impressions: Annotated[int | None, typer.Option("--impressions", help="Rows of the log.", show_default=False)] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    device: DeviceOption = None,
) -> None:
    """Write the built-in sample: a seeded world of Chinese and English ads whose click probabilities are known.

    Reads nothing. Writes the folder `--out`: ads.parquet, users.parquet and impressions/part-*.parquet in the canonical
    layout, with the true click probability kept in a column that no model may read (docs/sample.md has the click model).

    Example: adrec sample --out data/sample --impressions 30000 --seed 42
    """
    run_stage(
        "sample", "sample:SampleConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed, device=device,
        options={"out": out, "impressions": impressions},
    )  # fmt: skip
