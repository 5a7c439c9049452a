"""`adrec finetune`: prepared folder + text encoder → bundle, with every baseline beside it."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table

from adrec.bundle import save_bundle
from adrec.config.finetune import FinetuneConfig
from adrec.data.device import resolve_device
from adrec.data.examples import Examples
from adrec.data.prepared import Prepared, open_prepared
from adrec.inference.golden import draw_golden
from adrec.inference.packing import ClickModel, pack, text_settings
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import log_loss
from adrec.models.baselines.base import Columns, Inputs
from adrec.models.baselines.declared import declared_columns
from adrec.models.baselines.suite import Suite, fit_all, score_all
from adrec.models.calibration import Calibration
from adrec.models.calibration import fit as fit_calibration
from adrec.models.encoder_training import merged, trainable_copy
from adrec.models.hybrid import Hybrid, fit_hybrid
from adrec.models.lexical import fit_lexical
from adrec.models.text_encoder import TextEncoder, load_text_encoder
from adrec.models.text_vectors import TextReader
from adrec.terminal import Terminal
from adrec.training.click_data import ClickData, Seen, load_click_data
from adrec.training.ctr_module import Raw, main_metrics
from adrec.training.ctr_training import Trained, ensemble, train_click_model
from adrec.training.trainer import work_folder

HEADLINE = ("auc", "auc_request", "mrr", "ndcg@5", "ndcg@10", "log_loss")


@dataclass(frozen=True)
class FinetuneResult:
    """What was trained, and how it and the baselines do on the validation rows."""

    output: str
    rows: int
    valid_rows: int
    seeds: list[int]
    best_seed: int
    epochs: float
    seconds: float
    rows_per_second: float
    models: dict[str, dict[str, float]]
    """name → validation metrics; `adrec` is the network, the others are baselines"""
    deviations: dict[str, float]
    """standard deviation over seeds of each of the network's metrics; empty with one seed"""
    calibration: str
    left_out: dict[str, str] = field(default_factory=dict)
    hybrid: str = "none"

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return vars(self)

    def render(self) -> Iterable[RenderableType]:
        """The validation table, and a line on the run."""
        table = Table(title=f"Validation, {self.valid_rows:,} rows", title_justify="left")
        table.add_column("model")
        for name in HEADLINE:
            table.add_column(name, justify="right")
        best = {name: _best(name, self.models.values()) for name in HEADLINE}
        for model, metrics in self.models.items():
            cells = [
                _cell(metrics.get(name), best[name], self.deviations.get(name) if model == "adrec" else None)
                for name in HEADLINE
            ]
            table.add_row(model, *cells)
        yield table
        extra = {name: value for name, value in self.models["adrec"].items() if name not in HEADLINE}
        if extra:
            yield "Other tasks: " + ", ".join(f"{name} {value:.4f}" for name, value in extra.items())
        yield (
            f"{self.rows:,} training rows, {self.epochs:.1f} epochs in {self.seconds:.0f} s"
            f" ({self.rows_per_second:,.0f} rows/s); calibration: {self.calibration}; hybrid: {self.hybrid}"
        )
        for name, reason in self.left_out.items():
            yield f"left out {name}: {reason}"
        yield f"bundle: {self.output}"


