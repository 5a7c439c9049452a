"""Commands that apply a bundle: score, encode, rank."""

from typing import Annotated

import typer

from adrec.cli.options import (
    BundleOption,
    ClusterOption,
    ConfigOption,
    DeviceOption,
    JsonOption,
    OutputOption,
    QuietOption,
    SeedOption,
    SetOption,
    TrustedKeyOption,
    run_stage,
)

PANEL = "Apply"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    app.command("score", rich_help_panel=PANEL)(score)
    app.command("encode", rich_help_panel=PANEL)(encode)
    app.command("rank", rich_help_panel=PANEL)(rank)


def score(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    device: DeviceOption = None,
    cluster: ClusterOption = None,
    bundle: BundleOption = None,
    trusted_key: TrustedKeyOption = None,
    output: OutputOption = None,
) -> None:
    """Give click probabilities for any number of rows; labels are not needed, ads and users may be new.

    Reads a bundle, and a split of a prepared folder or your own files (CSV, TSV, lines of JSON, Parquet, `-` for standard
    input) in the columns of the log. Writes one file: the rows' own columns, logit, score, cold flags and baselines. Killed,
    the same command goes on with the parts that are missing; `workers` in the config shares the parts among processes and GPUs.

    Example: adrec score --config configs/sample/score.yaml
    """
    run_stage(
        "inference.score", "inference.score:ScoreConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, device=device,
        options={"bundle": bundle, "trusted_keys": trusted_key or None, "output": output, "cluster.address": cluster},
    )  # fmt: skip


def encode(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    device: DeviceOption = None,
    cluster: ClusterOption = None,
    bundle: BundleOption = None,
    trusted_key: TrustedKeyOption = None,
    output: OutputOption = None,
) -> None:
    """Write ad and user vectors for other systems: their dot product orders ads for a user.

    Reads a bundle, and ads and users of a prepared folder or of your own files. Writes a folder with ads.parquet,
    ads.npy and ads.ids.txt, and the same for users.

    Example: adrec encode --bundle runs/sample/bundle --set prepared=runs/sample/prepared --output runs/sample/vectors
    """
    run_stage(
        "inference.encode", "inference.encode:EncodeConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, device=device,
        options={"bundle": bundle, "trusted_keys": trusted_key or None, "output": output, "cluster.address": cluster},
    )  # fmt: skip


def rank(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    device: DeviceOption = None,
    cluster: ClusterOption = None,
    bundle: BundleOption = None,
    trusted_key: TrustedKeyOption = None,
    output: OutputOption = None,
    top_n: Annotated[int | None, typer.Option("--top-n", min=1, help="Ads per list.", show_default=False)] = None,
    policy: Annotated[str | None, typer.Option("--policy", help="Rank everything by this policy.", show_default=False)] = None,
    why: Annotated[
        tuple[str, str] | None,
        typer.Option("--why", metavar="USER AD", help="Tell why the ad did or did not reach the user.", show_default=False),
    ] = None,
) -> None:
    """Choose ads from the whole catalogue for every request: retrieve, score, auction, rules, variety, exploration.

    Reads a bundle, and a prepared folder or tables of ads, users and requests. Writes one Parquet file: the ads of each
    request in order, with score, value, price, propensity and a sentence why. Killed, the same command goes on.

    Example: adrec rank --config configs/sample/rank.yaml --top-n 10
    """
    user, ad = why if why is not None else (None, None)
    run_stage(
        "inference.rank", "inference.rank:RankConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed, device=device,
        options={
            "bundle": bundle, "trusted_keys": trusted_key or None, "output": output, "top_n": top_n, "policy": policy,
            "why.user": user, "why.ad": ad, "cluster.address": cluster,
        },
    )  # fmt: skip
