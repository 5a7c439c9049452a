"""What a private training writes: the bundle, a line of the ledger for each of its files, and figures for the owner's eyes."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adrec.bundle import CARD, save_bundle
from adrec.config.training.finetune import FinetuneConfig
from adrec.inference.click_model import ClickModel
from adrec.inference.held_out import HeldOut
from adrec.inference.packing import pack
from adrec.privacy.ledger import KEY, Ledger, Line
from adrec.privacy.noise import Noise
from adrec.stages.training.finetune_result import FinetuneResult
from adrec.stages.training.finetuning.private_card import write_private_card
from adrec.terminal import Terminal
from adrec.training.click_data import ClickData
from adrec.training.ctr_training import Trained
from adrec.training.loop.stored import close_work


def lines_of_files(
    config: FinetuneConfig, packed: ClickModel, lacking: Sequence[str], *, is_counted: bool = False
) -> list[Line]:
    """A line for each file that holds nothing of a person, and for what is not there. `is_counted`: the encoder has another."""
    privacy = config.privacy
    assert privacy is not None
    named = sorted(set(privacy.public) - {"encoder", "metrics"})
    by_word = f"; declared public: {', '.join(named)}" if named else ""
    lines = [
        Line("config", "public", "what the owner wrote", ("config.yaml", "stop_words.txt", "user_dictionary.txt")),
        Line("form of the log", "public", "names and roles of columns, as the owner declared them", ("schema.json",)),
        Line("features", "public", f"of ads: the catalogue; hashes and fixed scales see no row{by_word}", ("features.json",)),
        Line("baselines", "public", "a list of none", ("baselines/baselines.json",)),
        Line("model card", "public", "says what stands in config and ledger", (CARD,)),
        Line("moment of the split, number of units", "public", "taken as known, as is usual", ()),
    ]
    if packed.encoder is not None and not is_counted:
        word = "declared public" if "encoder" in privacy.public else "made elsewhere, from other texts"
        lines.append(Line("text encoder", "public", word, ("encoder/",)))
    graph = ("tables/", "entity_vectors/")
    if packed.tables:
        lines.append(Line("what ads are linked to", "public", "the catalogue, and vectors learned from its links", graph))
    for reader in packed.media.values():
        lines.append(Line(reader.spec.FOLDER, "public", "made elsewhere", (f"{reader.spec.FOLDER}/",)))
    if privacy.counts:
        lines.append(Line("ids of ads", "public", "the catalogue", ("seen.parquet",)))
    else:
        lines.append(Line("ids of ads", "public", "the catalogue; how often they were shown is left out", ("seen.parquet",)))
    if "metrics" in privacy.public:
        lines.append(Line("validation figures", "public", "declared public", ("metrics.json",)))
    else:
        lines.append(Line("metrics.json", "public", "holds no figure", ("metrics.json",)))
        lines.append(Line("validation figures", "left out", "they are exact: shown to who trains"))
    if config.calibration == "none":
        lines.append(Line("calibration", "public", "none was fitted", ("calibration.json",)))
    gone = ["ids of users", "baselines, trees and hybrid", "golden requests", "shares of retrieval", "effects of slots",
            "fingerprint of the data", "last moment that was learned"]  # fmt: skip
    lines += [Line(name, "left out", "not needed to score") for name in gone]
    lines += [Line(f"column {name}", "left out", "counts other people") for name in lacking]
    return lines


def finish_privately(
    config: FinetuneConfig,
    data: ClickData,
    trained: Trained,
    packed: ClickModel,
    held_out: HeldOut,
    lines: Sequence[Line],
    randomness: Noise,
    *,
    work: Path,
    terminal: Terminal,
) -> FinetuneResult:
    """Write the bundle with a ledger of `lines`, and remove the work folder. The figures, of validation rows, are exact."""
    privacy = config.privacy
    assert privacy is not None
    ledger = Ledger(privacy.unit, privacy.epsilon, privacy.delta, privacy.accountant, randomness.is_secure, tuple(lines))
    stored = ledger.to_json()
    result = FinetuneResult(
        output=str(config.output),
        rows=data.rows,
        valid_rows=len(data.valid),
        seeds=[trained.seed],
        best_seed=trained.seed,
        epochs=trained.run.steps / trained.batches_per_epoch,
        seconds=trained.run.seconds,
        rows_per_second=trained.run.units_per_second,
        models=held_out.figures(packed),
        deviations={},
        calibration=packed.calibrations[data.tasks[0].name].method,
        privacy=stored,
    )
    write_private_bundle(config, packed, result.models, stored)
    close_work(work, terminal)
    return result


def write_private_bundle(
    config: FinetuneConfig, packed: ClickModel, models: Mapping[str, Mapping[str, float]], stored: Mapping[str, Any]
) -> None:
    """The bundle of `config`, with nothing that has no line in the `stored` ledger. `models`: figures on validation rows."""
    assert config.privacy is not None
    shown = "metrics" in config.privacy.public
    metrics: dict[str, Any] = {"split": "valid", "measured": "as shipped", "scores": "probability"}
    metrics["models"] = models if shown else {}
    with save_bundle(
        config.output,
        data_fingerprint=f"private-{secrets.token_hex(8)}",  # one that is computed would confirm a guess of the log
        learned_splits=["train"],
        learned_until=None,
        seed=config.seed,
        kind="click_model",
        **{KEY: stored},
    ) as folder:
        pack(folder, packed, metrics)
        write_private_card(folder, packed, stored, metrics, name=config.output.name)
