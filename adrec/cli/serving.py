"""Commands that put a bundle to work: serve, explain, export."""

from pathlib import Path
from typing import Annotated

import typer

from adrec.cli.options import (
    BundleOption,
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

PANEL = "Ship"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    app.command("serve", rich_help_panel=PANEL)(serve)
    app.command("events", rich_help_panel=PANEL)(events)
    app.command("explain", rich_help_panel=PANEL)(explain)
    app.command("export", rich_help_panel=PANEL)(export)
    app.command("sign", rich_help_panel=PANEL)(sign)


def events(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    output: OutputOption = None,
    store: Annotated[Path | None, typer.Option("--store", help="SQLite file of the server.", show_default=False)] = None,
    redis: Annotated[str | None, typer.Option("--redis", help="Or the server's Redis.", show_default=False)] = None,
    keep_days: Annotated[
        float | None, typer.Option("--keep-days", help="Take older events away; their sums stay.", show_default=False)
    ] = None,
    erase_user: Annotated[
        str | None, typer.Option("--erase-user", help="Take away everything of a user.", show_default=False)
    ] = None,
    pseudonymise: Annotated[
        bool | None, typer.Option("--pseudonymise", help="Keep raw ids under pseudonyms.", show_default=False)
    ] = None,
    backup: Annotated[Path | None, typer.Option("--backup", help="Copy the store to this file.", show_default=False)] = None,
    restore: Annotated[
        Path | None, typer.Option("--restore", help="Fill an empty store from a backup.", show_default=False)
    ] = None,
) -> None:
    """Write the impressions that the server recorded, with their clicks, as a table for evaluate; or look after the store.

    Reads the event store of `adrec serve`. Writes SCORED Parquet: impressions whose events carried the request id, score,
    propensity and arm that the list gave. Arms are compared by `adrec evaluate --set slices.columns=[arm]`.

    The store is looked after with --keep-days, --erase-user, --pseudonymise, --backup and --restore, each with or without an
    output.

    Example: adrec events --store adrec-store.sqlite --output served.parquet
    """
    run_stage(
        "inference.events", "inference.serve:EventsConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet,
        options={
            "output": output, "store": store, "redis": redis, "keep_days": keep_days, "erase_user": erase_user,
            "pseudonymise": pseudonymise, "backup": backup, "restore": restore,
        },
    )  # fmt: skip


def explain(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    device: DeviceOption = None,
    bundle: BundleOption = None,
    trusted_key: TrustedKeyOption = None,
    output: OutputOption = None,
    user: Annotated[str | None, typer.Option("--user", help="Only rows of this user.", show_default=False)] = None,
    ad: Annotated[str | None, typer.Option("--ad", help="Only rows of this ad.", show_default=False)] = None,
    overall: Annotated[bool | None, typer.Option("--global", help="The model over many rows.", show_default=False)] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="Of sentences: en, zh or auto.", show_default=False)
    ] = None,
) -> None:
    """Say why rows got their scores: how interests, search and clicks match the ad, its words, features, and what would change.

    Reads a bundle, and a split of a prepared folder or Parquet tables of impressions, ads and users. Writes a folder with
    explanations.json and explanations.html. Contributions are log-odds and add up to the logit; beside each stands the score
    without it. With --global it writes importance.json instead: what the model loses without each input, which `adrec evaluate`
    draws in its report.

    Example: adrec explain --bundle runs/sample/bundle --set prepared=runs/sample/prepared --set split=test --output why
    """
    run_stage(
        "inference.explain", "inference.explain:ExplainConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed, device=device,
        options={
            "bundle": bundle, "trusted_keys": trusted_key or None, "output": output, "user_id": user, "ad_id": ad,
            "overall": overall, "language": language,
        },
    )  # fmt: skip


def export(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    bundle: BundleOption = None,
    trusted_key: TrustedKeyOption = None,
    output: OutputOption = None,
    int8: Annotated[bool | None, typer.Option("--int8", help="Also an int8 encoder.", show_default=False)] = None,
) -> None:
    """Write the bundle's encoder and scorer as ONNX files, and print how far they are from torch.

    Reads a bundle, and a split of a prepared folder or Parquet tables to compare on. Writes a folder with encoder.onnx,
    scorer.onnx, onnx.json. `adrec score --set onnx=FOLDER` then scores by onnxruntime.

    Example: adrec export --bundle runs/sample/bundle --set prepared=runs/sample/prepared --set split=test --output onnx
    """
    run_stage(
        "training.export", "training.export:ExportConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet,
        options={"bundle": bundle, "trusted_keys": trusted_key or None, "output": output, "int8": int8},
    )  # fmt: skip


def serve(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    device: DeviceOption = None,
    bundle: BundleOption = None,
    trusted_key: TrustedKeyOption = None,
    ads: Annotated[Path | None, typer.Option("--ads", help="Catalogue in the ADS layout.", show_default=False)] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on.", show_default=False)] = None,
) -> None:
    """Serve scores, lists and reasons over HTTP, and a page to try them.

    Reads a bundle, and a prepared folder or an ads table. Writes the event store: clicks, impressions, changed ads.
    OpenAPI at /docs, metrics at /metrics, the page at /.

    Example: adrec serve --config configs/sample/serve.yaml --port 8080
    """
    run_stage(
        "inference.serve", "inference.serve:ServeConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed, device=device,
        options={"bundle": bundle, "trusted_keys": trusted_key or None, "ads": ads, "host": host, "port": port},
    )  # fmt: skip


def sign(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    bundle: BundleOption = None,
    key: Annotated[Path | None, typer.Option("--key", help="Secret key (PEM, Ed25519).", show_default=False)] = None,
    make_key: Annotated[bool | None, typer.Option("--make-key", help="Make the key first.", show_default=False)] = None,
) -> None:
    """Sign a bundle, so that others can tell whose it is: commands given --trusted-key refuse any other.

    Reads a bundle and a secret key. Writes bundle.json.minisig into the bundle, in minisign's format (Ed25519), and with
    --make-key the key and its public half (.pub). Any change of the bundle ends the signature.

    Example: adrec sign --key release.key --make-key --bundle runs/sample/bundle
    """
    run_stage(
        "inference.sign", "inference.sign:SignConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet,
        options={"bundle": bundle, "key": key, "make_key": make_key},
    )  # fmt: skip
