"""Order rows by falling score, find runs of equal scores: the one sort that every metric below shares."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ArrayLike = npt.ArrayLike


def as_labels_and_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, npt.NDArray[np.floating]]:
    """Labels as float64 and scores as they are, both (N,). Raises ValueError on unequal lengths or NaN scores."""
    y = np.asarray(labels, dtype=np.float64)
    s = np.asarray(scores)
    if not np.issubdtype(s.dtype, np.floating):
        s = s.astype(np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise ValueError(f"labels {y.shape} and scores {s.shape} must be one-dimensional and equally long")
    if np.isnan(s).any():
        raise ValueError("scores hold NaN")
    return y, s


def as_weights(weights: ArrayLike | None, rows: int) -> Floats:
    """Weights of rows (N,) float64; ones where None. Raises ValueError on another length, NaN or a negative one."""
    if weights is None:
        return np.ones(rows)
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (rows,):
        raise ValueError(f"weights {w.shape} must be one for each of {rows} rows")
    if not (w >= 0).all():
        raise ValueError("weights hold NaN or negative numbers")
    return w


def descending_keys(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.uint32]:
    """uint32 keys (N,) that rise as the scores fall, equal exactly where the scores are equal.

    float32 scores map bit by bit (IEEE 754 orders like integers once the sign is folded); wider ones by dense rank.
    """
    if scores.dtype == np.float32:
        bits = (scores + np.float32(0)).view(np.uint32)  # adding 0 makes -0.0 and 0.0 one value
        # Flip all bits of negative numbers and the sign of the others: that rises with the score.
        flip = (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000)
        return np.asarray(~(bits ^ flip), dtype=np.uint32)
    order = np.argsort(-scores)
    ordered = scores[order]
    rank = np.empty(len(scores), dtype=np.uint32)
    rank[order] = np.cumsum(np.concatenate([[False], ordered[1:] != ordered[:-1]])[: len(scores)], dtype=np.uint32)
    return rank


def run_starts(values: npt.NDArray[np.generic]) -> Ints:
    """Positions (R,) int64 at which a new run of equal neighbours starts; empty for an empty array."""
    if len(values) == 0:
        return np.zeros(0, dtype=np.int64)
    return np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1]).astype(np.int64, copy=False)


def group_codes(groups: ArrayLike) -> tuple[Ints, int]:
    """Dense codes (N,) int64 in [0, G) in the order of the sorted distinct values, and G."""
    values = np.asarray(groups)
    if np.issubdtype(values.dtype, np.integer) and len(values) and bool((values[1:] >= values[:-1]).all()):
        codes = np.zeros(len(values), dtype=np.int64)
        np.cumsum(values[1:] != values[:-1], out=codes[1:])
        return codes, int(codes[-1]) + 1
    distinct, codes = np.unique(values, return_inverse=True)
    return codes.astype(np.int64, copy=False), len(distinct)


def totals(codes: npt.NDArray[np.integer], values: ArrayLike | None, count: int) -> Floats:
    """Sum of `values` (N,) for each code in [0, count), float64 (count,); the number of rows where values is None."""
    return np.bincount(codes, None if values is None else np.asarray(values), count).astype(np.float64, copy=False)
