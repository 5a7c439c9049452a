"""How near a candidate is to the user's history, for every row at once. Costs one small matrix product a history.

Shapes: N rows, R histories, A ads, D width. Histories are processed in blocks of similar size, padded and masked, so that
a row's numbers do not depend on which other rows are present. Products are summed in double precision: in single precision the
last bits depend on what is multiplied beside them, and a tree may split just there.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adrec.data.arrays import ranges
from adrec.data.examples import Catalog
from adrec.models.baselines.base import Floats, Inputs

Rows = Callable[[NDArray[np.integer]], Floats]
"""Row numbers (n,) → vectors (n, D)."""
_BLOCK_CELLS = 4_000_000
STATISTICS = ("mean", "max", "top3", "last1", "last5", "soft", "recent")
"""Columns of `history_similarities`."""
_SHARPNESS = 10.0
_HALF_LIFE_CLICKS = 10.0


def history_similarities(inputs: Inputs, vectors: Floats | Rows) -> Floats:
    """(N, 7) cosines of candidate and clicked ads, summed up as STATISTICS; 0 where the history is empty.

    mean: cosine with the mean of the history's unit vectors. max, top3: largest, mean of the three largest. last1, last5: the
    newest, mean of the newest five. soft: log-mean-exp at sharpness 10, between mean and max. recent: mean weighted by
    halving every ten clicks back. `vectors` (A, D) need not be of unit length; or what gives the rows asked for, where they are
    too many to hold.
    """
    unit = unit_rows(vectors).__getitem__ if isinstance(vectors, np.ndarray) else _units_of(vectors)
    result = np.zeros((len(inputs), len(STATISTICS)), np.float32)
    for block in _blocks(inputs, unit(np.zeros(1, np.int64)).shape[-1] if len(inputs.ads) else 0):
        clicked = unit(block.history).astype(np.float64) * block.mask[..., None]  # (B, H, D)
        cosine = np.matmul(unit(block.candidate).astype(np.float64), clicked.transpose(0, 2, 1))  # (B, C, H)
        summary = _summaries(cosine, block.mask, clicked)
        result[block.rows] = summary[block.row_of, block.column_of]
    return result


def paired_cosines(
    left: Rows, right: Rows, left_rows: NDArray[np.integer], right_rows: NDArray[np.integer], *, chunk: int = 16_384
) -> Floats:
    """(N,) cosine of the vectors at `left_rows[i]` and `right_rows[i]`; 0 where either is zero."""
    result = np.zeros(len(left_rows), np.float32)
    for start in range(0, len(left_rows), chunk):
        part = slice(start, start + chunk)
        units = unit_rows(left(left_rows[part])), unit_rows(right(right_rows[part]))
        result[part] = np.einsum("nd,nd->n", *units, dtype=np.float64)
    return result


def _units_of(vectors: Rows) -> Rows:
    """Rows of any shape of ad numbers as unit vectors, each distinct ad read once."""

    def units(rows: NDArray[np.integer]) -> Floats:
        used, place = np.unique(rows, return_inverse=True)
        found: Floats = unit_rows(vectors(used))[place.reshape(rows.shape)]
        return found

    return units


def mean_history(inputs: Inputs, vectors: Floats) -> Floats:
    """(R, D) mean of the unit vectors of each history; zeros where it is empty."""
    counts = history_matrix(inputs, np.arange(len(inputs.ads)), len(inputs.ads))
    lengths = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
    return np.asarray(counts @ unit_rows(vectors) / lengths[:, None], dtype=np.float32)


def history_matrix(
    inputs: Inputs, place: NDArray[np.int64], width: int, *, half_life: float | None = None
) -> sparse.csr_matrix:
    """(R, width) click counts of each history; ads whose `place` is -1 are left out.

    With `half_life` the newest click counts 1, the click that many places earlier one half, and so on.
    """
    offsets, values = inputs.examples.history_offsets, place[inputs.examples.history_values]
    lengths = np.diff(offsets)
    row = np.repeat(np.arange(len(lengths)), lengths)
    weight = np.ones(len(values), np.float32)
    if half_life is not None:
        back = np.repeat(offsets[1:], lengths) - 1 - np.arange(len(values))
        weight = np.exp2(-back / half_life).astype(np.float32)
    is_known = values >= 0
    return sparse.csr_matrix((weight[is_known], (row[is_known], values[is_known])), shape=(len(lengths), width))


def category_shares(inputs: Inputs, catalog: Catalog, column: int) -> Floats:
    """(N,) share of the history whose category equals the candidate's; 0 for an empty history or an unknown category."""
    codes = catalog.categorical[:, column].astype(np.int64)
    width = int(codes.max(initial=0)) + 1
    counts = history_matrix(inputs, codes, width)
    lengths = np.maximum(np.diff(inputs.examples.history_offsets), 1)
    candidate = codes[inputs.examples.ad_index]
    picked = picked_cells(counts, inputs.examples.history_of_row, candidate) / lengths[inputs.examples.history_of_row]
    return np.where(candidate > 0, picked, 0.0).astype(np.float32)


