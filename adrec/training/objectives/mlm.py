"""Masked language modelling on packed texts (Devlin et al., 2019; whole words as Cui et al., 2021)."""

from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from adrec.data.arrays import ends, ranges
from adrec.data.text.corpus import Corpus
from adrec.data.text.masking import mask_tokens
from adrec.data.text.packing import PackedTokens, Packs, joined, pack
from adrec.models.text.language_model import LanguageModel
from adrec.training.loop.loader import shuffled


class MlmBatch(NamedTuple):
    """One batch of packs."""

    tokens: Tensor  # (B, L) int64, corrupted
    texts: Tensor  # (B, L) int64: number of the text in its pack, -1 padding
    positions: Tensor  # (B, L) int64, from 0 in each text
    places: Tensor  # (M,) int64: flat positions to predict
    labels: Tensor  # (M,) int64
    real: Tensor  # () int64: tokens that are not padding


class MlmFeed:
    """Texts to masked batches. Packs are made once, each of texts of one chunk; each epoch shuffles the chunks, and the packs
    in each, and masks them anew.

    `rows` are the texts of the corpus to use, rising. Without `packing` every text has a row of its own, padded to the longest.
    """

    def __init__(
        self,
        corpus: Corpus,
        rows: np.ndarray,
        *,
        mask_id: int,
        pad_id: int,
        ordinary_ids: np.ndarray,
        pack_tokens: int,
        batch_tokens: int,
        packing: bool = True,
        rate: float = 0.15,
        whole_words: bool = True,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        self.corpus, self.rows = corpus, rows
        self.mask_id, self.pad_id, self.ordinary_ids = mask_id, pad_id, ordinary_ids
        self.rate, self.whole_words, self.shuffle, self.seed = rate, whole_words, shuffle, seed
        lengths = corpus.lengths[rows]
        self.packing, self.pack_tokens = packing, pack_tokens
        bounds = np.searchsorted(rows, np.arange(0, len(corpus) + corpus.chunk, corpus.chunk))
        parts = [
            pack(lengths[start:stop], pack_tokens, seed=seed)
            if packing
            else Packs(np.arange(stop - start, dtype=np.int64), np.arange(stop - start + 1, dtype=np.int64))
            for start, stop in pairwise(bounds)
        ]
        self.packs = joined(parts)
        self.chunks = ends(np.array([len(part) for part in parts], np.int64))  # pack numbers where each chunk begins
        self.packs_per_batch = max(1, batch_tokens // (pack_tokens if packing else max(1, round(float(lengths.mean())))))

    @property
    def tokens(self) -> int:
        """Real tokens of one epoch."""
        return int(self.corpus.lengths[self.rows].sum())

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Pack numbers of each batch, all of one chunk."""
        batches = []
        for chunk in self._order(len(self.chunks) - 1, epoch):
            start, stop = self.chunks[chunk : chunk + 2]
            order = start + self._order(int(stop - start), epoch)
            batches += [order[first : first + self.packs_per_batch] for first in range(0, len(order), self.packs_per_batch)]
        return batches

    def collate(self, numbers: np.ndarray, generator: np.random.Generator) -> MlmBatch:
        """Pack, mask, to tensors."""
        _, laid = self.lay_out(numbers)
        masked = mask_tokens(
            laid.tokens,
            laid.words,
            mask_id=self.mask_id,
            ordinary_ids=self.ordinary_ids,
            generator=generator,
            rate=self.rate,
            whole_words=self.whole_words,
        )
        return MlmBatch(
            tokens=torch.from_numpy(masked.tokens),
            texts=torch.from_numpy(laid.texts),
            positions=torch.from_numpy(laid.positions),
            places=torch.from_numpy(masked.places),
            labels=torch.from_numpy(masked.labels),
            real=torch.tensor(int((laid.texts >= 0).sum())),
        )

    def lay_out(self, numbers: np.ndarray) -> tuple[np.ndarray, PackedTokens]:
        """Some packs, not masked, and the corpus rows of their texts, in order."""
        starts = self.packs.offsets[numbers]
        sizes = self.packs.offsets[numbers + 1] - starts
        rows = self.rows[self.packs.rows[ranges(starts, sizes)]]
        capacity = self.pack_tokens if self.packing else int(self.corpus.lengths[rows].max())
        return rows, self.corpus.packed(rows, sizes, capacity=capacity, pad_id=self.pad_id)

    def _order(self, count: int, epoch: int) -> np.ndarray:
        return shuffled(count, seed=self.seed, epoch=epoch) if self.shuffle else np.arange(count)


class Mlm(nn.Module):
    """Cross-entropy on the masked tokens only."""

    name = "mlm"

    def forward(self, model: LanguageModel, batch: MlmBatch) -> Tensor:
        """Mean loss in nats per masked token; 0 where a batch of few words has none."""
        return mean_cross_entropy(self.logits(model, batch), batch.labels)

    def logits(self, model: LanguageModel, batch: MlmBatch) -> Tensor:
        """(M, V) at the masked places."""
        states = model(batch.tokens, batch.texts, batch.positions)
        return model.logits(states.flatten(0, 1)[batch.places])

    def weight(self, batch: MlmBatch) -> int:
        """Predictions in the batch."""
        return len(batch.labels)


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean in nats of the predictions (M, V), in float32; 0 where there are none."""
    return nn.functional.cross_entropy(logits.float(), labels, reduction="sum") / max(len(labels), 1)


class MlmScore(NamedTuple):
    """Held-out quality over masked tokens."""

    tokens: int
    loss: float
    """Nats per masked token."""
    accuracy: float
    """Share of masked tokens whose likeliest prediction is right."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return float(np.exp(min(self.loss, 700.0)))

    def as_dict(self) -> dict[str, float]:
        """JSON-safe values."""
        return {"tokens": self.tokens, "loss": self.loss, "perplexity": self.perplexity, "accuracy": self.accuracy}


def score_mlm(model: LanguageModel, feed: MlmFeed, *, device: str, seed: int) -> MlmScore:
    """Loss and accuracy of `model` on a feed, with masks that depend on `seed` alone."""
    loss, right, tokens = 0.0, 0, 0
    was_training = model.training
    model.eval().to(device)
    with torch.inference_mode():
        for number, item in enumerate(feed.plan(0)):
            batch = feed.collate(item, np.random.default_rng([seed, number]))
            batch = MlmBatch(*(tensor.to(device) for tensor in batch))
            logits = Mlm().logits(model, batch).float()
            loss += float(nn.functional.cross_entropy(logits, batch.labels, reduction="sum"))
            right += int((logits.argmax(dim=1) == batch.labels).sum())
            tokens += len(batch.labels)
    model.train(was_training)
    return MlmScore(tokens, loss / max(1, tokens), right / max(1, tokens))


def score_unigram(train: MlmFeed, feed: MlmFeed, *, vocabulary: int, seed: int) -> MlmScore:
    """What the frequencies of training tokens alone give (add-one smoothed), on the same masks."""
    counts = np.ones(vocabulary)
    for start in range(0, len(train.rows), 8192):
        tokens, words, _ = train.corpus.token_lists(train.rows[start : start + 8192])
        counts += np.bincount(tokens[words >= 0], minlength=vocabulary)
    log_probability = np.log(counts / counts.sum())
    labels = np.concatenate(
        [feed.collate(item, np.random.default_rng([seed, number])).labels.numpy() for number, item in enumerate(feed.plan(0))]
    )
    accuracy = float((labels == counts.argmax()).mean()) if len(labels) else 0.0
    return MlmScore(len(labels), float(cast(float, -log_probability[labels].sum())) / max(1, len(labels)), accuracy)
