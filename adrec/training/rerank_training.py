"""Train a re-ranker: each click among some unclicked ads of its own request, a softmax over them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from adrec.config.training.loop import TrainingConfig
from adrec.data.arrays import Longs, ranges
from adrec.data.batches.dataset import MemoryPlan, Sampling
from adrec.data.examples import Examples
from adrec.models.rerank.reranker import Reranker
from adrec.models.rerank.soft_tokens import PairVectors, embedding_table
from adrec.models.rerank.words import words_of
from adrec.terminal import Terminal
from adrec.training.loop.loader import BatchLoader
from adrec.training.loop.optimizer import adamw_of
from adrec.training.loop.sharding import ShardableModule
from adrec.training.loop.trainer import FitResult, fit, total_batches, total_steps
from adrec.training.losses import listwise


class PairBatch(NamedTuple):
    """U pairs of T tokens."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    """(U,) 1 for a click"""
    group: Tensor
    """(U,) which click it belongs to"""
    users: Tensor | None = None
    """(U, D) what soft tokens read; None where there are none"""
    ads: Tensor | None = None


class RerankModule(ShardableModule):
    """The listwise loss of `net`."""

    def __init__(self, net: Reranker, optimizer: Callable[[Any], dict[str, Any]]) -> None:
        super().__init__()
        self.net, self.make_optimizer = net, optimizer

    def training_step(self, batch: PairBatch, index: int) -> Tensor:
        """-log softmax of each click among its negatives."""
        logits = self.net(batch.input_ids, batch.attention_mask, batch.users, batch.ads)
        loss = listwise(logits, batch.labels, batch.group)
        self.log("train_loss", loss.detach(), batch_size=len(batch.labels))
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW over what has gradients."""
        return self.make_optimizer(self.net)


def drawn_requests(examples: Examples, label: str, most: int, seed: int) -> Examples:
    """At most `most` whole requests that hold a click and a miss, drawn at random, in their order."""
    if not len(examples):
        return examples
    starts, chosen = examples.request_starts, np.flatnonzero(examples.holds_both(label))
    if len(chosen) > most:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, most, replace=False))
    return examples.take(ranges(starts[chosen], np.diff(starts)[chosen]))


def train_reranker(
    net: Reranker,
    examples: Examples,
    ad_texts: pa.StringArray,
    user_texts: pa.StringArray,
    *,
    label: str,
    negatives: int,
    batch_rows: int,
    training: TrainingConfig,
    seed: int,
    device: str,
    work: Path,
    terminal: Terminal,
    vectors: PairVectors | None = None,
    soft_rate: float = 1e-3,
) -> FitResult:
    """Fit `net` in place on requests of `examples`, which hold clicks and misses. `work` comes from `open_work`. `vectors`: of
    each row, where the net has soft tokens, whose maps learn at `soft_rate`.
    """
    if net.soft is not None:
        assert vectors is not None
        net.soft.fit(vectors, embedding_table(net.encoder.backbone))

    def make(rows_of: Examples, rows: Longs, group: Longs | None) -> PairBatch:
        order = np.argsort(rows, kind="stable")
        words = words_of(rows_of.take(rows[order]), ad_texts, user_texts, clicks=net.clicks)
        input_ids, mask = net.encoder.pad(net.token_ids(words.contexts, words.ads))
        assert group is not None
        codes = np.unique(group[order], return_inverse=True)[1]
        labels = torch.from_numpy(rows_of.labels[label][rows[order]])
        own = () if vectors is None else tuple(torch.from_numpy(part) for part in vectors.take(rows[order]))
        return PairBatch(input_ids, mask, labels, torch.from_numpy(codes.reshape(-1)), *own)

    plan = MemoryPlan(examples, make, sampling=Sampling(label, negatives), batch_rows=batch_rows, seed=seed)  # type: ignore[arg-type]
    total = total_batches(training, plan.count)

    def optimizer(module: Any) -> dict[str, Any]:
        soft = [] if net.soft is None else [(net.soft, soft_rate)]
        return adamw_of(training, [*soft, (module, training.learning_rate)], total_steps=total_steps(training, plan.count))

    return fit(
        RerankModule(net, optimizer),
        BatchLoader(plan.plan, plan.collate, total=total, seed=seed, workers=training.workers),
        None,
        config=training,
        seed=seed,
        device=device,
        work=work,
        terminal=terminal,
        description="Training",
        total_units=plan.rows * total / plan.count,
        unit="pairs",
        units_of=lambda batch: len(batch.labels),
    )