def run(config: FinetuneConfig, terminal: Terminal) -> FinetuneResult:
    """Train, calibrate, compare, and write the bundle. A killed run goes on from its last checkpoint."""
    prepared = open_prepared(config.prepared)
    device = resolve_device(config.device)
    encoder = open_text_encoder(config, prepared)
    reader = TextReader(
        encoder,
        as_tokens=config.text.train != "frozen",
        device=device,
        batch_tokens=config.text.batch_tokens,
        cache=config.text.cache,
    )
    data = load_click_data(config, prepared, reader, terminal)
    work = work_folder(config.output)
    runs = [
        train_click_model(
            config,
            data,
            seed=config.seed + number,
            work=work / f"seed{config.seed + number}",
            terminal=terminal,
            text_encoder=_trained_encoder(config, encoder),
            description="Training" if config.seeds == 1 else f"Training {number + 1}/{config.seeds}",
        )
        for number in range(config.seeds)
    ]
    valid = _inputs(config, data, data.valid)
    suite, simple = _baselines(config, data, valid, terminal)
    joined = [_join(config, run, suite, simple, valid) for run in runs]
    best = max(joined, key=lambda one: one.quality)
    if config.ensemble:
        best = _join(config, ensemble(runs), suite, simple, valid)
    calibrations = _calibrate(config, data, best)
    models = {"adrec": _own_metrics(best, calibrations, data)}
    if best.hybrid.kind != "none":
        models["network"] = _simple_metrics(best.trained.valid.logits[:, 0], False, data)
    models |= {name: _simple_metrics(score, suite.fitted[name].is_probability, data) for name, score in simple.items()}
    trained_encoder = best.trained.module.model.text_encoder
    packed = ClickModel(
        config=config,
        features=data.features,
        dimensions=data.dimensions,
        tasks=data.tasks,
        model=best.trained.module.model.cpu(),
        encoder=merged(cast(TextEncoder, trained_encoder)) if trained_encoder is not None else encoder,
        calibrations=calibrations,
        seen_ads=_seen_table(data.seen_ads),
        seen_users=_seen_table(data.seen_users),
        text=text_settings(prepared),
        baselines=suite.fitted,
        hybrid=best.hybrid,
    )
    deviations = _deviations(joined)
    metrics = {
        "split": "valid",
        "models": models,
        "seeds": {str(one.trained.seed): one.metrics for one in joined},
        "deviations": deviations,
        "training": best.trained.run.as_dict(),
        "calibration": {name: fitted.to_json() for name, fitted in calibrations.items()},
        "baselines_left_out": suite.left_out,
        "hybrid": {"kind": best.hybrid.kind, "quality": dict(best.hybrid.quality)},
    }
    with save_bundle(
        config.output, data_fingerprint=prepared.fingerprint, seed=best.trained.seed, kind="click_model"
    ) as folder:
        pack(folder, packed, metrics)
        golden = draw_golden(prepared, data.features, seed=config.seed)
        golden.save(folder, Predictor(packed, cache=config.text.cache).golden_logits(golden))
    shutil.rmtree(work, ignore_errors=True)
    per_epoch = max(1, round(data.plan(config, config.seed).count))
    return FinetuneResult(
        output=str(config.output),
        rows=prepared.rows("train"),
        valid_rows=len(data.valid),
        seeds=[run.seed for run in runs],
        best_seed=best.trained.seed,
        epochs=best.trained.run.steps * config.training.accumulate / per_epoch,
        seconds=best.trained.run.seconds,
        rows_per_second=best.trained.run.units_per_second,
        models=models,
        deviations=deviations,
        calibration=calibrations[data.tasks[0].name].method,
        left_out=suite.left_out,
        hybrid=best.hybrid.kind,
    )


def open_text_encoder(config: FinetuneConfig, prepared: Prepared) -> TextEncoder | None:
    """The encoder that the config names, with its lexical part fitted on the prepared ads; None without text."""
    text = config.text
    if text.reference is None:
        return None
    encoder = load_text_encoder(text.reference, pooling=text.pooling, max_tokens=text.max_tokens)
    if text.lexical and encoder.lexical is None:
        words = fit_lexical(encoder, prepared.ads()["text"].to_numpy().tolist(), text.lexical)
        encoder = encoder.with_lexical(torch.from_numpy(words))
    return encoder


def _trained_encoder(config: FinetuneConfig, encoder: TextEncoder | None) -> TextEncoder | None:
    """A copy of the encoder for one run to train; None where it is frozen."""
    text = config.text
    if encoder is None or text.train == "frozen":
        return None
    return trainable_copy(
        encoder, text.train, last_layers=text.last_layers, lora_rank=text.lora_rank, lora_alpha=text.lora_alpha
    )


@dataclass(frozen=True)
class _Joined:
    """A trained network, and what stands above it."""

    trained: Trained
    hybrid: Hybrid
    valid: Raw
    """raw outputs on the validation rows; those of the main task come from a hybrid fitted on other rows of them"""

    @property
    def metrics(self) -> dict[str, float]:
        return self.trained.module.metrics(self.valid)

    @property
    def quality(self) -> float:
        """The monitored metric, higher is better."""
        monitor = self.trained.module.monitor
        return -self.metrics[monitor] if monitor == "log_loss" else self.metrics[monitor]


