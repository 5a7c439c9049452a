"""`adrec train-reranker`: a bundle and a language model in; out a folder that re-ranks its lists, with gain and price."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table

from adrec.bundle import open_bundle
from adrec.config.base import save_config
from adrec.config.training.train_reranker import TrainRerankerConfig
from adrec.data.device import resolve_device
from adrec.data.disk.outputs import ENCODER
from adrec.data.disk.writing import folder_aside
from adrec.data.examples import Examples, load_examples
from adrec.data.prepared import Prepared, ReadBy, open_prepared
from adrec.errors import DataError
from adrec.inference.lists.rerank import Rerank, first_of, pair_vectors
from adrec.inference.predictor import Predictor
from adrec.metrics.ranking import RankedGroups
from adrec.models.baselines.base import folds_of, log_odds
from adrec.models.rerank.reranker import Blend, Reranker, fresh_reranker
from adrec.models.text.encoder_training import merged, trainable_copy
from adrec.terminal import Terminal
from adrec.training.loop.stored import close_work
from adrec.training.loop.trainer import FitResult, identity_of, open_work, work_folder
from adrec.training.rerank_training import drawn_requests, train_reranker

_FEWEST = 20
"""Requests without which neither training nor judging says anything."""


@dataclass(frozen=True)
class RerankerResult:
    """What it gains on validation requests, and what it costs. AUCs are means over requests of their first `top` ads."""

    output: Path
    kind: str
    requests: int
    judged_requests: int
    bundle_auc: float
    reranker_auc: float
    joined_auc: float
    """two halves, each joined by what the other one taught"""
    gain: float
    gain_error: float
    """standard error of the gain over requests"""
    soft_tokens: bool
    """whether it reads the bundle's vectors beside the words"""
    seconds_per_thousand: float
    """processor (on a GPU: wall) seconds for a thousand requests of `top` ads"""
    blend: Blend
    run: FitResult

    @property
    def gain_interval(self) -> tuple[float, float]:
        """95 % of the gain, paired over requests."""
        return self.gain - 1.96 * self.gain_error, self.gain + 1.96 * self.gain_error

    @property
    def is_worth_it(self) -> bool:
        """Whether the gain's interval lies above 0."""
        return self.gain_interval[0] > 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        own = {"gain_interval": self.gain_interval, "run": self.run.as_dict()}
        return {**asdict(self), "output": str(self.output), **own}

    def render(self) -> Iterable[RenderableType]:
        """One table."""
        table = Table("re-ranker", self.kind + (" with soft tokens" if self.soft_tokens else ""), box=None)
        table.add_row("requests: trained on, judged on", f"{self.requests:,}, {self.judged_requests:,}")
        table.add_row("AUC a request: bundle, re-ranker alone, joined",
                      f"{self.bundle_auc:.4f}, {self.reranker_auc:.4f}, {self.joined_auc:.4f}")  # fmt: skip
        low, high = self.gain_interval
        table.add_row("gain (95 %, over requests)", f"{self.gain:+.4f} ({low:+.4f} to {high:+.4f})")
        table.add_row("processor seconds a thousand requests", f"{self.seconds_per_thousand:,.0f}")
        table.add_row("worth it", verdict(low, high))
        table.add_row("weight in the join", f"{self.blend.reranker:.3g}" if self.blend.reranker else "none: it changes no list")
        table.add_row("output", str(self.output))
        yield table


def run(config: TrainRerankerConfig, terminal: Terminal) -> RerankerResult:
    """Train, join with the bundle's scores on validation requests, measure, write. A killed run goes on where it was."""
    bundle = open_bundle(config.bundle)
    device = resolve_device(config.device)
    predictor = Predictor.load(config.bundle, device=config.device)
    prepared: Prepared = ReadBy(open_prepared(config.prepared), predictor.packed.features)
    if bundle.manifest.get("data_fingerprint") != prepared.fingerprint:
        terminal.warn(
            f"{config.bundle} was trained on another prepared folder than {config.prepared}. Where it has learned these "
            "validation rows, its scores of them are too good, and the gain is too small."
        )
    if "valid" in predictor.packed.config.learned_splits:
        terminal.warn(
            f"{config.bundle} has learned the validation rows (refit), so that its scores of them are too good: the gain is "
            "too small, and lists will trust the re-ranker too little. Make the bundle with refit: false."
        )
    label = predictor.packed.tasks[0].name
    history = predictor.packed.config.model.user.max_history
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    drawn: list[Examples] = []
    for split, most in (("train", config.requests), ("valid", config.judged_requests)):
        rows = load_examples(prepared, split, max_history=history, labels=[label], cut=prepared.label_cut((split,)))
        drawn.append(drawn_requests(rows, label, most, config.seed))
        if (mixed := len(drawn[-1].request_starts) - 1) < _FEWEST:
            together = bool((np.diff(rows.request_starts) > 1).any())
            raise DataError(
                f"{prepared.path}: '{split}' has {mixed} requests that hold both a '{label}' and none, fewer than {_FEWEST}. "
                "A re-ranker learns to tell apart what was shown together: "
                + ("give preprocess more days." if together else "name the log's `request_id` in preprocess.")
            )
    train, valid = drawn
    first = _first(config, predictor, catalogs, valid, label)
    vectors = pair_vectors(predictor, train, catalogs) if config.soft_tokens else None
    width = None if vectors is None else vectors.ads.shape[1]
    torch.manual_seed(config.seed)
    fresh = fresh_reranker(config.reference, clicks=config.clicks, max_tokens=config.max_tokens, vectors=width)
    trained = trainable_copy(fresh.encoder, config.train, last_layers=config.last_layers, lora_rank=config.lora_rank)
    fresh.encoder = trained
    work = work_folder(config.output)
    identity = {**identity_of(config, prepared.fingerprint), "bundle": bundle.fingerprint}
    open_work(work, identity, resume=config.training.resume)
    fitted = train_reranker(
        fresh, train, catalogs.ads.texts, catalogs.users.texts,
        label=label, negatives=config.negatives, batch_rows=config.batch_rows, training=config.training,
        seed=config.seed, device=config.device, work=work, terminal=terminal,
        vectors=vectors, soft_rate=config.soft_learning_rate,
    )  # fmt: skip
    fresh.encoder = merged(fresh.encoder)
    with terminal.progress("Judging", len(valid.request_starts) - 1, unit="requests"):
        result = _judged(config, fresh.eval(), predictor, catalogs, first, device, fitted, len(train.request_starts) - 1)
    fresh.blend, fresh.bundle = result.blend, bundle.fingerprint
    with folder_aside(config.output, ENCODER) as folder:
        fresh.cpu().save(folder)
        (folder / "metrics.json").write_text(json.dumps(result.as_dict(), indent=2, default=str) + "\n", encoding="utf-8")
        save_config(config, folder / "config.yaml")
    close_work(work, terminal)
    return result


