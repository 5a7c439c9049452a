"""Commands that make data ready: sample, init, preprocess, inspect."""

from pathlib import Path
from typing import Annotated

import typer

from adrec.cli.options import (
    ClusterOption,
    ConfigOption,
    JsonOption,
    OutputOption,
    QuietOption,
    SeedOption,
    SetOption,
    TrustedKeyOption,
    run_stage,
)

PANEL = "Prepare"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    app.command("sample", rich_help_panel=PANEL)(sample)
    app.command("init", rich_help_panel=PANEL)(init)
    app.command("preprocess", rich_help_panel=PANEL)(preprocess)
    app.command("inspect", rich_help_panel=PANEL)(inspect)
    app.command("forget", rich_help_panel=PANEL)(forget)


def preprocess(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    cluster: ClusterOption = None,
    output: OutputOption = None,
) -> None:
    """Turn raw logs and ad copy into a prepared folder.

    Reads the CSV, TSV, JSONL or Parquet files named in the config. Writes the folder `output`: ads, users,
    impressions by split with point-in-time history and counters, fitted features, a tokenizer, manifest.json.

    Example: adrec preprocess --config configs/sample/preprocess.yaml
    """
    run_stage(
        "data.preprocess", "data.preprocess:PreprocessConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed,
        options={"output": output, "cluster.address": cluster},
    )  # fmt: skip


def sample(
    output: OutputOption = None,
    out: Annotated[Path | None, typer.Option("--out", hidden=True)] = None,
    impressions: Annotated[int | None, typer.Option("--impressions", help="Rows of the log.", show_default=False)] = None,
    pictures: Annotated[
        float | None, typer.Option("--pictures", help="Share of the ads with a picture.", show_default=False)
    ] = None,
    graph: Annotated[
        float | None, typer.Option("--graph", help="Share of the ads linked to their maker.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
) -> None:
    """Write the built-in sample: a seeded world of Chinese and English ads whose click probabilities are known.

    Reads nothing. Writes the folder `--output`: ads.parquet, users.parquet and impressions/part-*.parquet in the canonical
    layout, with the true click probability kept in a column that no model may read (docs/data/sample.md has the click model).

    Example: adrec sample --output data/sample --impressions 30000 --seed 42
    """
    run_stage(
        "data.sample", "data.sample:SampleConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed,
        options={"output": output or out, "impressions": impressions, "pictures": pictures, "graph": graph},
    )  # fmt: skip


def inspect(
    path: Annotated[Path | None, typer.Argument(help="Prepared folder, bundle or table.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page with plots.", show_default=False)] = None,
    against: Annotated[Path | None, typer.Option("--against", help="Compare with this later one.", show_default=False)] = None,
    rows: Annotated[int | None, typer.Option("--rows", help="Rows to show of each table.", show_default=False)] = None,
    trusted_key: TrustedKeyOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what is in a prepared folder, a bundle or any table: rows, types, missing values, days, texts, languages.

    Reads PATH: a folder that preprocess or finetune wrote, or CSV, TSV, JSONL or Parquet files. Writes nothing, but a page
    with plots where `--html` names one. With `--against` it says whether the two are identical, which columns differ, and
    what has drifted beyond chance: columns, labels, scores.

    Example: adrec inspect runs/sample/prepared --html page.html
    """
    run_stage(
        "data.inspect", "data.inspect:InspectConfig", argument="path",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet,
        options={"trusted_keys": trusted_key or None, "path": path, "html": html, "rows": rows, "against": against},
    )  # fmt: skip


def init(
    data: Annotated[list[Path] | None, typer.Argument(help="Your files and folders.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the configs.", show_default=False)] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Look at your own files, guess which column is what, and write a commented set of configs for them.

    Reads the first rows of the CSV, TSV, JSONL or Parquet files DATA (ads, users, impressions, or one wide table; folders
    of MIND, RecBole and Open Bandit are recognised). Writes the folder `--output`: a config for each command.

    Example: adrec init logs.csv ads.csv --output configs/mine
    """
    run_stage(
        "data.init", "data.init:InitConfig", argument="data",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet,
        options={"data": [str(path) for path in data] if data else None, "output": output},
    )  # fmt: skip


def forget(
    users: Annotated[list[str] | None, typer.Argument(help="User ids as your log writes them.", show_default=False)] = None,
    preprocess: Annotated[
        Path | None, typer.Option("--preprocess", help="Config of the preprocess that reads their log.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take people out of everything that adrec keeps of them, and say what cannot be taken out.

    Reads the preprocess config, whose `privacy.forgotten` names the file that remembers whom to leave out. Builds the prepared
    folder anew without them, empties the event store and the tables named in the config of them and the caches of what they
    wrote, then looks through it all for their ids. Bundles that know them are named: train them again.

    Example: adrec forget u17 u42 --preprocess configs/mine/preprocess.yaml
    """
    run_stage(
        "data.forget", "data.forget:ForgetConfig", argument="users",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet,
        options={"users": users or None, "preprocess": preprocess},
    )  # fmt: skip
