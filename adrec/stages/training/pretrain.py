"""pretrain-mlm: the prepared corpus in, a text encoder out."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from adrec.config.base import save_config
from adrec.config.training.pretrain import AutoencoderModel, ContinuedModel, PretrainConfig, ScratchModel
from adrec.data.device import resolve_device
from adrec.data.disk.outputs import ENCODER
from adrec.data.disk.writing import folder_aside
from adrec.data.prepared import Prepared, open_prepared
from adrec.data.text.corpus import Corpus, texts_of
from adrec.data.text.mixture import Mixture
from adrec.errors import ConfigError
from adrec.models.text.encoder_settings import read_settings
from adrec.models.text.language_model import LanguageModel, new_language_model, open_language_model
from adrec.models.text.text_encoder import TextEncoder
from adrec.specs import Pooling
from adrec.stages.training.pretraining.feeds import tokenised
from adrec.stages.training.pretraining.objectives import build_objectives, mlm_feed
from adrec.stages.training.pretraining.private import public_corpus, train_texts_privately, write_private_folder
from adrec.stages.training.pretraining.report import Neighbours, neighbours, write_report
from adrec.terminal import Terminal
from adrec.training.loop.stored import close_work
from adrec.training.loop.trainer import FitResult, fit, identity_of, open_work, total_batches, total_steps, work_folder
from adrec.training.mlm_module import JointFeed, PretrainModule
from adrec.training.objectives.mlm import MlmFeed, MlmScore, score_mlm, score_unigram

NEIGHBOUR_TEXTS = 5000  # the first ads of the corpus, among which neighbours are looked for
HELD_OUT_SEED = 20190524  # the masks of held-out texts are the same for every model


@dataclass(frozen=True)
class PretrainResult:
    """What pretraining did. `scores`: language (or `all`) -> before, after, unigram."""

    output: Path
    parameters: int
    new_parameters: int
    texts: int
    tokens: int
    scores: dict[str, dict[str, MlmScore]]
    run: FitResult
    neighbours: list[Neighbours]

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {
            "output": str(self.output),
            "parameters": self.parameters,
            "new_parameters": self.new_parameters,
            "texts": self.texts,
            "tokens": self.tokens,
            "held_out": {
                language: {name: score.as_dict() for name, score in scores.items()} for language, scores in self.scores.items()
            },
            "run": self.run.as_dict(),
            "neighbours": [item.as_dict() for item in self.neighbours],
        }

    def render(self) -> Iterable[RenderableType]:
        """Held-out quality by language, and where the encoder is."""
        table = Table(title="Held-out masked tokens")
        for column in ("language", "model", "tokens", "loss", "perplexity", "accuracy"):
            table.add_column(column, justify="left" if column in {"language", "model"} else "right")
        for language, scores in self.scores.items():
            for name, score in scores.items():
                figures = (f"{score.tokens:,}", f"{score.loss:.3f}", f"{score.perplexity:,.1f}", f"{score.accuracy:.3f}")
                table.add_row(language, name, *figures)
        yield table
        speed = f"{self.run.units_per_second:,.0f} tokens/s, {self.run.steps:,} steps in {self.run.seconds:,.0f} s"
        yield f"{self.parameters:,} parameters, {self.texts:,} texts, {self.tokens:,} tokens; {speed}"
        yield f"encoder: {self.output}"


def run(config: PretrainConfig, terminal: Terminal) -> Any:
    """Train what `config.model` names and write its folder. Raises AdrecError for bad input before any training."""
    prepared = open_prepared(config.prepared)
    if isinstance(config.model, AutoencoderModel):
        from adrec.stages.training.pretraining.autoencoder import run_autoencoder

        return run_autoencoder(config, prepared, terminal)
    if not isinstance(config.model, ScratchModel | ContinuedModel):
        from adrec.stages.training.pretraining.words import run_word_vectors

        return run_word_vectors(config, prepared, terminal)
    return _run_language_model(config, prepared, terminal)


def _run_language_model(config: PretrainConfig, prepared: Prepared, terminal: Terminal) -> PretrainResult:
    import torch

    device = resolve_device(config.device)
    work = work_folder(config.output)
    others = [open_prepared(path) for path in config.mixture.also] if config.mixture is not None else []
    temperature = config.mixture.temperature if config.mixture is not None else 1.0
    data = "+".join(folder.fingerprint for folder in (prepared, *others))
    open_work(work, identity_of(config, data), resume=config.training.resume)
    mixture = Mixture.open([prepared, *others], temperature=temperature, links=work / "mixture")
    torch.manual_seed(config.seed)
    model, tokenizer = _open_model(config, prepared)
    corpus = tokenised(mixture.path, tokenizer, config.batches, cache=work / "corpus", terminal=terminal)
    if config.privacy is not None:
        corpus = public_corpus(config, corpus, mixture.path, prepared)
    encoder = TextEncoder(
        backbone=model.backbone,
        tokenizer=tokenizer,
        dimension=model.dimension,
        pooling=_pooling(config),
        max_tokens=config.batches.max_tokens,
        template=prepared.manifest.get("text_template"),
        clicks_of=prepared.fingerprint if config.objectives.read_clicks else None,
    )
    ads = texts_of(mixture.path, np.flatnonzero(corpus.kind == "ad")[:NEIGHBOUR_TEXTS])
    with terminal.progress("measuring the start", unit="texts"):
        before = _held_out(config, model, corpus, mixture, tokenizer, device)
        vectors_before = neighbours(encoder, ads, device=device)
    ledger = None
    if config.privacy is None:
        result = _train(config, model, encoder, corpus, mixture, device=device, work=work, terminal=terminal)
    else:
        result, ledger = train_texts_privately(
            config, model, encoder, corpus, prepared, device=device, work=work, terminal=terminal
        )  # fmt: skip
    with terminal.progress("measuring the end", unit="texts"):
        after = _held_out(config, model, corpus, mixture, tokenizer, device)
        vectors_after = neighbours(encoder, ads, device=device)
    unigram = _unigram(config, model, corpus, mixture, tokenizer)
    outcome = PretrainResult(
        output=config.output,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        new_parameters=model.new_weights,
        texts=int(_learned(config, corpus).sum()),
        tokens=int(corpus.lengths[_learned(config, corpus)].sum()),
        scores={name: {"unigram": unigram[name], "before": before[name], "after": after[name]} for name in after},
        run=result,
        neighbours=[
            Neighbours(first.text, first.near, second.near) for first, second in zip(vectors_before, vectors_after, strict=True)
        ],
    )
    with folder_aside(config.output, ENCODER) as folder:
        model.cpu().save(folder, tokenizer)
        encoder.save_settings(folder)
        save_config(config, folder / "config.yaml")
        (folder / "metrics.json").write_text(json.dumps(outcome.as_dict(), ensure_ascii=False, indent=2), encoding="utf-8")
        write_report(folder / "report.html", config.output.name, outcome.as_dict(), result, config.language)
        for kept in ("logs", "profile"):
            if (work / kept).is_dir():
                shutil.copytree(work / kept, folder / kept)
        if ledger is not None:
            write_private_folder(folder, config, ledger)
    close_work(work, terminal)
    return outcome


def _train(
    config: PretrainConfig,
    model: LanguageModel,
    encoder: TextEncoder,
    corpus: Corpus,
    mixture: Mixture,
    *,
    device: str,
    work: Path,
    terminal: Terminal,
) -> FitResult:
    from adrec.training.loop.loader import BatchLoader

    settings = config.training
    objectives = build_objectives(config, model, encoder.pool, corpus, encoder.tokenizer, mixture)
    train_feed, valid_feed = JointFeed(objectives.train), JointFeed(objectives.valid)
    per_epoch = len(train_feed.plan(0))
    module = PretrainModule(
        model,
        objectives.modules,
        objectives.weights,
        training=settings,
        total_steps=total_steps(settings, per_epoch),
    )
    backbone = cast(Any, model.backbone)
    if settings.gradient_checkpointing:
        # Late releases of transformers 5 have another name for it, and early ones that name alone.
        (getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable)()
    if settings.compile:
        backbone.compile(dynamic=True)
    total = total_batches(settings, per_epoch)
    loader = BatchLoader(
        train_feed.plan,
        train_feed.collate,
        total=total,
        seed=config.seed,
        workers=settings.workers,
        pin_memory=device == "cuda",
    )
    valid = BatchLoader(valid_feed.plan, valid_feed.collate, seed=HELD_OUT_SEED)
    first = objectives.train[0]
    tokens_per_batch = first.tokens / per_epoch if isinstance(first, MlmFeed) else 1.0
    return fit(
        module,
        loader,
        valid,
        config=settings,
        seed=config.seed,
        device=device,
        work=work,
        terminal=terminal,
        description="pretraining",
        total_units=tokens_per_batch * total,
        unit="tokens" if isinstance(first, MlmFeed) else "batches",
        units_of=_real_tokens if isinstance(first, MlmFeed) else lambda batch: 1,
    )


def _held_out(
    config: PretrainConfig, model: LanguageModel, corpus: Corpus, mixture: Mixture, tokenizer: Any, device: str
) -> dict[str, MlmScore]:
    return {
        name: score_mlm(model, mlm_feed(config, corpus, tokenizer, rows, shuffle=False), device=device, seed=HELD_OUT_SEED)
        for name, rows in _held_out_rows(config, corpus, mixture).items()
    }


def _unigram(
    config: PretrainConfig, model: LanguageModel, corpus: Corpus, mixture: Mixture, tokenizer: Any
) -> dict[str, MlmScore]:
    train = mlm_feed(config, corpus, tokenizer, np.flatnonzero(~corpus.held_out), shuffle=False)
    return {
        name: score_unigram(
            train,
            mlm_feed(config, corpus, tokenizer, rows, shuffle=False),
            vocabulary=model.config.vocab_size,
            seed=HELD_OUT_SEED,
        )
        for name, rows in _held_out_rows(config, corpus, mixture).items()
    }


def _learned(config: PretrainConfig, corpus: Corpus) -> np.ndarray:
    """(N,) texts that figures may be of: all, or those of ads where what users wrote is private."""
    return np.ones(len(corpus), bool) if config.privacy is None else np.asarray(corpus.kind == "ad")


def _held_out_rows(config: PretrainConfig, corpus: Corpus, mixture: Mixture) -> dict[str, np.ndarray]:
    """`all`, each language and each market of several -> held-out texts that have something to mask."""
    usable = corpus.held_out & (corpus.lengths > 2) & _learned(config, corpus)
    rows = {"all": np.flatnonzero(usable)}
    for language in sorted(set(corpus.language[usable])):
        rows[str(language)] = np.flatnonzero(usable & (corpus.language == language))
    for name, texts in mixture.markets.items():
        rows[name] = texts.start + np.flatnonzero(usable[texts])
    return rows


def _open_model(config: PretrainConfig, prepared: Prepared) -> tuple[LanguageModel, Any]:
    from adrec.models.text.hugging_face import load_tokenizer, resolve_reference

    if isinstance(config.model, ContinuedModel):
        tokenizer = load_tokenizer(resolve_reference(config.model.reference))
        return open_language_model(config.model.reference, tokenizer, max_tokens=config.batches.max_tokens), tokenizer
    assert isinstance(config.model, ScratchModel)
    tokenizer = load_tokenizer(prepared.path / "tokenizer")
    model = new_language_model(config.model.size, tokenizer, max_tokens=config.batches.max_tokens, dropout=config.model.dropout)
    return model, tokenizer


def _pooling(config: PretrainConfig) -> str:
    from adrec.models.text.hugging_face import resolve_reference

    if config.pooling is not None:
        return config.pooling
    if not isinstance(config.model, ContinuedModel):
        return "mean"
    settings = read_settings(resolve_reference(config.model.reference)).settings
    recorded = str(settings.get("pooling", "mean"))
    if recorded not in get_args(Pooling) or any(step["kind"] == "dense" for step in settings.get("above", ())):
        raise ConfigError(
            f"{config.model.reference}: has {recorded} pooling or layers above it, which pretraining would leave behind. Give "
            f"the encoder to finetune as it is, or set `pooling` to one of {', '.join(get_args(Pooling))} to drop them."
        )
    return recorded


def _real_tokens(batch: tuple[Any, ...]) -> int:
    return int(batch[0].real)
