"""From a pretraining config to its objectives and their data."""

from typing import Any

import numpy as np
from torch import nn

from adrec.config.pretrain import PretrainConfig
from adrec.data.corpus import Corpus, ordinary_ids
from adrec.data.prepared import Prepared
from adrec.models.language_model import LanguageModel
from adrec.training.mlm_module import Feed
from adrec.training.objectives.mlm import Mlm, MlmFeed


def build_objectives(
    config: PretrainConfig, model: LanguageModel, corpus: Corpus, tokenizer: Any, prepared: Prepared
) -> tuple[list[nn.Module], list[float], list[Feed], list[Feed]]:
    """Objectives, their weights, and their training and held-out feeds, in the config's order."""
    objectives: list[nn.Module] = []
    weights: list[float] = []
    train: list[Feed] = []
    valid: list[Feed] = []
    usable = corpus.lengths > 2
    training_rows, held_out_rows = np.flatnonzero(~corpus.held_out & usable), np.flatnonzero(corpus.held_out & usable)
    if config.objectives.mlm is not None:
        objectives.append(Mlm())
        weights.append(config.objectives.mlm.weight)
        train.append(mlm_feed(config, corpus, tokenizer, training_rows, shuffle=True))
        valid.append(mlm_feed(config, corpus, tokenizer, held_out_rows, shuffle=False))
    return objectives, weights, train, valid


def mlm_feed(config: PretrainConfig, corpus: Corpus, tokenizer: Any, rows: np.ndarray, *, shuffle: bool) -> MlmFeed:
    """Masked batches of some texts, as the config says."""
    mlm, batches = config.objectives.mlm, config.batches
    return MlmFeed(
        corpus,
        rows,
        mask_id=tokenizer.mask_token_id,
        pad_id=tokenizer.pad_token_id,
        ordinary_ids=ordinary_ids(tokenizer),
        pack_tokens=batches.pack_tokens,
        batch_tokens=batches.batch_tokens,
        packing=batches.packing,
        rate=mlm.rate if mlm else 0.15,
        whole_words=mlm.whole_words if mlm else True,
        shuffle=shuffle,
        seed=config.seed,
    )
