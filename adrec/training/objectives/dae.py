"""TSDAE: rebuild a text from the single vector of its damaged copy (Wang et al., "TSDAE", 2021).

# U texts, T tokens, D width, V vocabulary
"""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from adrec.models.text.language_model import LanguageModel
from adrec.models.text.pooling import Pool
from adrec.training.loop.loader import shuffled
from adrec.training.objectives.texts import PackedTexts, Texts, TokenTable, text_vectors


class DaeBatch(NamedTuple):
    """The damaged copy and the whole text."""

    damaged: PackedTexts
    whole: Texts


class DaeFeed:
    """Texts to batches; a share of the tokens between the special ones is deleted, at least one stays."""

    def __init__(
        self, rows: np.ndarray, tokens: TokenTable, *, delete_rate: float, batch_texts: int, shuffle: bool, seed: int
    ) -> None:
        self.rows, self.tokens, self.delete_rate = rows, tokens, delete_rate
        self.batch_texts, self.shuffle, self.seed = batch_texts, shuffle, seed

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Text numbers of each batch."""
        count = len(self.rows)
        order = self.rows[shuffled(count, seed=self.seed, epoch=epoch)] if self.shuffle else self.rows
        return [order[start : start + self.batch_texts] for start in range(0, count, self.batch_texts)]

    def collate(self, numbers: np.ndarray, generator: np.random.Generator) -> DaeBatch:
        """Delete tokens and pad both."""
        whole = self.tokens.rows(numbers)
        return DaeBatch(self.tokens.packed([self._damage(row, generator) for row in whole]), self.tokens.batch(whole))

    def _damage(self, row: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        keep = generator.random(len(row)) >= self.delete_rate
        keep[[0, -1]] = True
        if len(row) > 2 and not keep[1:-1].any():
            keep[1 + generator.integers(len(row) - 2)] = True
        return row[keep]


class Dae(nn.Module):
    """A small decoder that attends to one vector. Token vectors and output layer are the language model's own."""

    name = "dae"

    def __init__(
        self, pool: Pool, *, dimension: int, embedding: int, max_tokens: int, layers: int = 1, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.pool = pool
        layer = nn.TransformerDecoderLayer(
            dimension, max(1, dimension // 64), 4 * dimension, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(dimension))
        self.positions = nn.Embedding(max_tokens, dimension)
        self.widen = nn.Linear(embedding, dimension) if embedding != dimension else nn.Identity()

    def forward(self, model: LanguageModel, batch: DaeBatch) -> Tensor:
        """Mean cross-entropy in nats per token of the whole text, its first excepted."""
        vectors = text_vectors(model, self.pool, batch.damaged)  # (U, D)
        inputs, targets = batch.whole.tokens[:, :-1], batch.whole.tokens[:, 1:]
        real = batch.whole.texts[:, 1:] >= 0  # (U, T - 1)
        table = cast(Any, model.backbone).get_input_embeddings()
        embedded = self.widen(table(inputs)) + self.positions(batch.whole.positions[:, :-1])
        length = inputs.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=inputs.device).triu(1)
        states = self.decoder(embedded, vectors.unsqueeze(1), tgt_mask=future)  # (U, T - 1, D)
        return nn.functional.cross_entropy(model.logits(states[real]).float(), targets[real])

    def weight(self, batch: DaeBatch) -> int:
        """Tokens to rebuild."""
        return int((batch.whole.texts[:, 1:] >= 0).sum())
