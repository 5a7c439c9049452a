"""Sort rows inside their groups and describe the runs of equal scores, a cacheful of rows at a time.

Only runs that hold a relevant row are kept: the metrics of order are sums over relevant rows, so what the others add is
already in their counts. Cost: about one sort of the rows.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from adrec.metrics.ties import ArrayLike, Floats, Ints, descending_keys, run_starts

Counts = npt.NDArray[np.int32]
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class TieBlocks:
    """B runs of equal scores with a relevant row (label > 0), in the order of the G groups and of falling score."""

    sizes: Ints
    """(G,) rows of each group."""
    n: Counts
    """(B,) rows of each block."""
    m: Counts
    """(B,) relevant ones among them."""
    above: Counts
    """(B,) rows of the group with a higher score."""
    clicks_above: Counts
    """(B,) relevant ones among those."""
    group: Counts
    """(B,) which group, in [0, G)."""
    labels: Floats
    """(sum of m,) labels of the relevant rows, block by block; empty where all are 1."""


def tie_blocks(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> TieBlocks:
    """Blocks of rows (N,); groups by their sorted distinct values. Raises ValueError on unequal lengths or NaN scores."""
    y, s, g = np.asarray(labels), np.asarray(scores), np.asarray(groups)
    if not np.issubdtype(s.dtype, np.floating):
        s = s.astype(np.float64)
    if y.ndim != 1 or not y.shape == s.shape == g.shape:
        raise ValueError(f"labels {y.shape}, scores {s.shape} and groups {g.shape} must be equally long and one-dimensional")
    if np.isnan(s).any():
        raise ValueError("scores hold NaN")
    if not bool((g[1:] >= g[:-1]).all()):
        together = np.argsort(g, kind="stable")
        y, s, g = y[together], s[together], g[together]
    first_row = run_starts(g)
    is_graded = y.dtype != np.bool_ and bool(((y != 0) & (y != 1)).any())
    blocks = int(np.count_nonzero(y > 0))  # at most
    n, m, above, clicks_above, group = (np.empty(blocks, dtype=np.int32) for _ in range(5))
    held: list[Floats] = []
    filled = 0
    for first, last in _parts(first_row, len(y)):
        rows = slice(first_row[first], first_row[last] if last < len(first_row) else len(y))
        local = np.repeat(np.arange(last - first), np.diff(first_row[first:last], append=rows.stop))
        key = (local.astype(np.uint64) << np.uint64(32)) | descending_keys(s[rows])
        order = np.argsort(key)
        key, label = key[order], y[rows][order]
        starts = np.append(run_starts(key), len(label))
        clicks = np.concatenate([[0], np.cumsum(label > 0)])
        before = clicks[starts]
        hit = np.flatnonzero(before[1:] > before[:-1])
        start = starts[hit]
        place = (key[start] >> np.uint64(32)).astype(np.int64)
        group_start = first_row[first:last][place] - rows.start
        to = slice(filled, filled + len(hit))
        n[to] = starts[hit + 1] - start
        m[to] = before[hit + 1] - before[hit]
        above[to] = start - group_start
        clicks_above[to] = before[hit] - clicks[group_start]
        group[to] = place + first
        if is_graded:
            held.append(label[label > 0].astype(np.float64))
        filled = to.stop
    sizes = np.diff(first_row, append=len(y))
    relevant = np.concatenate(held) if held else np.zeros(0)
    return TieBlocks(sizes, n[:filled], m[:filled], above[:filled], clicks_above[:filled], group[:filled], relevant)


def _parts(first_row: Ints, rows: int) -> list[tuple[int, int]]:
    """Ranges [first, last) of groups that hold about _ROWS_AT_ONCE rows each; a larger group is a part of its own."""
    if len(first_row) == 0:
        return []
    cuts = np.unique(np.searchsorted(first_row, np.arange(0, rows, _ROWS_AT_ONCE)))
    bounds = [*cuts[cuts < len(first_row)].tolist(), len(first_row)]
    return list(pairwise(bounds))