def _inputs(config: FinetuneConfig, data: ClickData, rows: Examples) -> Inputs:
    """Training or validation rows as the baselines read them."""
    d, texts, declared = data.dimensions, data.collate, {}
    if config.baselines.names:
        interests, queries = texts.user_texts if d.interests else None, texts.query_texts if d.queries else None
        declared = declared_columns(rows, data.ads, interests, queries, d.text_parts)
    return Inputs(rows, data.ads, data.users, Columns.of(data.features), declared)


def _join(
    config: FinetuneConfig, trained: Trained, suite: Suite, simple: dict[str, NDArray[np.float32]], valid: Inputs
) -> _Joined:
    """The hybrid of one run, fitted on the validation rows."""
    network = trained.valid.logits[:, 0]
    settings = config.hybrid
    monitor = trained.module.monitor
    hybrid, joined = fit_hybrid(
        settings.kind, network, suite.fitted, simple, valid, metric=monitor, folds=settings.folds, seed=config.seed
    )
    logits = trained.valid.logits.copy()
    logits[:, 0] = joined
    return _Joined(trained, hybrid, trained.valid._replace(logits=logits))


def _calibrate(config: FinetuneConfig, data: ClickData, best: _Joined) -> dict[str, Calibration]:
    """One map a binary task, fitted on the validation rows, which are never down-sampled."""
    found = {}
    for number, task in enumerate(data.tasks):
        if task.is_binary:
            found[task.name] = fit_calibration(
                best.valid.logits[:, number],
                best.valid.labels[:, number],
                method=config.calibration,
                # A hybrid is fitted on rows that are not down-sampled: nothing is left to undo.
                negative_rate=config.loss.negative_rate if number == 0 and best.hybrid.kind == "none" else 1.0,
                groups=best.valid.request,
                seed=config.seed,
            )
    return found


def _baselines(
    config: FinetuneConfig, data: ClickData, valid: Inputs, terminal: Terminal
) -> tuple[Suite, dict[str, NDArray[np.float32]]]:
    """Fitted on the training rows, scored on the validation rows."""
    names = config.baselines.names
    if not names:
        return Suite(), {}
    rows = data.train if data.train is not None else data.sample(config.baselines.max_rows, config.seed)
    train = _inputs(config, data, rows)
    with terminal.progress("Baselines", len(names), unit="models") as advance:
        suite = fit_all(config.baselines, train, valid, seed=config.seed, advance=advance)
    return suite, score_all(suite.fitted, valid)


def _own_metrics(best: _Joined, calibrations: dict[str, Calibration], data: ClickData) -> dict[str, float]:
    """Validation metrics of the calibrated network."""
    calibrated = best.valid.logits.copy()
    calibrated[:, 0] = calibrations[data.tasks[0].name].logit(best.valid.logits[:, 0])
    return best.trained.module.metrics(best.valid._replace(logits=calibrated))


def _deviations(runs: list[_Joined]) -> dict[str, float]:
    if len(runs) < 2:
        return {}
    return {name: float(np.std([run.metrics[name] for run in runs], ddof=1)) for name in runs[0].metrics}


def _seen_table(seen: Seen) -> pa.Table:
    return pa.table({"id": seen.ids, "impressions": seen.impressions, "clicks": seen.clicks})


def _simple_metrics(score: NDArray[np.float32], is_probability: bool, data: ClickData) -> dict[str, float]:
    """Validation metrics of a baseline; a log loss only where its score means a probability."""
    labels = data.valid.labels[data.sampling.label]
    metrics = main_metrics(score, labels, data.valid.request)
    known = ~np.isnan(labels)
    metrics.pop("log_loss")
    return {**metrics, "log_loss": log_loss(labels[known], score[known])} if is_probability else metrics


def _best(name: str, rows: Iterable[dict[str, float]]) -> float:
    values = [row[name] for row in rows if name in row and np.isfinite(row[name])]
    return (min if name == "log_loss" else max)(values, default=float("nan"))


def _cell(value: float | None, best: float, deviation: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    shown = f"{value:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")
    return f"[bold]{shown}[/bold]" if value == best else shown
