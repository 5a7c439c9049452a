"""Sentence pairs: do these two texts belong together? (Devlin et al., 2019, "next sentence prediction".)"""

from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from adrec.data.text.pairs import Pairs
from adrec.models.text.language_model import LanguageModel
from adrec.training.loop.loader import shuffled
from adrec.training.objectives.texts import Texts, TokenTable


class NspBatch(NamedTuple):
    """Joined pairs and whether each is true."""

    pairs: Texts  # [CLS] left [SEP] right [SEP]
    labels: Tensor  # (U,) float32: 1 belongs together, 0 not


class NspFeed:
    """True pairs and as many false ones: the same left text with the right text of another pair, never a true one."""

    def __init__(self, pairs: Pairs, known: Pairs, tokens: TokenTable, *, batch_texts: int, shuffle: bool, seed: int) -> None:
        self.pairs, self.known, self.tokens = pairs, known, tokens
        self.batch_pairs = max(1, batch_texts // 2)
        self.shuffle, self.seed = shuffle, seed

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Numbers of the true pairs of each batch."""
        count = len(self.pairs)
        order = shuffled(count, seed=self.seed, epoch=epoch) if self.shuffle else np.arange(count)
        return [order[start : start + self.batch_pairs] for start in range(0, count, self.batch_pairs)]

    def collate(self, numbers: np.ndarray, generator: np.random.Generator) -> NspBatch:
        """Draw false partners, again where one happens to be true. Lefts that go with everything give no false pair."""
        left, right = self.pairs.left[numbers], self.pairs.right[numbers]
        other = self.known.right[generator.integers(len(self.known), size=len(left))]
        for _ in range(20):
            wrong = np.flatnonzero(self.known.are_true(left, other))
            if not len(wrong):
                break
            other[wrong] = self.known.right[generator.integers(len(self.known), size=len(wrong))]
        is_false = ~self.known.are_true(left, other)
        rows = self.tokens.joined(np.concatenate([left, left[is_false]]), np.concatenate([right, other[is_false]]))
        labels = np.concatenate([np.ones(len(left)), np.zeros(int(is_false.sum()))]).astype(np.float32)
        return NspBatch(self.tokens.batch(rows), torch.from_numpy(labels))


class Nsp(nn.Module):
    """A binary head on the first token's state. It is thrown away after pretraining."""

    name = "nsp"

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(dimension, dimension), nn.Tanh(), nn.Linear(dimension, 1))

    def forward(self, model: LanguageModel, batch: NspBatch) -> Tensor:
        """Mean binary cross-entropy in nats per pair; chance is log 2."""
        states = model(batch.pairs.tokens, batch.pairs.texts, batch.pairs.positions)
        logits = cast(Tensor, self.head(states[:, 0])).squeeze(1)  # (U,)
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), batch.labels)

    def weight(self, batch: NspBatch) -> int:
        """Pairs in the batch."""
        return len(batch.labels)
