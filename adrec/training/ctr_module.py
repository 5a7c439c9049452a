"""The click model as a LightningModule: losses of a step, validation metrics of an epoch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adrec.data.batches.collate import Batch
from adrec.metrics import classification, ranking
from adrec.models.net.ctr_model import Outputs
from adrec.models.net.delay import DelayLoss
from adrec.models.net.ensemble import ClickNetwork
from adrec.models.net.tasks import Task
from adrec.training import losses
from adrec.training.loop.by_rows import LearnsByRows

Term = Literal["bce", "listwise", "bpr", "in_batch", "next_click"]


class Raw(NamedTuple):
    """Raw outputs over a set of rows."""

    logits: NDArray[np.float32]
    """(N, K)"""
    labels: NDArray[np.float32]
    """(N, K), NaN where missing"""
    request: NDArray[np.int64]
    """(N,)"""
    weight: NDArray[np.float64] | None = None
    """(N,) impressions that each row stands for; None where each is one"""


class CTRModule(LearnsByRows):
    """Trains `model` on the losses of its tasks. The main task's loss is the weighted sum of `terms`.

    `mean_weight`: of the training rows, where rows weigh: the size of a step must not depend on the unit of counts.

    `drawn_by`: negatives were drawn in proportion to the ads' clicks to this power. The main losses see the logits less
    log q, so that the logits themselves come to mean log p (Bengio and Senecal 2008), and not log p / q.

    `late`: number of a task → the loss in place of its cross-entropy, where its label comes late.

    `optimizer(module, text_encoder)` gives what Lightning's `configure_optimizers` returns; the text encoder is None where
    it is not trained.
    """

    def __init__(
        self,
        *,
        model: ClickNetwork,
        tasks: Sequence[Task],
        terms: Sequence[tuple[Term, float]],
        monitor: str,
        learned_weights: bool = False,
        next_category: float = 0.0,
        category: int = 0,
        list_penalty: float = 0.0,
        mean_weight: float = 1.0,
        drawn_by: float = 0.0,
        late: Mapping[int, DelayLoss] | None = None,
        optimizer: Callable[[nn.Module, nn.Module | None], dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tasks = tuple(tasks)
        self.terms = tuple(terms)
        self.next_category, self.category = next_category, category
        self.list_penalty, self.drawn_by = list_penalty, drawn_by
        self.mean_weight = mean_weight
        self.monitor = monitor
        self.optimizer = optimizer
        self.late = nn.ModuleDict({str(number): loss for number, loss in (late or {}).items()})
        self.task_weights = losses.TaskWeights(
            weights=tuple(task.weight for task in tasks),
            learned=learned_weights,
            is_binary=tuple(task.is_binary for task in tasks),
        )
        self._seen: list[Seen] = []
        self.find_tables()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of one batch."""
        total = self.loss(batch, self.model(batch))
        self.log("train_loss", total, prog_bar=True, batch_size=len(batch.ad))
        return total

    def loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        """The weighted losses of all tasks."""
        total: Tensor = self.task_weights(torch.stack(self._task_losses(batch, outputs)))
        if self.next_category and outputs.interest is not None:
            total = total + self.next_category * _interest_loss(batch, outputs.interest, self.category)
        if outputs.list_squares is not None:
            total = total + self.list_penalty * outputs.list_squares.mean()
        return total

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's rows."""
        self._seen = []

    def validation_step(self, batch: Batch, index: int) -> None:
        """Keep the batch's logits; metrics need whole requests."""
        logits = self.model(batch).logits.float().cpu()
        weight = None if batch.weight is None else batch.weight.cpu()
        self._seen.append((logits, batch.labels.cpu(), batch.group.cpu(), weight))

    def on_validation_epoch_end(self) -> None:
        """Log `valid_<metric>` of every task."""
        for name, value in self.metrics(gathered(self._seen)).items():
            self.log(f"valid_{name}", value, prog_bar=name == self.monitor)

    def configure_optimizers(self) -> Any:
        """What was given."""
        assert self.optimizer is not None
        return self.optimizer(self, self.model.text_encoder)

    def metrics(self, raw: Raw) -> dict[str, float]:
        """Metrics of raw outputs (`task_metrics`)."""
        logits = raw.logits.astype(np.float64)
        main = np.exp(-np.logaddexp(0.0, -logits[:, 0]))
        outputs = [main, *(task.output(raw.logits[:, index]) for index, task in enumerate(self.tasks[1:], start=1))]
        return task_metrics(self.tasks, outputs, raw.labels, raw.request, raw.weight)

    def _task_losses(self, batch: Batch, outputs: Outputs) -> list[Tensor]:
        of_task = [self._main_loss(batch, outputs)]
        weight = self._scaled(batch.weight)
        for index, task in enumerate(self.tasks[1:], start=1):
            logits, labels = outputs.logits[:, index], batch.labels[:, index]
            if task.is_binary:
                # A conversion after the click is learned from impressions: without a click there was none.
                of_task.append(self._binary(index, logits, batch, outputs, weight))
                continue
            values = torch.log1p(labels) if task.log1p else labels
            of_task.append(losses.squared(logits, (values - task.mean) / task.deviation, weight))
        return of_task

    def _binary(self, number: int, logits: Tensor, batch: Batch, outputs: Outputs, weight: Tensor | None) -> Tensor:
        labels = batch.labels[:, number]
        if str(number) not in self.late:
            return losses.binary(logits, labels, weight)
        assert batch.elapsed is not None and batch.delays is not None
        users, ads = outputs.users[batch.context], outputs.ads[batch.ad]
        late: Tensor = self.late[str(number)](logits, labels, batch.delays[:, number], batch.elapsed, users, ads, weight)
        return late

    def _scaled(self, weight: Tensor | None) -> Tensor | None:
        return None if weight is None else weight / self.mean_weight

    def _main_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        logits, labels = outputs.logits[:, 0], batch.labels[:, 0]
        if self.drawn_by:
            logits = logits - self.drawn_by * batch.log_frequency
        total = logits.new_zeros(())
        for term, weight in self.terms:
            match term:
                case "bce":
                    loss = self._binary(0, logits, batch, outputs, self._scaled(batch.weight))
                case "listwise":
                    loss = losses.listwise(logits, labels, batch.group, batch.weight)
                case "bpr":
                    loss = losses.bpr(logits, labels, batch.group, batch.positive, batch.weight)
                case "in_batch":
                    loss = losses.in_batch(
                        outputs.users, outputs.ads, batch.context, batch.ad, batch.positive, batch.log_frequency, batch.weight
                    )
                case "next_click":
                    assert batch.click_frequency is not None
                    loss = logits.new_zeros(())
                    for clicks in outputs.clicks:
                        loss = loss + losses.next_click(*clicks, outputs.ads, batch.click_frequency)
            total = total + weight * loss
        return total