def list_shares(inputs: Inputs, catalog: Catalog, name: str) -> Floats:
    """(N,) mean over the history of the share of the candidate's list values (genres, tags) that the clicked ad has too."""
    indicator = list_indicator(catalog, name)
    sizes = np.maximum(np.asarray(indicator.sum(axis=1)).ravel(), 1.0)
    counts = history_matrix(inputs, np.arange(len(catalog)), len(catalog))
    lengths = np.maximum(np.diff(inputs.examples.history_offsets), 1)
    profile = sparse.diags(1.0 / lengths) @ counts @ indicator
    shared = row_products(profile, indicator, inputs.examples.history_of_row, inputs.examples.ad_index)
    return np.asarray(shared / sizes[inputs.examples.ad_index], dtype=np.float32)


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


def unit_rows(vectors: Floats) -> Floats:
    """Each row divided by its length; zero rows stay zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), dtype=np.float32)


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


class _Block(NamedTuple):
    """B histories of a similar size: their H clicks and their C candidate rows, padded."""

    history: NDArray[np.int64]
    """(B, H) ads"""
    mask: Floats
    """(B, H) 1 for a click"""
    candidate: NDArray[np.int64]
    """(B, C) ads"""
    rows: NDArray[np.int64]
    """(M,) rows of the inputs that the block answers"""
    row_of: NDArray[np.int64]
    """(M,) their place among the B histories"""
    column_of: NDArray[np.int64]
    """(M,) their place among the C candidates"""


def _blocks(inputs: Inputs, width: int) -> Iterator[_Block]:
    """Histories that have clicks and candidates, cut so that a block's arrays stay near `_BLOCK_CELLS` numbers."""
    examples = inputs.examples
    clicks = np.diff(examples.history_offsets)
    by_history = np.argsort(examples.history_of_row, kind="stable")
    candidates = np.bincount(examples.history_of_row, minlength=len(clicks))
    first = np.cumsum(candidates) - candidates
    order = np.lexsort((candidates, clicks))
    order = order[(clicks[order] > 0) & (candidates[order] > 0)]
    start = 0
    while start < len(order):
        ahead = order[start : start + 4096]
        h, c = np.maximum.accumulate(clicks[ahead]), np.maximum.accumulate(candidates[ahead])
        cells = np.arange(1, len(ahead) + 1) * ((h + c) * width + h * c)
        count = max(int(np.searchsorted(cells, _BLOCK_CELLS, side="right")), 1)
        chosen = ahead[:count]
        history, mask = _padded(examples.history_values, examples.history_offsets[chosen], clicks[chosen])
        rows, _ = _padded(by_history, first[chosen], candidates[chosen])
        row_of = np.repeat(np.arange(count), candidates[chosen])
        column_of = ranges(np.zeros(count, np.int64), candidates[chosen])
        yield _Block(history, mask, examples.ad_index[rows].astype(np.int64), rows[row_of, column_of], row_of, column_of)
        start += count


def _padded(
    values: NDArray[np.integer], starts: NDArray[np.integer], lengths: NDArray[np.integer]
) -> tuple[NDArray[np.int64], Floats]:
    """Slices of `values` as the rows of a matrix, repeating each slice's first value as padding at the end; and the mask."""
    place = np.arange(int(lengths.max()))[None, :]
    mask = place < lengths[:, None]
    return values[starts[:, None] + np.where(mask, place, 0)].astype(np.int64), mask.astype(np.float32)


def _summaries(cosine: NDArray[np.float64], mask: Floats, clicked: NDArray[np.float64]) -> Floats:
    """(B, C, 7) from cosines (B, C, H), mask (B, H) and masked unit vectors (B, H, D). Clicks come before padding."""
    count = mask.sum(axis=1)  # (B,)
    last = (count - 1).astype(np.int64)
    place = np.arange(mask.shape[1])[None, :]
    newest5 = mask * (place > (last - 5)[:, None])
    recent = mask * np.exp2((place - last[:, None]) / _HALF_LIFE_CLICKS)
    norm = np.linalg.norm(clicked.sum(axis=1), axis=1)  # (B,)
    hidden = np.where(mask[:, None, :] > 0, cosine, -np.inf)
    top = np.sort(hidden, axis=2)[..., ::-1][..., :3]
    shown = np.isfinite(top)
    top3 = np.where(shown, top, 0.0).sum(axis=2) / shown.sum(axis=2)
    peak = top[..., 0]
    soft = np.log(np.exp(_SHARPNESS * (hidden - peak[..., None])).sum(axis=2) / count[:, None]) / _SHARPNESS + peak
    columns = [
        cosine.sum(axis=2) / np.where(norm > 0, norm, 1.0)[:, None],
        peak,
        top3,
        np.take_along_axis(cosine, last[:, None, None], axis=2)[..., 0],
        _weighted(cosine, newest5),
        soft,
        _weighted(cosine, recent),
    ]
    return np.stack(columns, axis=-1).astype(np.float32)


def _weighted(cosine: NDArray[np.float64], weight: Floats) -> Floats:
    return np.asarray(np.einsum("bch,bh->bc", cosine, weight) / weight.sum(axis=1)[:, None], dtype=np.float32)
