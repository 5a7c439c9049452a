"""What histories hold, as sparse matrices: clicks by ad, by category, by value of a list; and click rates against skipped ads.

Shapes: N rows, R histories, A ads, D width.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adrec.data.arrays import ranges, unit_rows
from adrec.data.examples import Catalog, Examples
from adrec.data.ragged import Ragged

Floats = NDArray[np.float32]
_STRENGTH = 3.0
"""Impressions at the user's own rate that are added before a rate is taken."""


def mean_history(examples: Examples, vectors: Floats) -> Floats:
    """(R, D) mean of the unit vectors of each history; zeros where it is empty."""
    counts = history_matrix(examples, np.arange(len(vectors)), len(vectors))
    lengths = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
    return np.asarray(counts @ unit_rows(vectors) / lengths[:, None], dtype=np.float32)


def history_matrix(
    examples: Examples, place: NDArray[np.int64], width: int, *, half_life: float | None = None
) -> sparse.csr_matrix:
    """(R, width) click counts of each history; ads whose `place` is -1 are left out.

    With `half_life` the newest click counts 1, the click that many places earlier one half, and so on.
    """
    offsets, values = examples.history_offsets, place[examples.history_values]
    lengths = np.diff(offsets)
    row = np.repeat(np.arange(len(lengths)), lengths)
    weight = np.ones(len(values), np.float32)
    if half_life is not None:
        back = np.repeat(offsets[1:], lengths) - 1 - np.arange(len(values))
        weight = np.exp2(-back / half_life).astype(np.float32)
    is_known = values >= 0
    return sparse.csr_matrix((weight[is_known], (row[is_known], values[is_known])), shape=(len(lengths), width))


def category_shares(examples: Examples, catalog: Catalog, column: int) -> Floats:
    """(N,) share of the history whose category equals the candidate's; 0 for an empty history or an unknown category."""
    codes = catalog.categorical[:, column].astype(np.int64)
    width = int(codes.max(initial=0)) + 1
    counts = history_matrix(examples, codes, width)
    lengths = np.maximum(np.diff(examples.history_offsets), 1)
    candidate = codes[examples.ad_index]
    picked = picked_cells(counts, examples.history_of_row, candidate) / lengths[examples.history_of_row]
    return np.where(candidate > 0, picked, 0.0).astype(np.float32)


def list_shares(examples: Examples, catalog: Catalog, name: str) -> Floats:
    """(N,) mean over the history of the share of the candidate's list values (genres, tags) that the clicked ad has too."""
    indicator = list_indicator(catalog, name)
    sizes = np.maximum(np.asarray(indicator.sum(axis=1)).ravel(), 1.0)
    counts = history_matrix(examples, np.arange(len(catalog)), len(catalog))
    lengths = np.maximum(np.diff(examples.history_offsets), 1)
    profile = sparse.diags(1.0 / lengths) @ counts @ indicator
    shared = row_products(profile, indicator, examples.history_of_row, examples.ad_index)
    return np.asarray(shared / sizes[examples.ad_index], dtype=np.float32)


def like_rate(examples: Examples, values: Ragged) -> Floats:
    """(N,) the user's click rate among earlier ads that share a value with the candidate, the mean over the candidate's values.

    (clicks + s r) / (clicks + skips + s) for each value, with r the user's rate over all values, (clicks + 1) / (shown + 2).
    A candidate without a known value gets r. `values` lists the codes of each ad; code 0 is unknown.
    """
    likes, dislikes = _counts(examples.histories, values), _counts(examples.skipped, values)
    clicks, skips = np.diff(examples.history_offsets), np.diff(examples.skipped_offsets)
    own = ((clicks + 1) / (clicks + skips + 2))[examples.history_of_row]
    candidate = values.take(examples.ad_index)
    row = np.repeat(np.arange(len(examples)), candidate.lengths)
    known = candidate.values > 0
    row, code = row[known], candidate.values[known]
    place = examples.history_of_row[row]
    liked, disliked = picked_cells(likes, place, code), picked_cells(dislikes, place, code)
    rate = (liked + _STRENGTH * own[row]) / (liked + disliked + _STRENGTH)
    count = np.bincount(row, minlength=len(examples))
    total = np.bincount(row, rate, len(examples))
    return np.where(count > 0, total / np.maximum(count, 1), own).astype(np.float32)


def one_each(codes: NDArray[np.int32]) -> Ragged:
    """One value an ad."""
    return Ragged(np.arange(len(codes) + 1, dtype=np.int64), codes)


def list_indicator(catalog: Catalog, name: str) -> sparse.csr_matrix:
    """(A, K) 1 where the ad's list has the value; the unknown value 0 is left out."""
    lists = catalog.lists[name]
    row, values = np.repeat(np.arange(len(lists)), lists.lengths), lists.values
    known = values > 0
    matrix = sparse.csr_matrix(
        (np.ones(int(known.sum()), np.float32), (row[known], values[known])),
        shape=(len(lists), int(values.max(initial=0)) + 1),
    )
    matrix.data[:] = 1.0
    return matrix


def sparse_unit_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """`unit_rows` of a sparse matrix."""
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1.0 / np.where(length > 0, length, 1.0)) @ matrix)


def picked_cells(matrix: sparse.csr_matrix, rows: NDArray[np.integer], columns: NDArray[np.integer]) -> Floats:
    """`matrix[rows[i], columns[i]]` for every i, float32."""
    if len(rows) == 0 or matrix.shape[1] == 0:
        return np.zeros(len(rows), np.float32)
    return np.asarray(sparse.csr_matrix(matrix)[rows, columns], dtype=np.float32).ravel()


def row_products(
    left: sparse.csr_matrix | Floats,
    right: sparse.csr_matrix | Floats,
    left_rows: NDArray[np.integer],
    right_rows: NDArray[np.integer],
    *,
    chunk: int = 50_000,
) -> Floats:
    """Dot product of `left[left_rows[i]]` and `right[right_rows[i]]` for every i, (N,) float32; dense or sparse alike."""
    result = np.zeros(len(left_rows), np.float32)
    for start in range(0, len(left_rows), chunk):
        block = slice(start, start + chunk)
        a, b = left[left_rows[block]], right[right_rows[block]]
        if sparse.issparse(a):
            result[block] = np.asarray(a.multiply(b).sum(axis=1)).ravel()
        else:
            result[block] = np.einsum("nd,nd->n", a, b, dtype=np.float64)
    return result


def _counts(lists: Ragged, values: Ragged) -> sparse.csr_matrix:
    """(R, K) how often each code occurs among the ads of each list."""
    owner, ads = np.repeat(np.arange(len(lists)), lists.lengths), lists.values
    lengths = values.lengths[ads]
    code = values.values[ranges(values.offsets[ads], lengths)]
    ones = np.ones(len(code), np.float32)
    shape = (len(lists), int(values.values.max(initial=0)) + 1)
    return sparse.csr_matrix((ones, (np.repeat(owner, lengths), code)), shape=shape)
