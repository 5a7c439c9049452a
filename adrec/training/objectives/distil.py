"""Knowledge distillation into a smaller encoder.

Sanh et al., "DistilBERT" (2019): soft targets of the masked tokens, the masked-language-model loss, cosine of the states. The
vector term makes the student's text vectors those of the teacher (Reimers & Gurevych, 2020), so one can stand in for the other.

# B packs, L tokens a pack, U texts, M places, D width, V vocabulary
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from adrec.models.text.language_model import LanguageModel
from adrec.training.objectives.mlm import Mlm, MlmBatch, MlmFeed, mean_cross_entropy


class Distil(nn.Module):
    """Weighted sum of the four terms; a weight of 0 saves the term's cost. The teacher is neither trained nor saved."""

    name = "distil"

    def __init__(
        self,
        teacher: LanguageModel,
        *,
        pooling: str,
        soft: float,
        mlm: float,
        cosine: float,
        vector: float,
        temperature: float = 2.0,
    ) -> None:
        super().__init__()
        self._teacher = [teacher.eval().requires_grad_(False)]  # in a list: not a part of this module
        self.pooling, self.temperature = pooling, temperature
        self.soft, self.mlm, self.cosine, self.vector = soft, mlm, cosine, vector

    def forward(self, student: LanguageModel, batch: MlmBatch) -> Tensor:
        """The loss; both models read the same packed texts."""
        teacher = self._teacher[0].to(batch.tokens.device)
        loss = torch.zeros((), device=batch.tokens.device)
        if self.soft or self.mlm:
            logits = Mlm().logits(student, batch).float()  # (M, V)
            loss = loss + self.mlm * mean_cross_entropy(logits, batch.labels)
        if self.soft:
            with torch.no_grad():
                target = Mlm().logits(teacher, batch).float()
            loss = loss + self.soft * soft_target_loss(logits, target, self.temperature)
        if self.cosine or self.vector:
            clean = batch.tokens.flatten().index_copy(0, batch.places, batch.labels).view_as(batch.tokens)
            with torch.no_grad():
                wanted = teacher(clean, batch.texts, batch.positions)
            states = student(clean, batch.texts, batch.positions)
            real = batch.texts >= 0
            loss = loss + self.cosine * (1 - functional.cosine_similarity(states[real], wanted[real], dim=1)).mean()
            ours, theirs = (pack_vectors(side, batch.texts, batch.positions, self.pooling) for side in (states, wanted))
            loss = loss + self.vector * vector_loss(ours, theirs)
        return loss

    def weight(self, batch: MlmBatch) -> int:
        """Real tokens."""
        return int(batch.real)


class VectorBatch(NamedTuple):
    """Packs, and the teacher's vectors of their texts, in order."""

    tokens: Tensor  # (B, L) int64
    texts: Tensor  # (B, L) int64
    positions: Tensor  # (B, L) int64
    real: Tensor  # () int64: tokens that are not padding
    vectors: Tensor  # (U, D) float32


class VectorFeed:
    """The packs of a masked feed, not masked, with vectors (N, D) of the corpus' texts that were made beforehand."""

    def __init__(self, feed: MlmFeed, vectors: np.ndarray) -> None:
        self.feed, self.vectors, self.plan = feed, vectors, feed.plan

    def collate(self, numbers: np.ndarray, generator: np.random.Generator) -> VectorBatch:
        """Pack, to tensors."""
        rows, laid = self.feed.lay_out(numbers)
        arrays = (laid.tokens, laid.texts, laid.positions, np.asarray((laid.texts >= 0).sum()), self.vectors[rows])
        return VectorBatch(*(torch.from_numpy(array) for array in arrays))


class VectorDistil(nn.Module):
    """The vector term alone, against vectors that the teacher made once: it does not run in training."""

    name = "distil"

    def __init__(self, *, pooling: str, weight: float) -> None:
        super().__init__()
        self.pooling, self.factor = pooling, weight

    def forward(self, student: LanguageModel, batch: VectorBatch) -> Tensor:
        """The loss."""
        states = student(batch.tokens, batch.texts, batch.positions)
        return self.factor * vector_loss(pack_vectors(states, batch.texts, batch.positions, self.pooling), batch.vectors)

    def weight(self, batch: VectorBatch) -> int:
        """Real tokens."""
        return int(batch.real)


def vector_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared distance of vectors (U, D), relative to the mean squared length of `theirs`."""
    return (ours - theirs).pow(2).sum(dim=1).mean() / theirs.pow(2).sum(dim=1).mean()


def soft_target_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """KL divergence of softened predictions (M, V), times the squared temperature (Hinton et al., 2015); 0 of none."""
    ours = functional.log_softmax(logits / temperature, dim=1)
    theirs = functional.log_softmax(target / temperature, dim=1)
    return functional.kl_div(ours, theirs, reduction="sum", log_target=True) / max(len(ours), 1) * temperature**2


def pack_vectors(states: Tensor, texts: Tensor, positions: Tensor, pooling: str) -> Tensor:
    """Vectors (U, D) of all texts of a packed batch, in order: mean, or the first or last token's state."""
    real = texts >= 0
    flat = states[real]  # (tokens, D)
    starts = positions[real] == 0
    if pooling == "cls":
        return flat[starts]
    if pooling == "last":
        ends = torch.cat([starts[1:], torch.ones_like(starts[:1])])
        return flat[ends]
    number = starts.cumsum(0) - 1
    count = int(number[-1]) + 1
    sums = torch.zeros(count, flat.shape[1], dtype=flat.dtype, device=flat.device).index_add_(0, number, flat)
    return sums / torch.bincount(number, minlength=count).unsqueeze(1)
