"""Texts of a prepared folder as the batches of a config say: token ids, and masked batches of them."""

from pathlib import Path
from typing import Any

import numpy as np

from adrec.config.training.pretrain import Batches
from adrec.data.text.corpus import Corpus, open_corpus, ordinary_ids
from adrec.terminal import Terminal
from adrec.training.objectives.mlm import MlmFeed


def tokenised(path: Path, tokenizer: Any, batches: Batches, *, cache: Path, terminal: Terminal) -> Corpus:
    """The corpus file `path` as token ids, which are kept in `cache` unless they are streamed."""
    with terminal.progress("tokenising", unit="texts"):
        return open_corpus(
            path,
            tokenizer,
            max_tokens=batches.max_tokens,
            cache=cache,
            streamed=batches.streamed,
            chunk=batches.chunk_texts,
        )


def masked_feed(
    corpus: Corpus, rows: np.ndarray, tokenizer: Any, batches: Batches, *, shuffle: bool, seed: int, **masking: Any
) -> MlmFeed:
    """Masked batches of the texts `rows` (N,) of the corpus. `masking`: what `MlmFeed` takes beside, for other than its usual
    rate and words.
    """
    return MlmFeed(
        corpus,
        rows,
        mask_id=tokenizer.mask_token_id,
        pad_id=tokenizer.pad_token_id,
        ordinary_ids=ordinary_ids(tokenizer),
        pack_tokens=batches.pack_tokens,
        batch_tokens=batches.batch_tokens,
        packing=batches.packing,
        shuffle=shuffle,
        seed=seed,
        **masking,
    )
