"""Vectors by which candidates are retrieved and lists explained: of ads once, of requests block by block."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from adrec.data.examples import Examples

Floats = NDArray[np.float32]
_CHUNK_FLOATS = 8_000_000


def mean_of_history(examples: Examples, unit_vectors: Floats) -> Floats:
    """(R, E) mean of the unit vectors of each request's clicks; zero without history. `examples` holds R requests."""
    lengths = np.diff(examples.history_offsets)
    clicks = csr_array(
        (np.ones(len(examples.history_values), np.float32), examples.history_values, examples.history_offsets),
        shape=(len(lengths), len(unit_vectors)),
    )
    used, place = np.unique(clicks.indices, return_inverse=True)
    narrow = csr_array((clicks.data, place, clicks.indptr), shape=(len(lengths), max(1, len(used))))
    dense = unit_vectors[used] if len(used) else np.zeros((1, unit_vectors.shape[1]), np.float32)
    total: Floats = (narrow @ dense) / np.maximum(lengths, 1)[:, None]
    return total[examples.history_of_row]


def nearest_click(examples: Examples, unit_vectors: Floats, ad: NDArray[np.integer]) -> tuple[Floats, NDArray[np.integer]]:
    """For the ads (R, N) of R requests: the largest cosine to a past click, and that click's ad row; NaN and -1 where none.

    O(R N H E); memory in chunks of 32 MB.
    """
    requests, slots = ad.shape
    similarity = np.full(ad.shape, np.nan, np.float32)
    nearest = np.full(ad.shape, -1, dtype=np.int64)
    offsets = examples.history_offsets
    lengths = np.diff(offsets)[examples.history_of_row]
    longest = int(lengths.max(initial=0))
    if longest == 0 or unit_vectors.shape[1] == 0:
        return similarity, nearest
    step = max(1, _CHUNK_FLOATS // ((longest + slots) * unit_vectors.shape[1]))
    for start in range(0, requests, step):
        rows = np.arange(start, min(start + step, requests))
        place = offsets[examples.history_of_row[rows], None] + np.arange(longest)
        there = np.asarray(np.arange(longest) < lengths[rows, None])
        clicks = examples.history_values[np.where(there, place, 0)].astype(np.int64)  # (r, H)
        cosine = np.matmul(unit_vectors[np.maximum(ad[rows], 0)], unit_vectors[clicks].transpose(0, 2, 1))  # (r, N, H)
        cosine[~np.broadcast_to(there[:, None, :], cosine.shape)] = -np.inf
        best = cosine.argmax(axis=2)
        known = (ad[rows] >= 0) & there.any(axis=1, keepdims=True)
        similarity[rows] = np.where(known, np.take_along_axis(cosine, best[:, :, None], axis=2)[:, :, 0], np.nan)
        nearest[rows] = np.where(known, np.take_along_axis(clicks, best, axis=1), -1)
    return similarity, nearest
