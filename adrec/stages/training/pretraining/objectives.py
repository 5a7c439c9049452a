"""From a pretraining config to its objectives and their data."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
from torch import nn

from adrec.config.training.pretrain import ContrastiveObjective, DaeObjective, NspObjective, PretrainConfig
from adrec.data.text.corpus import Corpus
from adrec.data.text.mixture import Mixture
from adrec.data.text.pairs import Pairs, both_of, part_pairs, text_pairs
from adrec.errors import DataError
from adrec.models.text.language_model import LanguageModel
from adrec.models.text.pooling import Pool
from adrec.stages.training.pretraining.feeds import masked_feed
from adrec.training.mlm_module import Feed
from adrec.training.objectives.contrastive import Contrastive, ContrastiveFeed
from adrec.training.objectives.dae import Dae, DaeFeed
from adrec.training.objectives.mlm import Mlm, MlmFeed
from adrec.training.objectives.nsp import Nsp, NspFeed
from adrec.training.objectives.texts import TokenTable

BATCH_TEXTS = 32
"""Pairs (nsp) and texts (dae) a batch; their losses look at no other text of the batch, so its size changes little."""
DELETE_RATE = 0.6
"""Share of tokens that dae deletes, the best of Wang et al. (2021)."""

HELD_OUT_PAIRS = 0.05
MOST_HELD_OUT_PAIRS = 2048


@dataclass
class Objectives:
    """What the training minimises: modules, their weights, training and held-out feeds, all in one order."""

    modules: list[nn.Module] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    train: list[Feed] = field(default_factory=list)
    valid: list[Feed] = field(default_factory=list)

    def add(self, module: nn.Module, weight: float, train: Feed, valid: Feed) -> None:
        """One more objective."""
        self.modules.append(module)
        self.weights.append(weight)
        self.train.append(train)
        self.valid.append(valid)


@dataclass(frozen=True)
class _Source:
    """What every objective is made from."""

    config: PretrainConfig
    model: LanguageModel
    pool: Pool
    corpus: Corpus
    tokenizer: Any
    mixture: Mixture

    def tokens(self, texts: Any) -> TokenTable:
        return TokenTable(texts, self.tokenizer, max_tokens=self.config.batches.max_tokens)

    def corpus_texts(self) -> np.ndarray:
        table = pq.read_table(self.mixture.path, columns=["text"])
        return np.asarray(table.column("text").to_numpy()[: len(self.corpus)])

    def usable(self) -> tuple[np.ndarray, np.ndarray]:
        """Training and held-out texts with something between their special tokens; the former as often as an epoch has them."""
        usable, held_out = self.corpus.lengths > 2, self.corpus.held_out
        training = self.mixture.balanced(np.flatnonzero(~held_out & usable), seed=self.config.seed)
        return training, np.flatnonzero(held_out & usable)


def build_objectives(
    config: PretrainConfig, model: LanguageModel, pool: Pool, corpus: Corpus, tokenizer: Any, mixture: Mixture
) -> Objectives:
    """Objectives in the config's order. Raises DataError where a folder lacks what one of them needs."""
    source, chosen, made = _Source(config, model, pool, corpus, tokenizer, mixture), config.objectives, Objectives()
    if config.objectives.mlm is not None:
        training, held_out = source.usable()
        made.add(
            Mlm(),
            config.objectives.mlm.weight,
            mlm_feed(config, corpus, tokenizer, training, shuffle=True),
            mlm_feed(config, corpus, tokenizer, held_out, shuffle=False),
        )
    if (chosen.nsp or chosen.dae or chosen.contrastive) and tokenizer.cls_token_id is None:
        raise DataError("objectives nsp, dae and contrastive need a tokenizer with [CLS] and [SEP].")
    if chosen.nsp is not None:
        _add_nsp(made, chosen.nsp, source)
    if chosen.dae is not None:
        _add_dae(made, chosen.dae, source)
    if chosen.contrastive is not None:
        _add_contrastive(made, chosen.contrastive, source)
    return made


def mlm_feed(config: PretrainConfig, corpus: Corpus, tokenizer: Any, rows: np.ndarray, *, shuffle: bool) -> MlmFeed:
    """Masked batches of some texts, as the config says."""
    mlm = config.objectives.mlm
    masking = {"rate": mlm.rate, "whole_words": mlm.whole_words} if mlm else {}
    return masked_feed(corpus, rows, tokenizer, config.batches, shuffle=shuffle, seed=config.seed, **masking)


def _add_nsp(made: Objectives, settings: NspObjective, source: _Source) -> None:
    made_of = part_pairs if settings.pairs == "parts" else partial(text_pairs, kinds=frozenset({"clicks"}))
    seed = source.config.seed
    parts = source.mixture.pairs(made_of, HELD_OUT_PAIRS, most=MOST_HELD_OUT_PAIRS, seed=seed)
    tokens, pairs = source.tokens(parts[0].texts), both_of(*parts)
    feeds = [
        NspFeed(part, pairs, tokens, batch_texts=BATCH_TEXTS, shuffle=shuffle, seed=seed)
        for part, shuffle in zip(parts, (True, False), strict=True)
    ]
    made.add(Nsp(source.model.dimension), settings.weight, feeds[0], feeds[1])


def _add_dae(made: Objectives, settings: DaeObjective, source: _Source) -> None:
    tokens = source.tokens(source.corpus_texts())
    feeds = [
        DaeFeed(
            rows,
            tokens,
            delete_rate=DELETE_RATE,
            batch_texts=BATCH_TEXTS,
            shuffle=shuffle,
            seed=source.config.seed,
        )
        for rows, shuffle in zip(source.usable(), (True, False), strict=True)
    ]
    embedding = int(cast(Any, source.model.backbone).get_input_embeddings().weight.shape[1])
    module = Dae(
        source.pool,
        dimension=source.model.dimension,
        embedding=embedding,
        max_tokens=source.config.batches.max_tokens,
    )
    made.add(module, settings.weight, feeds[0], feeds[1])


def _add_contrastive(made: Objectives, settings: ContrastiveObjective, source: _Source) -> None:
    seed = source.config.seed
    kinds = frozenset(settings.positives)
    if kinds == {"dropout"}:
        texts = source.corpus_texts()
        share = np.full(len(texts), 1 / len(texts))
        train, valid = (Pairs(texts, rows, rows, share) for rows in source.usable())
    else:
        made_of = partial(text_pairs, kinds=kinds, window=settings.window)
        train, valid = source.mixture.pairs(made_of, HELD_OUT_PAIRS, most=MOST_HELD_OUT_PAIRS, seed=seed)
        texts = train.texts
    tokens = source.tokens(texts)
    log_q = kinds != {"dropout"}
    feeds = [
        ContrastiveFeed(part, tokens, batch_texts=settings.batch_texts, log_q=log_q, shuffle=shuffle, seed=seed)
        for part, shuffle in ((train, True), (valid, False))
    ]
    made.add(Contrastive(source.pool, temperature=settings.temperature), settings.weight, feeds[0], feeds[1])
