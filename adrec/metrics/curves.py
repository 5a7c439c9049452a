"""Curves over all thresholds: ROC, precision-recall, gain, lift. Thinned for drawing; tied scores are one threshold.

`weights` (N,): how often each row counts.
"""

from typing import NamedTuple

import numpy as np

from adrec.metrics.ties import ArrayLike, Floats, as_labels_and_scores, as_weights, run_starts


class Curve(NamedTuple):
    """Points (P,) of a curve, in order of falling threshold."""

    x: Floats
    y: Floats


def roc(labels: ArrayLike, scores: ArrayLike, points: int = 300, weights: ArrayLike | None = None) -> Curve:
    """Share of negatives (x) and of positives (y) at or above each threshold, from (0, 0) to (1, 1)."""
    hits, rows = _cumulative(labels, scores, weights)
    misses = rows - hits
    return _thinned(misses / max(misses[-1], 1), hits / max(hits[-1], 1), points)


def precision_recall(labels: ArrayLike, scores: ArrayLike, points: int = 300, weights: ArrayLike | None = None) -> Curve:
    """Recall (x) and precision (y) at each threshold that lets any row pass."""
    hits, rows = _cumulative(labels, scores, weights)
    return _thinned(hits[1:] / max(hits[-1], 1), hits[1:] / rows[1:], points)


def gain(labels: ArrayLike, scores: ArrayLike, points: int = 300, weights: ArrayLike | None = None) -> Curve:
    """Share of rows shown (x) and share of all positives that this catches (y), best scores first, from (0, 0) to (1, 1)."""
    hits, rows = _cumulative(labels, scores, weights)
    return _thinned(rows / max(rows[-1], 1), hits / max(hits[-1], 1), points)


def lift(labels: ArrayLike, scores: ArrayLike, points: int = 300, weights: ArrayLike | None = None) -> Curve:
    """Share of rows shown (x), best scores first, and the rate of positives among them over that of all rows (y).

    >>> lift([1, 0, 0, 1], [0.9, 0.1, 0.2, 0.8]).y.tolist()  # (1/1, 2/2, 2/3, 2/4) / (2/4)
    [2.0, 2.0, 1.3333333333333333, 1.0]
    """
    hits, rows = _cumulative(labels, scores, weights)
    share = rows[1:] / max(rows[-1], 1)
    return _thinned(share, hits[1:] / max(hits[-1], 1) / share, points)


def _cumulative(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    """Positives and rows (weights) at or above each distinct score, after a leading 0."""
    y, s = as_labels_and_scores(labels, scores)
    order = np.argsort(s)[::-1]
    ends = np.append(run_starts(s[order])[1:], len(y))
    if weights is None:
        return np.concatenate([[0.0], np.cumsum(y[order])[ends - 1]]), np.concatenate([[0.0], ends.astype(np.float64)])
    w = as_weights(weights, len(y))[order]
    hits, rows = (np.cumsum(values)[ends - 1] for values in (w * y[order], w))
    return np.concatenate([[0.0], hits]), np.concatenate([[0.0], rows])


def _thinned(x: Floats, y: Floats, points: int) -> Curve:
    """About `points` points evenly along x, first and last kept."""
    if len(x) <= points:
        return Curve(x, y)
    at = np.searchsorted(x, np.linspace(x[0], x[-1], points))
    kept = np.unique(np.concatenate([[0], np.minimum(at, len(x) - 1), [len(x) - 1]]))
    return Curve(x[kept], y[kept])
