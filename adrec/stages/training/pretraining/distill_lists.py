"""distill with a re-ranker: the bundle's network learns to order lists as the re-ranker does, which it then need not run for.

The lists are of training requests and of what retrieval finds for them, so that nobody was shown most of these pairs: ads that
had been shown by the moment, with counters and histories as of then. Costs one pass of the re-ranker a pair, once.
"""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table

from adrec.bundle import Bundle
from adrec.config.inference.rank import Policy, Reranking
from adrec.config.training.distill import DistillConfig, ListTerms
from adrec.data.arrays import integers
from adrec.data.batches.collate import Collator
from adrec.data.device import resolve_device
from adrec.data.examples import Examples, load_examples
from adrec.data.prepared import Prepared, ReadBy
from adrec.errors import ConfigError, DataError
from adrec.inference.known import known_of, users_named
from adrec.inference.lists.ranker import Ranker
from adrec.inference.lists.recall import sample_requests
from adrec.inference.lists.requests import split_requests
from adrec.inference.lists.rerank import Rerank, first_of, open_rerank
from adrec.inference.predictor import Predictor
from adrec.metrics.ranking import RankedGroups
from adrec.models.baselines.base import log_odds
from adrec.models.text.text_encoder import TextEncoder
from adrec.models.text.text_vectors import TextReader
from adrec.stages.training.pretraining.distill_bundle import JUDGE_ROWS, opened_to_teach, write_bundle
from adrec.stages.training.train_reranker import verdict
from adrec.terminal import Terminal
from adrec.training.click_data import load_click_data
from adrec.training.list_distillation import TaughtLists, teach_lists
from adrec.training.loop.stored import close_work
from adrec.training.loop.trainer import FitResult, identity_of, open_work, work_folder

_FEWEST = 10
"""Lists of which something can be learned."""


@dataclass(frozen=True)
class ListsResult:
    """What the network gained on validation requests, and what either way of ordering a list costs."""

    output: Path
    lists: int
    pairs: int
    before_auc: float
    """AUC a request of the bundle; of its requests with a click and a miss"""
    after_auc: float
    gain: float
    gain_interval: tuple[float, float]
    """95 %, paired over requests"""
    teacher_seconds: float
    """processor (on a GPU: wall) seconds for a thousand requests whose `ads` the bundle scores and the re-ranker reads"""
    student_seconds: float
    """the same where the taught bundle scores them alone"""
    run: FitResult

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {**asdict(self), "output": str(self.output), "run": self.run.as_dict()}

    def render(self) -> Iterable[RenderableType]:
        """One table."""
        low, high = self.gain_interval
        table = Table("lists of a re-ranker", f"{self.lists:,} of {self.pairs:,} pairs", box=None)
        table.add_row("AUC a request: before, after", f"{self.before_auc:.4f}, {self.after_auc:.4f}")
        table.add_row("gain (95 %, over requests)", f"{self.gain:+.4f} ({low:+.4f} to {high:+.4f})")
        table.add_row("processor seconds a thousand requests: with the re-ranker, taught",
                      f"{self.teacher_seconds:,.1f}, {self.student_seconds:,.1f}")  # fmt: skip
        table.add_row("worth it", verdict(low, high))
        table.add_row("output", str(self.output))
        yield table


def distill_lists(config: DistillConfig, terms: ListTerms, prepared: Prepared, terminal: Terminal) -> ListsResult:
    """Make the lists, ask the re-ranker, teach, write. Raises ConfigError where bundle and re-ranker do not go together."""
    bundle, packed = opened_to_teach(config, prepared, "lists")
    prepared = ReadBy(prepared, packed.features)
    device = resolve_device(config.device)
    settings = Reranking(reference=Path(cast(str, config.teacher)), top=terms.ads)
    rerank = cast(Rerank, open_rerank(settings, config.device, bundle.fingerprint))
    _refuse_mute(config, rerank, bundle, terminal)
    work = work_folder(config.output)
    of = {"bundle": bundle.fingerprint, "teacher": [rerank.reranker.encoder.fingerprint, asdict(rerank.reranker.blend)]}
    identity = {**identity_of(config, prepared.fingerprint), **of}
    open_work(work, identity, resume=config.training.resume)
    predictor = Predictor(packed, device=device)
    unlabelled = _unlabelled(terms, prepared, predictor, config.seed, terminal)
    with terminal.progress("the re-ranker reads", unit="pairs"):
        taught, seconds = _answers(unlabelled, rerank, predictor, device)
    before = _judged(predictor, prepared)
    text = packed.config.text
    reader = TextReader(cast(TextEncoder, packed.encoder), device=device, batch_tokens=text.batch_tokens)
    data = load_click_data(packed.config, prepared, reader, terminal, splits=packed.config.learned_splits)
    run = teach_lists(
        terms, packed.config, network=packed.model, data=data, lists=taught, seed=config.seed, device=device,
        work=work / "lists", identity=identity, terminal=terminal,
    )  # fmt: skip
    packed = replace(packed, model=packed.model.cpu().eval().requires_grad_(False))
    write_bundle(config, prepared, packed.encoder, packed)
    close_work(work, terminal)
    after = _judged(Predictor(packed, device=device), prepared)
    gains = after - before
    gains = gains[np.isfinite(gains)]
    error = float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else float("inf")
    gain, lists = float(gains.mean()) if len(gains) else 0.0, len(taught.examples.request_starts) - 1
    return ListsResult(
        output=config.output,
        lists=lists,
        pairs=len(taught.examples),
        before_auc=float(np.nanmean(before)),
        after_auc=float(np.nanmean(after)),
        gain=gain,
        gain_interval=(gain - 1.96 * error, gain + 1.96 * error),
        teacher_seconds=1000 * seconds.both / lists,
        student_seconds=1000 * seconds.own / lists,
        run=run,
    )