class _First(NamedTuple):
    """The first ads of validation requests, which are re-ranked, N rows of all."""

    rows: Examples
    log_odds: NDArray[np.float64]
    """(N,) of the bundle's scores"""
    clicks: NDArray[np.float64]
    requests: int
    """of which some may have one class among their first ads"""


def _first(config: TrainRerankerConfig, predictor: Predictor, catalogs: Any, valid: Examples, label: str) -> _First:
    """Raises DataError where they say nothing of an order: before anything is trained."""
    scores = predictor.score_examples(valid, catalogs, baselines=False)
    score = scores.score if scores.any_slot is None else scores.any_slot  # as lists are made: no slot is known yet
    rows = first_of(valid.request, score, config.top)
    chosen, own = valid.take(rows), log_odds(score[rows])
    clicks, judged = chosen.labels[label].astype(np.float64), len(valid.request_starts) - 1
    telling = int(np.isfinite(RankedGroups(clicks, own, chosen.request).auc()).sum())
    if telling < 2:
        raise DataError(
            f"{config.prepared}: of {judged} validation requests {telling} hold both a '{label}' and none among their first "
            f"{config.top} ads, which says nothing of the order. Raise top or judged_requests."
        )
    return _First(chosen, own, clicks, judged)


def _judged(
    config: TrainRerankerConfig, net: Reranker, predictor: Predictor, catalogs: Any, first: _First, device: str,
    fitted: FitResult, requests: int,
) -> RerankerResult:  # fmt: skip
    chosen, own, clicks, request = first.rows, first.log_odds, first.clicks, first.rows.request
    started = (time.process_time(), time.perf_counter())
    logits = Rerank(net, config.top, device).logits(predictor, chosen, catalogs)
    seconds = time.perf_counter() - started[1] if device != "cpu" else time.process_time() - started[0]
    fold = folds_of(request, 2, config.seed)
    joined = np.empty(len(own))
    for held in (0, 1):
        blend = fit_blend(own[fold != held], logits[fold != held], clicks[fold != held])
        joined[fold == held] = blend(own[fold == held], logits[fold == held])
    aucs = [RankedGroups(clicks, values, request).auc() for values in (own, logits, joined)]
    difference = aucs[2] - aucs[0]
    known = difference[np.isfinite(difference)]
    gain, error = float(known.mean()), float(known.std(ddof=1) / np.sqrt(len(known)))
    blend = fit_blend(own, logits, clicks)
    if not blend.reranker or gain + 1.96 * error < 0:
        blend = Blend()  # what has no weight, or does harm, changes no list
    return RerankerResult(
        output=config.output,
        kind=net.kind,
        requests=requests,
        judged_requests=first.requests,
        bundle_auc=float(np.nanmean(aucs[0])),
        reranker_auc=float(np.nanmean(aucs[1])),
        joined_auc=float(np.nanmean(aucs[2])),
        gain=gain,
        gain_error=error,
        soft_tokens=net.soft is not None,
        seconds_per_thousand=1000 * seconds / first.requests,
        blend=blend,
        run=fitted,
    )


def verdict(low: float, high: float) -> str:
    """What a gain's 95 % interval says, in words."""
    return "yes" if low > 0 else "no: it does harm" if high < 0 else "not shown: the interval holds 0"


def fit_blend(own: NDArray[np.floating], logits: NDArray[np.floating], clicks: NDArray[np.floating]) -> Blend:
    """Logistic regression of clicks on the bundle's log-odds and the re-ranker's logits (N,) each, neither of which may count
    against itself; rows without a label are left out. A ridge of 1e-3 a row keeps it near the bundle's own score.
    """
    from scipy.optimize import minimize

    known = np.isfinite(clicks)
    x = np.stack([own[known], logits[known], np.ones(int(known.sum()))], axis=1).astype(np.float64)
    y, start = clicks[known], np.array([1.0, 0.0, 0.0])

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z, off = x @ w, w - start
        p = 1 / (1 + np.exp(-z))
        return float(np.mean(np.logaddexp(0.0, z) - y * z) + 5e-4 * off @ off), x.T @ (p - y) / len(y) + 1e-3 * off

    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None), (0.0, None), (None, None)]).x
    return Blend(*(float(value) for value in found))
