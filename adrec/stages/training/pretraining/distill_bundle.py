"""distill with a bundle: the student takes the encoder's place, and may learn the click task from teacher and clicks."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from adrec.bundle import MANIFEST, Bundle, open_trusted, save_bundle, write_json
from adrec.config.training.distill import ClickTerms, DistillConfig
from adrec.data.examples import load_examples
from adrec.data.prepared import Prepared, ReadBy
from adrec.errors import ConfigError
from adrec.inference.click_model import ClickModel
from adrec.inference.golden import read_golden
from adrec.inference.held_out import HeldOut
from adrec.inference.packing import save_network, unpack
from adrec.inference.predictor import Predictor
from adrec.inference.score_source import PreparedSource
from adrec.metrics.classification import auc
from adrec.models.text.text_encoder import TextEncoder
from adrec.models.text.text_vectors import TextReader
from adrec.privacy.ledger import KEY as LEDGER
from adrec.stages.training.card import intervals, write_card
from adrec.terminal import Terminal
from adrec.training.click_data import load_click_data
from adrec.training.click_distillation import teach_clicks

JUDGE_ROWS = 100_000
"""Validation rows on which teacher and student are compared: AUC to about 0.003."""


def teach(
    config: DistillConfig, prepared: Prepared, encoder: TextEncoder, *, device: str, work: Path, terminal: Terminal
) -> ClickModel:
    """The bundle's click model over the student, trained on the clicks and the teacher's logits."""
    packed = opened_to_teach(config, prepared, "click")[1]
    prepared = ReadBy(prepared, packed.features)
    text, before = packed.config.text, cast(TextEncoder, packed.encoder)
    frozen = text.train == "frozen"
    readers = [
        TextReader(side, as_tokens=not frozen, device=device, batch_tokens=text.batch_tokens) for side in (before, encoder)
    ]
    splits = packed.config.learned_splits  # as the teacher: its own vectors of ads are numbered by what it learned from
    data = [load_click_data(packed.config, prepared, reader, terminal, splits=splits) for reader in readers]
    network, student, _ = teach_clicks(
        cast(ClickTerms, config.click),
        packed.config,
        teacher=packed.model,
        teacher_data=data[0],
        student=encoder,
        student_data=data[1],
        seed=config.seed,
        device=device,
        work=work / "clicks",
        terminal=terminal,
    )
    return replace(packed, model=network, encoder=student)


def opened_to_teach(config: DistillConfig, prepared: Prepared, term: str) -> tuple[Bundle, ClickModel]:
    """The config's bundle, whose network `term` trains on. Raises ConfigError where that would be on other rows than its own,
    without the noise that its privacy is made of, or on more rows than memory is to hold.
    """
    bundle = open_trusted(cast(Path, config.bundle), config.trusted_keys)
    if bundle.manifest.get("data_fingerprint") != prepared.fingerprint:
        raise ConfigError(f"{term}: {bundle.path} was trained on another prepared folder than {prepared.path}. Give that one.")
    refuse_private(bundle, term)
    packed = unpack(bundle)
    rows = sum(prepared.rows(split) for split in packed.config.learned_splits)
    if rows > packed.config.training.in_memory_rows:
        raise ConfigError(
            f"{term}: needs the training rows in memory, and {bundle.path} streamed its {rows:,}. Train it with "
            f"training.in_memory_rows of {rows:,} or more."
        )
    return bundle, packed


def refuse_private(bundle: Bundle, term: str) -> None:
    """Raises ConfigError for a bundle with a ledger: its copy would claim the same, and hold what learned without noise."""
    if bundle.manifest.get(LEDGER) is not None:
        raise ConfigError(
            f"{term}: {bundle.path} was trained under privacy, and this would learn its log's rows and texts without noise."
            " Train again, with a smaller text.reference."
        )


def write_bundle(config: DistillConfig, prepared: Prepared, encoder: TextEncoder | None, taught: ClickModel | None) -> None:
    """The bundle with the student in it, and with the network that was taught, if any; its figures are its own."""
    bundle = open_trusted(cast(Path, config.bundle), config.trusted_keys)
    facts = {key: value for key, value in bundle.manifest.items() if key not in {"format_version", "adrec_version", "files"}}
    with save_bundle(config.output, **{**facts, "distilled_from": bundle.fingerprint}) as folder:
        copy_all_but_encoder(bundle, folder)
        packed = taught or replace(unpack(bundle), encoder=encoder)
        if packed.model.text_encoder is not None:
            packed.model.text_encoder = packed.encoder
        if packed.encoder is not None:
            packed.encoder.save(folder / "encoder")
        save_network(folder, packed.model)
        figures = _own_figures(bundle.json("metrics.json"), packed, prepared)
        write_json(figures, folder / "metrics.json")
        write_card(folder, packed, figures, prepared, name=config.output.name)
        golden = read_golden(bundle)
        if golden is not None:  # their logits come from the new encoder now
            made = Predictor(packed).golden_scores(golden)
            golden.save(folder, made.logit, made.score)


def copy_all_but_encoder(bundle: Bundle, folder: Path) -> None:
    """The files of the bundle, to be sealed anew: without the seal and its signature, which are of the whole."""
    shutil.copytree(bundle.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("encoder", f"{MANIFEST}*"))


def _own_figures(teacher: dict[str, Any], packed: ClickModel, prepared: Prepared) -> dict[str, Any]:
    """The teacher's metrics.json with the student's validation metrics; the teacher's are kept under its name."""
    prepared, cut = ReadBy(prepared, packed.features), prepared.label_cut(("train", "valid"))
    labels = [task.name for task in packed.tasks]
    history = packed.config.model.user.max_history
    valid = load_examples(prepared, "valid", max_history=history, labels=labels, rows=JUDGE_ROWS, cut=cut)
    held_out = HeldOut(Predictor(packed), prepared, valid)
    figures = held_out.figures(packed)
    scores = {"adrec": held_out.scores(packed).score, **held_out.simple}
    around = {} if valid.weight is not None else intervals(scores, valid.labels[labels[0]], valid.request, valid.user_index)
    if prepared.is_implicit:
        figures = {name: {key: value for key, value in row.items() if key != "log_loss"} for name, row in figures.items()}
    same = ("split", "scores", "calibration", "baselines_left_out", "hybrid")
    kept: dict[str, Any] = {key: teacher[key] for key in same if key in teacher}
    measured = "on rows that the teacher had learned" if packed.config.refit else "as shipped"
    return {**kept, "measured": measured, "models": figures, "intervals": around, "teacher": teacher.get("models", {})}


def validation_auc(path: Path, config: DistillConfig, prepared: Prepared, terminal: Terminal) -> float:
    """AUC of a bundle on validation rows. Raises BundleError where it cannot be opened."""
    labels, logits, rows = [], [], 0
    with terminal.progress(f"scoring with {path.name}", unit="rows"):
        predictor = Predictor.load(path, device=config.device)
        source = PreparedSource(prepared, "valid", predictor, 65_536)
        for chunk in source.chunks(0):
            labels.append(chunk.examples.labels[predictor.packed.tasks[0].name])
            logits.append(predictor.score_examples(chunk.examples, source.catalogs, baselines=False).logit)
            rows += len(labels[-1])
            if rows >= JUDGE_ROWS:
                break
    label, logit = np.concatenate(labels), np.concatenate(logits)
    known = np.isfinite(label)
    return float(auc(label[known], logit[known]))