class _Unlabelled(NamedTuple):
    """Pairs of whole lists, over the catalogs of the ranker that found them."""

    examples: Examples
    ranker: Ranker


class _Seconds(NamedTuple):
    own: float
    both: float


def _refuse_mute(config: DistillConfig, rerank: Rerank, bundle: Bundle, terminal: Terminal) -> None:
    """Raise ConfigError where the re-ranker changes no list: there is nothing to be learned of it."""
    if rerank.reranker.bundle != bundle.fingerprint:
        terminal.warn(f"teacher: {config.teacher} was joined with another bundle's scores than those of {bundle.path}.")
    if rerank.reranker.blend.reranker <= 0:
        raise ConfigError(
            f"teacher: {config.teacher} has no weight beside the bundle's own score: validation found nothing in it, so "
            "there is nothing to teach. Train a better one with 'adrec train-reranker'."
        )


def _unlabelled(terms: ListTerms, prepared: Prepared, predictor: Predictor, seed: int, terminal: Terminal) -> _Unlabelled:
    """The lists of `terms`: training requests by a hash of their id, and of what retrieval finds for each and had been shown by
    its moment the ads of the highest scores.
    """
    if not prepared.has.ad:
        raise DataError(f"{prepared.path}: its log names no ads, so that there are no lists to make.")
    ads, users = prepared.ads(), prepared.users()
    drawn = sample_requests(
        split_requests(prepared, "train"), lambda table: np.zeros(len(table), np.int64), requests=terms.requests, ads=1
    )
    assert drawn is not None
    catalogs = predictor.catalogs(ads, users)
    known = known_of(prepared, catalogs.ad_table, asked_users=users_named(drawn).unique())
    policy = Policy.model_validate({"top_n": 1, "retrieval": {"candidates": max(200, terms.ads)}})
    ranker = Ranker(predictor, catalogs, ads, users, {"default": policy}, always="default", known=known, seed=seed)
    table = ranker.attached(drawn)
    examples = predictor.examples_of(table)
    with terminal.progress("making lists", len(table), unit="requests"):
        vectors = predictor.user_vectors(examples, catalogs)
        candidates = ranker.finder.find(drawn, examples, vectors, np.zeros(len(drawn), np.int64)).ad
    if prepared.has.time:
        candidates = np.where(_first_shown(prepared, len(ads))[candidates] <= examples.shown_at[:, None], candidates, -1)
    row, place = (part.astype(np.int64) for part in np.nonzero(candidates >= 0))
    pairs = ranker.pairs(table, examples, row, candidates[row, place].astype(np.int64))
    scores = predictor.score_examples(pairs, catalogs, baselines=False)
    pairs = pairs.take(first_of(pairs.request, scores.score, terms.ads))
    sizes = np.bincount(pairs.request)
    pairs = pairs.take(np.flatnonzero(sizes[pairs.request] > 1))
    lists = len(np.unique(pairs.request))
    if lists < _FEWEST:
        raise DataError(f"{prepared.path}: only {lists} training requests have two ads or more that had been shown by then.")
    return _Unlabelled(pairs, ranker)


def _first_shown(prepared: Prepared, ads: int) -> NDArray[np.int64]:
    """(A,) the first moment of the training rows that shows each ad, microseconds; far in the future where none does."""
    first = np.full(ads, np.iinfo(np.int64).max)
    for batch in prepared.iter("train", ["ad_index", "shown_at"], 262_144):
        np.minimum.at(first, batch["ad_index"].to_numpy(), integers(pc.cast(batch["shown_at"], pa.int64())))
    return first


def _answers(unlabelled: _Unlabelled, rerank: Rerank, predictor: Predictor, device: str) -> tuple[TaughtLists, _Seconds]:
    """The joined log-odds of each pair, and what they cost."""
    pairs, catalogs = unlabelled.examples, unlabelled.ranker.catalogs
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    scores = predictor.score_examples(pairs, catalogs, baselines=False)
    scored = clock()
    joined = rerank.reranker.blend(log_odds(scores.score), rerank.logits(predictor, pairs, catalogs))
    seconds = _Seconds(scored - began, clock() - began)
    collate = Collator(catalogs.ads, catalogs.users, catalogs.ad_texts, catalogs.user_texts, catalogs.queries, tasks=())
    return TaughtLists(predictor.matched(pairs, catalogs), joined.astype(np.float32), collate), seconds


def _judged(predictor: Predictor, prepared: Prepared) -> NDArray[np.float64]:
    """AUC of each validation request by the bundle's scores, NaN where it holds one class."""
    label = predictor.packed.tasks[0].name
    history = predictor.packed.config.model.user.max_history
    cut = prepared.label_cut(("train", "valid"))
    valid = load_examples(prepared, "valid", max_history=history, labels=[label], rows=JUDGE_ROWS, cut=cut)
    scores = predictor.score_examples(valid, predictor.catalogs(prepared.ads(), prepared.users()), baselines=False)
    known = np.isfinite(valid.labels[label])
    return RankedGroups(valid.labels[label][known].astype(np.float64), scores.score[known], valid.request[known]).auc()
