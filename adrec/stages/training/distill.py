"""distill: a smaller, faster encoder that gives nearly the same vectors, alone or inside a bundle."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from torch import nn

from adrec.bundle import open_trusted
from adrec.config.base import save_config
from adrec.config.training.distill import DistillConfig
from adrec.data.arrays import unit_rows
from adrec.data.device import resolve_device
from adrec.data.disk.outputs import ENCODER
from adrec.data.disk.writing import folder_aside
from adrec.data.prepared import Prepared, open_prepared
from adrec.data.text.corpus import texts_of
from adrec.data.text.vector_cache import cached_vectors
from adrec.errors import ConfigError, DataError
from adrec.inference.click_model import ClickModel
from adrec.models.text.language_model import LanguageModel, open_language_model
from adrec.models.text.sentence import Above
from adrec.models.text.student import make_student
from adrec.models.text.text_encoder import TextEncoder, encode_texts, load_text_encoder
from adrec.stages.training.pretraining.distill_bundle import (
    opened_to_teach,
    refuse_private,
    teach,
    validation_auc,
    write_bundle,
)
from adrec.stages.training.pretraining.distill_lists import ListsResult, distill_lists
from adrec.stages.training.pretraining.feeds import masked_feed, tokenised
from adrec.terminal import Terminal
from adrec.training.loop.loader import BatchLoader
from adrec.training.loop.stored import close_work
from adrec.training.loop.trainer import FitResult, fit, identity_of, open_work, total_batches, total_steps, work_folder
from adrec.training.mlm_module import JointFeed, PretrainModule
from adrec.training.objectives.distil import Distil, VectorDistil, VectorFeed

_SPEED_TEXTS = 2000


@dataclass(frozen=True)
class DistillResult:
    """How close and how much faster the student is. AUCs are of the bundle's validation rows, None without a bundle."""

    output: Path
    teacher_layers: int
    student_layers: int
    teacher_parameters: int
    student_parameters: int
    cosine: float
    """Mean cosine of the two vectors of held-out texts."""
    speedup: float
    """Texts a second of the student over the teacher's, median of three turns each."""
    teacher_auc: float | None
    student_auc: float | None
    run: FitResult

    @property
    def kept(self) -> float | None:
        """(student AUC - .5) / (teacher AUC - .5)."""
        if self.teacher_auc is None or self.student_auc is None:
            return None
        return (self.student_auc - 0.5) / (self.teacher_auc - 0.5)

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {**asdict(self), "output": str(self.output), "kept": self.kept, "run": self.run.as_dict()}

    def render(self) -> Iterable[RenderableType]:
        """Teacher beside student."""
        table = Table(title="Distillation")
        for column in ("", "teacher", "student"):
            table.add_column(column, justify="left" if not column else "right")
        table.add_row("layers", str(self.teacher_layers), str(self.student_layers))
        table.add_row("parameters", f"{self.teacher_parameters:,}", f"{self.student_parameters:,}")
        table.add_row("speed", "1.00", f"{self.speedup:.2f}")
        table.add_row("cosine to the teacher", "1.000", f"{self.cosine:.3f}")
        if self.teacher_auc is not None and self.student_auc is not None:
            table.add_row("AUC, validation rows", f"{self.teacher_auc:.4f}", f"{self.student_auc:.4f}")
            table.add_row("share of (AUC - .5) kept", "", f"{self.kept:.1%}")
        yield table
        yield f"output: {self.output}"


def run(config: DistillConfig, terminal: Terminal) -> DistillResult | ListsResult:
    """Distil and write. Raises AdrecError for a teacher that cannot be distilled, before any training."""
    import torch

    prepared = open_prepared(config.prepared)
    if config.lists is not None:
        return distill_lists(config, config.lists, prepared, terminal)
    device = resolve_device(config.device)
    if config.bundle is not None:
        bundle = open_trusted(config.bundle, config.trusted_keys)
        refuse_private(bundle, "bundle")
        if config.click is not None:
            opened_to_teach(config, prepared, "click")  # which refuses: now rather than when the student is there
        if not (bundle.path / "encoder").is_dir():
            raise DataError(f"{config.bundle}: the bundle has no text encoder to distil.")
        reference = str(bundle.path / "encoder")
    else:
        reference = cast(str, config.teacher)
    original = load_text_encoder(reference)
    steps = original.above.steps
    plain = original.pooling in {"mean", "cls", "last"} and original.reading.width is None
    if not plain or any(step["kind"] != "normalize" for step in steps) or original.kind != "transformer":
        raise ConfigError(
            f"{reference}: only transformers with mean, cls or last pooling, whole vectors and no layers above it can be "
            "distilled."
        )
    original.above = Above()  # what is imitated is the vector before it gets unit length
    work = work_folder(config.output)
    open_work(work, identity_of(config, prepared.fingerprint), resume=config.training.resume)
    torch.manual_seed(config.seed)
    limit = min(config.batches.max_tokens, original.max_tokens)
    teacher = open_language_model(reference, original.tokenizer, max_tokens=limit)
    student = make_student(teacher, config.layers)
    judged = config.bundle is not None
    teacher_auc = validation_auc(cast(Path, config.bundle), config, prepared, terminal) if judged else None
    learned, held_out = _train(config, teacher, student, original, prepared, device=device, work=work, terminal=terminal)
    encoder = TextEncoder(
        backbone=student.backbone,
        tokenizer=original.tokenizer,
        dimension=original.parts[0],
        above=Above(steps),
        pooling=original.pooling,
        max_tokens=original.max_tokens,
        template=original.template,
        lexical=original.lexical.weight.detach() if original.lexical is not None else None,
    ).eval()
    with terminal.progress("comparing", unit="texts"):
        ours, theirs = (unit_rows(encode_texts(side, held_out, device=device)) for side in (encoder, original))
        cosines = (ours * theirs).sum(axis=1)
        speedup = _speedup(original, encoder, held_out, device)
    student.cpu()
    taught = teach(config, prepared, encoder, device=device, work=work, terminal=terminal) if config.click else None
    _write(config, prepared, student, encoder, teacher, taught)
    student_auc = validation_auc(config.output, config, prepared, terminal) if judged else None
    close_work(work, terminal)
    result = DistillResult(
        output=config.output,
        teacher_layers=int(teacher.config.num_hidden_layers),
        student_layers=int(student.config.num_hidden_layers),
        teacher_parameters=_parameters(original),
        student_parameters=_parameters(encoder),
        cosine=float(cosines.mean()),
        speedup=speedup,
        teacher_auc=teacher_auc,
        student_auc=student_auc,
        run=learned,
    )
    if config.bundle is None:
        text = json.dumps(result.as_dict(), ensure_ascii=False, indent=2)
        (config.output / "metrics.json").write_text(text, encoding="utf-8")
    return result


