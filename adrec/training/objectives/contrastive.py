"""Contrastive learning of text vectors: two views of one text, or two texts that clicks tie together.

Gao et al., "SimCSE" (2021): the same text twice under dropout. For clicks the in-batch softmax is corrected for popular ads
being drawn as negatives more often: Yi et al., "Sampling-Bias-Corrected Neural Modeling" (2019).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adrec.data.text.pairs import Pairs
from adrec.models.text.language_model import LanguageModel
from adrec.models.text.pooling import Pool
from adrec.training.loop.loader import shuffled
from adrec.training.objectives.texts import PackedTexts, TokenTable, text_vectors


class ContrastiveBatch(NamedTuple):
    """Text i belongs with text U + i."""

    texts: PackedTexts  # 2 U texts: the left of every pair, then the right of every pair
    log_q: Tensor  # (U,) float32: log of how often each right text is drawn, 0 where not corrected
    same: Tensor  # (U, U) bool: right text j must not be a negative of row i (the same text, or a true pair too)


class ContrastiveFeed:
    """Pairs to batches. For SimCSE the pairs are each text with itself."""

    def __init__(
        self, pairs: Pairs, tokens: TokenTable, *, batch_texts: int, log_q: bool, shuffle: bool = True, seed: int = 0
    ) -> None:
        self.pairs, self.tokens, self.batch_texts = pairs, tokens, batch_texts
        self.log_q, self.shuffle, self.seed = log_q, shuffle, seed

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Pair numbers of each batch; a last batch of one pair has no negatives and is left out."""
        count = len(self.pairs)
        order = shuffled(count, seed=self.seed, epoch=epoch) if self.shuffle else np.arange(count)
        batches = [order[start : start + self.batch_texts] for start in range(0, count, self.batch_texts)]
        return batches if len(batches) == 1 or len(batches[-1]) > 1 else batches[:-1]

    def collate(self, numbers: np.ndarray, generator: np.random.Generator) -> ContrastiveBatch:
        """Pad both sides and note which pairs are no negatives."""
        left, right = self.pairs.left[numbers], self.pairs.right[numbers]
        grid = np.broadcast_arrays(left[:, None], right[None, :])
        same = self.pairs.are_true(grid[0], grid[1]) | (right[:, None] == right[None, :])
        np.fill_diagonal(same, False)
        log_q = np.log(self.pairs.share[right].clip(min=1e-12)) if self.log_q else np.zeros(len(right))
        return ContrastiveBatch(
            self.tokens.packed(self.tokens.rows(np.concatenate([left, right]))),
            torch.from_numpy(log_q.astype(np.float32)),
            torch.from_numpy(same),
        )


class Contrastive(nn.Module):
    """In-batch softmax over cosines."""

    name = "contrastive"

    def __init__(self, pool: Pool, *, temperature: float) -> None:
        super().__init__()
        self.pool, self.temperature = pool, temperature

    def forward(self, model: LanguageModel, batch: ContrastiveBatch) -> Tensor:
        """Mean loss in nats per pair."""
        left, right = nn.functional.normalize(text_vectors(model, self.pool, batch.texts), dim=1).chunk(2)  # (U, D) each
        logits = (left @ right.T).float() / self.temperature - batch.log_q
        logits = logits.masked_fill(batch.same, torch.finfo(logits.dtype).min)
        return nn.functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))

    def weight(self, batch: ContrastiveBatch) -> int:
        """Pairs in the batch."""
        return len(batch.log_q)
