"""How near a candidate's text is to what the user declared and asked for: cosines that the network reads, for baselines.

Without them a tree would be blind to interests and queries, and a poor rival.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from adrec.data.batches.collate import QueryInputs, TextInputs
from adrec.data.examples import Catalog, Examples
from adrec.models.baselines.base import Floats
from adrec.models.baselines.similarity import row_products, unit_rows

_CHUNK_CELLS = 8_000_000


def declared_columns(
    examples: Examples, ads: Catalog, interests: TextInputs | None, queries: QueryInputs | None, parts: Sequence[int]
) -> dict[str, Floats]:
    """Columns (N,) for each part of a text vector (`parts` are their widths): cosine of the candidate to the mean interest,
    to the nearest interest, to the query; 0 where there is none. Empty where the ads carry no vectors.

    `interests` gives (U, P, D) vectors of users, zero where there is no interest; `queries` those of query texts.
    """
    if ads.vectors is None or not ads.vectors.shape[1]:
        return {}
    pieces = [slice(end - width, end) for end, width in zip(accumulate(parts), parts, strict=True)]
    used, ad = np.unique(examples.ad_index, return_inverse=True)  # a few of a large catalogue, where requests are ranked
    vectors = ads.vectors[used]
    units = [unit_rows(vectors[:, piece]) for piece in pieces]
    nearness = _to_interests(examples, ad, units, pieces, interests) if interests is not None else None
    asked = queries(examples.queries).vectors if queries is not None else None
    columns: dict[str, Floats] = {}
    for number, (piece, unit) in enumerate(zip(pieces, units, strict=True)):
        suffix = f"_{number + 1}" if len(pieces) > 1 else ""
        if nearness is not None:
            columns |= {f"interest_mean{suffix}": nearness[0, number], f"interest_nearest{suffix}": nearness[1, number]}
        if asked is not None:
            query = unit_rows(asked.numpy()[:, piece])
            columns[f"query{suffix}"] = row_products(query, unit, examples.query, ad)
    return columns


def _to_interests(
    examples: Examples,
    candidate: NDArray[np.integer],
    units: Sequence[Floats],
    pieces: Sequence[slice],
    interests: TextInputs,
) -> Floats:
    """(2, parts, N) cosine of the ads `candidate` (N,) to the mean of the interests' unit vectors, and to the nearest."""
    nearness = np.zeros((2, len(pieces), len(examples)), np.float32)
    for rows in _chunks(len(examples), 8 * pieces[-1].stop):
        users, user = np.unique(examples.user_index[rows], return_inverse=True)
        vectors = interests(users.astype(np.int64)).vectors
        assert vectors is not None
        told = vectors.numpy() if vectors.ndim == 3 else vectors.numpy()[:, None]  # (U, P, D)
        for number, (piece, unit) in enumerate(zip(pieces, units, strict=True)):
            part = told[..., piece]
            own = unit_rows(part.reshape(-1, part.shape[2])).reshape(part.shape)
            there = np.linalg.norm(own, axis=2) > 0  # (U, P)
            ad = unit[candidate[rows]]  # (n, piece)
            best = np.where(there[user], np.einsum("npd,nd->np", own[user], ad, dtype=np.float64), -np.inf).max(axis=1)
            nearness[0, number, rows] = np.einsum("nd,nd->n", unit_rows(own.sum(axis=1))[user], ad, dtype=np.float64)
            nearness[1, number, rows] = np.where(np.isfinite(best), best, 0.0)
    return nearness


def _chunks(rows: int, each: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers in pieces that take about _CHUNK_CELLS numbers, at `each` a row."""
    step = max(1, _CHUNK_CELLS // max(1, each))
    for start in range(0, rows, step):
        yield np.arange(start, min(start + step, rows))
