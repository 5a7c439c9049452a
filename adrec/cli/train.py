"""Commands that train: pretrain-mlm (alias pretrain), pretrain-graph, finetune, federate, distill, tune."""

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

PANEL = "Train"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the app."""
    app.command("pretrain-mlm", rich_help_panel=PANEL)(pretrain)
    app.command("pretrain", rich_help_panel=PANEL, help="The same as pretrain-mlm.")(pretrain)
    app.command("pretrain-graph", rich_help_panel=PANEL)(pretrain_graph)
    app.command("distill", rich_help_panel=PANEL)(distill)
    app.command("finetune", rich_help_panel=PANEL)(finetune)
    app.command("federate", rich_help_panel=PANEL)(federate)
    app.command("tune", rich_help_panel=PANEL)(tune)


def pretrain(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    device: DeviceOption = None,
    output: OutputOption = None,
) -> None:
    """Teach a text encoder the language of your own ads, interests and queries.

    Reads the corpus and the tokenizer of a prepared folder. Writes an encoder folder in Hugging Face's format, with
    held-out quality before and after in metrics.json and report.html. Interrupted, the same command goes on where it was.

    Example: adrec pretrain-mlm --config configs/sample/pretrain.yaml
    """
    run_stage(
        "training.pretrain", "training.pretrain:PretrainConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed, device=device,
        options={"output": output},
    )  # fmt: skip


def pretrain_graph(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    device: DeviceOption = None,
    output: OutputOption = None,
) -> None:
    """Learn vectors of the entities that ads are linked to: makers, places, genres.

    Reads the links of a prepared folder. Writes a folder of vectors for `features.ads.vectors` of preprocess, with how
    well links held out are foretold (filtered MRR and Hits@k).

    Example: adrec pretrain-graph --set prepared=runs/graph/prepared --set output=runs/graph/entities
    """
    run_stage(
        "training.pretrain_graph", "training.pretrain_graph:PretrainGraphConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed, device=device,
        options={"output": output},
    )  # fmt: skip


def distill(
    trusted_key: TrustedKeyOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    device: DeviceOption = None,
    bundle: BundleOption = None,
    output: OutputOption = None,
) -> None:
    """Train a text encoder of fewer layers that gives nearly the vectors of a larger one.

    Reads the corpus of a prepared folder, and an encoder (`teacher`) or a bundle (`bundle`). Writes a smaller encoder, or
    the bundle with the smaller encoder in it, and how close and how much faster it is.

    Example: adrec distill --set prepared=runs/mind/prepared --set bundle=runs/mind/bundle --set output=runs/mind/small
    """
    run_stage(
        "training.distill", "training.distill:DistillConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed, device=device,
        options={"trusted_keys": trusted_key or None, "bundle": bundle, "output": output},
    )  # fmt: skip


def finetune(
    trusted_key: TrustedKeyOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    device: DeviceOption = None,
    output: OutputOption = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Train so many times, report mean and deviation.")] = None,
) -> None:
    """Train a click model, calibrate it, and compare it with every baseline.

    Reads a prepared folder and a text encoder. Writes a bundle: one folder with all that score, rank and serve need.
    Interrupted, the same command goes on where it was.

    Example: adrec finetune --config configs/sample/finetune.yaml
    """
    run_stage(
        "training.finetune", "training.finetune:FinetuneConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed, device=device,
        options={"trusted_keys": trusted_key or None, "output": output, "seeds": seeds},
    )  # fmt: skip


def tune(
    config: ConfigOption = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    device: DeviceOption = None,
    output: OutputOption = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Finished trials to reach.")] = None,
) -> None:
    """Search the settings of a finetune config for the best validation metric.

    Reads the finetune config named in `base`, and its prepared folder; test rows are never read. Writes a folder with
    best.yaml (a finetune config), trials.csv and report.html. Interrupted, the same command goes on where it was.

    Example: adrec tune --config configs/sample/tune.yaml --trials 20
    """
    run_stage(
        "training.tune", "training.tune:TuneConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed, device=device,
        options={"output": output, "trials": trials},
    )  # fmt: skip


def federate(
    config: ConfigOption = None,
    finetune: Annotated[
        Path | None, typer.Option("--finetune", help="Finetune config of the clients.", show_default=False)
    ] = None,
    output: OutputOption = None,
    clients: Annotated[
        str | None, typer.Option("--clients", help="`user`, or a column whose values are silos.", show_default=False)
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Rounds of training.", show_default=False)] = None,
    overrides: SetOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    seed: SeedOption = None,
    device: DeviceOption = None,
) -> None:
    """Train a click model on logs that stay with their owners (a simulation in one process).

    Reads a finetune config and its prepared folder, deals the rows out to clients, and lets them train in rounds: the server
    sees sums under masks. Writes a bundle.

    Example: adrec federate --finetune configs/sample/finetune.yaml --clients scenario --rounds 3 --output runs/sample/federated
    """
    run_stage(
        "training.federate", "training.federate:FederateConfig",
        config=config, overrides=overrides, json_output=json_output, quiet=quiet, seed=seed, device=device,
        options={"finetune": finetune, "output": output, "clients": clients, "rounds": rounds},
    )  # fmt: skip