def _train(
    config: DistillConfig,
    teacher: LanguageModel,
    student: LanguageModel,
    original: TextEncoder,
    prepared: Prepared,
    *,
    device: str,
    work: Path,
    terminal: Terminal,
) -> tuple[FitResult, list[str]]:
    """Fit the student; also the held-out texts."""
    settings, batches, tokenizer = config.training, config.batches, original.tokenizer
    path = prepared.path / "corpus.parquet"
    corpus = tokenised(path, tokenizer, batches, cache=work / "corpus", terminal=terminal)
    usable = corpus.lengths > 2
    feeds = [
        masked_feed(
            corpus, np.flatnonzero(usable & (corpus.held_out == held)), tokenizer, batches, shuffle=not held, seed=config.seed
        )
        for held in (False, True)
    ]
    has_head = teacher.new_weights == 0
    if config.terms.soft and not has_head:
        raise ConfigError("terms.soft: the teacher has no trained masked-language-model head. Set it to 0 or null.")
    terms = config.terms
    soft = terms.soft if terms.soft is not None else 5.0 * has_head
    mlm = terms.mlm if terms.mlm is not None else 2.0 * has_head
    if soft or mlm or terms.cosine or original.lexical is not None:
        distil: nn.Module = Distil(
            teacher,
            pooling=original.pooling,
            soft=soft,
            mlm=mlm,
            cosine=terms.cosine,
            vector=terms.vector,
        )
        train, valid = JointFeed(feeds[:1]), JointFeed(feeds[1:])
    else:
        vectors = _teacher_vectors(original, texts_of(path, np.arange(len(corpus))), device, terminal)
        distil = VectorDistil(pooling=original.pooling, weight=terms.vector)
        train, valid = (JointFeed([VectorFeed(feed, vectors)]) for feed in feeds)
    per_epoch = len(train.plan(0))
    total = total_batches(settings, per_epoch)
    module = PretrainModule(
        student,
        [distil],
        [1.0],
        training=settings,
        total_steps=total_steps(settings, per_epoch),
    )
    result = fit(
        module,
        BatchLoader(train.plan, train.collate, total=total, seed=config.seed, workers=settings.workers),
        BatchLoader(valid.plan, valid.collate, seed=config.seed),
        config=settings,
        seed=config.seed,
        device=device,
        work=work,
        terminal=terminal,
        description="distilling",
        total_units=feeds[0].tokens / per_epoch * total,
        unit="tokens",
        units_of=lambda batch: int(batch[0].real),
    )
    return result, texts_of(path, feeds[1].rows[:_SPEED_TEXTS])


def _teacher_vectors(teacher: TextEncoder, texts: list[str], device: str, terminal: Terminal) -> np.ndarray:
    """Vectors of all texts, kept on disk like those of any frozen encoder."""
    with terminal.progress("the teacher reads", len(texts), unit="texts") as advance:
        return cached_vectors(
            texts,
            fingerprint=teacher.fingerprint,
            encode=lambda some: encode_texts(teacher, some, device=device, advance=advance),
        )


def _write(
    config: DistillConfig,
    prepared: Prepared,
    student: LanguageModel,
    encoder: TextEncoder,
    teacher: LanguageModel,
    taught: ClickModel | None,
) -> None:
    """An encoder folder, with the head where it is trained; or the teacher's bundle with the student in it."""
    if config.bundle is None:
        with folder_aside(config.output, ENCODER) as folder:
            if teacher.new_weights:
                encoder.save(folder)
            else:
                student.save(folder, encoder.tokenizer)
                encoder.save_settings(folder)
            save_config(config, folder / "config.yaml")
        return
    write_bundle(config, prepared, encoder, taught)


def _speedup(teacher: TextEncoder, student: TextEncoder, texts: list[str], device: str) -> float:
    """Median seconds of three turns each, teacher and student in rotation."""
    seconds: dict[str, list[float]] = {"teacher": [], "student": []}
    for _ in range(3):
        for name, encoder in (("teacher", teacher), ("student", student)):
            began = time.perf_counter()
            encode_texts(encoder, texts[:500], device=device)
            seconds[name].append(time.perf_counter() - began)
    return float(np.median(seconds["teacher"]) / np.median(seconds["student"]))


def _parameters(encoder: TextEncoder) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())
