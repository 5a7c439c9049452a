"""How near a candidate's text is to what the user declared and asked for: cosines that the network reads, for baselines.

Without them a tree would be blind to interests and queries, and a poor rival.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from adrec.data.collate import QueryInputs, TextInputs
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
    found: dict[str, Floats] = {}
    pieces = [slice(end - width, end) for end, width in zip(accumulate(parts), parts, strict=True)]
    for number, piece in enumerate(pieces):
        unit = unit_rows(ads.vectors[:, piece])
        suffix = f"_{number + 1}" if len(pieces) > 1 else ""
        if interests is not None:
            mean, nearest = _to_interests(examples, unit, interests, piece)
            found |= {f"interest_mean{suffix}": mean, f"interest_nearest{suffix}": nearest}
        if queries is not None:
            asked = queries(examples.queries).vectors
            assert asked is not None
            query = unit_rows(asked.numpy()[:, piece])
            found[f"query{suffix}"] = row_products(query, unit, examples.query, examples.ad_index)
    return found


def _to_interests(examples: Examples, unit: Floats, interests: TextInputs, piece: slice) -> tuple[Floats, Floats]:
    """(N,) cosine to the mean of the interests' unit vectors, and to the nearest of them."""
    mean, nearest = np.zeros(len(examples), np.float32), np.zeros(len(examples), np.float32)
    for rows in _chunks(len(examples), 8 * unit.shape[1]):
        users, user = np.unique(examples.user_index[rows], return_inverse=True)
        vectors = interests(users.astype(np.int64)).vectors
        assert vectors is not None
        told = vectors.numpy()[..., piece]
        told = told if told.ndim == 3 else told[:, None]  # (U, P, D)
        own = unit_rows(told.reshape(-1, told.shape[2])).reshape(told.shape)
        there = np.linalg.norm(own, axis=2) > 0  # (U, P)
        ad = unit[examples.ad_index[rows]]  # (n, D)
        cosine = np.einsum("npd,nd->np", own[user], ad)
        best = np.where(there[user], cosine, -np.inf).max(axis=1)
        nearest[rows] = np.where(np.isfinite(best), best, 0.0)
        mean[rows] = (unit_rows(own.sum(axis=1))[user] * ad).sum(axis=1)
    return mean, nearest


def _chunks(rows: int, each: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers in pieces that take about _CHUNK_CELLS numbers, at `each` a row."""
    step = max(1, _CHUNK_CELLS // max(1, each))
    for start in range(0, rows, step):
        yield np.arange(start, min(start + step, rows))