def main_metrics(
    scores: NDArray[Any],
    labels: NDArray[Any],
    request: NDArray[Any],
    weight: NDArray[Any] | None = None,
    *,
    is_probability: bool = True,
) -> dict[str, float]:
    """auc, log_loss (of probabilities), and over requests auc_request, mrr, ndcg@5, ndcg@10, of rows with a known label.

    Rows that stand for many impressions are no list that anybody was shown: they have no figures of requests.
    """
    known = ~np.isnan(labels)
    labels, scores, request = labels[known], scores[known], request[known]
    weight = None if weight is None else weight[known]
    metrics = {"auc": classification.auc(labels, scores, weight)}
    if is_probability:
        metrics["log_loss"] = classification.log_loss(labels, scores, weight)
    if weight is not None:
        return metrics
    return {
        **metrics,
        "auc_request": ranking.auc_request(labels, scores, request),
        "mrr": ranking.mrr(labels, scores, request),
        "ndcg@5": ranking.ndcg(labels, scores, request, k=5),
        "ndcg@10": ranking.ndcg(labels, scores, request, k=10),
    }


def task_metrics(
    tasks: Sequence[Task], outputs: Sequence[NDArray[Any]], labels: NDArray[Any], request: NDArray[Any],
    weight: NDArray[Any] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Metrics of the main task under their own names, those of other tasks behind the task's name.

    `outputs` (N,) of each task in the units of its label, probabilities where it is binary; labels (N, K).
    """
    metrics = main_metrics(outputs[0], labels[:, 0], request, weight)
    for index, task in enumerate(tasks[1:], start=1):
        known = ~np.isnan(labels[:, index])
        if not known.any():
            continue
        weighed = None if weight is None else weight[known]
        if task.is_binary:
            metrics[f"{task.name}_auc"] = classification.auc(labels[known, index], outputs[index][known], weighed)
        else:
            metrics[f"{task.name}_rmse"] = classification.rmse(labels[known, index], outputs[index][known], weighed)
    return metrics


Seen = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Logits, labels, groups and weights of a batch."""


def gathered(parts: Sequence[Seen]) -> Raw:
    """Batches end to end; group codes of a batch become codes over all batches."""
    logits = torch.cat([batch[0] for batch in parts]).numpy()
    labels = torch.cat([batch[1] for batch in parts]).numpy()
    shift = 0
    request = []
    for _, _, group, _ in parts:
        request.append(group.numpy() + shift)
        shift += int(group.max()) + 1
    weights = [batch[3].numpy().astype(np.float64) for batch in parts if batch[3] is not None]
    return Raw(logits, labels, np.concatenate(request), np.concatenate(weights) if weights else None)


def _interest_loss(batch: Batch, interest: Tensor, column: int) -> Tensor:
    """Cross-entropy of the clicked ad's category (`column` of its categorical features) given the user alone
    (C, number of categories); unknown ones are left out."""
    rows = batch.positive
    category = batch.ads.categorical[batch.ad[rows], column]
    lost = nn.functional.cross_entropy(interest[batch.context[rows]], category, reduction="none")
    return losses.masked_mean(lost, None if batch.weight is None else batch.weight[rows], category > 0)
