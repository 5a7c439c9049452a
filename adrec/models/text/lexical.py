"""Which words a text has, beside what the encoder makes of it: latent semantic analysis over the encoder's own tokens.

A small language model trained on a few thousand ads knows less of rare words than plain co-occurrence does. TF-IDF weights and
a truncated SVD of the ads' tokens (Deerwester et al. 1990) give each token a vector, row i of the table being
idf_i v_i; a text is the sum over its tokens. The table travels inside the text encoder.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from adrec.models.text.text_encoder import TextEncoder

MOST_COMMON = 0.5
"""Tokens of more than this share of the texts say nothing, like those of a single text."""


def fit_lexical(encoder: "TextEncoder", texts: Sequence[str], width: int, *, seed: int = 42) -> NDArray[np.float32]:
    """A vector for every token of the encoder's vocabulary, (V, width) float32; zero for tokens that say nothing.

    `width` is lowered to what the texts can carry; the result then ends in zero columns.
    """
    from scipy import sparse
    from scipy.sparse.linalg import svds

    ids = encoder.token_ids(list(dict.fromkeys(texts)))
    vocabulary = max(encoder.tokenizer.get_vocab().values()) + 1
    row = np.repeat(np.arange(len(ids)), [len(tokens) for tokens in ids])
    column = np.concatenate([np.asarray(tokens, np.int64) for tokens in ids]) if ids else np.zeros(0, np.int64)
    counts = sparse.csr_matrix((np.ones(len(row)), (row, column)), (max(len(ids), 1), vocabulary))
    frequency = np.asarray((counts > 0).sum(axis=0)).ravel()
    told = (frequency >= 2) & (frequency <= MOST_COMMON * len(ids))
    idf = np.where(told, np.log((1 + len(ids)) / (1 + frequency)) + 1, 0.0)
    weighted = counts.copy()
    weighted.data = 1 + np.log(weighted.data)
    weighted = weighted @ sparse.diags(idf)
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    weighted = sparse.diags(1 / np.maximum(length, 1e-12)) @ weighted
    table = np.zeros((vocabulary, width), np.float32)
    rank = min(width, min(weighted.shape) - 1, int(told.sum()) - 1)
    if rank > 0:
        start = np.random.default_rng(seed).normal(size=min(weighted.shape))
        _, strength, directions = svds(weighted, k=rank, v0=start)
        order = np.argsort(-strength)
        directions = directions[order]
        directions *= np.sign(directions[np.arange(rank), np.abs(directions).argmax(axis=1)])[:, None]
        table[:, :rank] = directions.T * idf[:, None]
    return table
