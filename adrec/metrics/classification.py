"""Metrics over all rows at once: discrimination, probability error, decisions at a threshold, ratings.

Every function takes labels (N,) and predictions (N,), with optional non-negative row weights (N,), and returns a float: that of
rows repeated so often as their weights say.
Where the value does not exist (no rows, one class only) it is NaN, never a guess.
"""

from typing import NamedTuple

import numpy as np

from adrec.metrics.ties import ArrayLike, Floats, as_labels_and_scores, as_weights, run_starts


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve over all rows, in [0, 1]; ties between classes count one half.

    P(score of a positive > score of a negative) + P(equal) / 2 (Mann & Whitney 1947; Hanley & McNeil 1982).
    NaN where a class is missing. Raises ValueError on NaN scores.

    >>> auc([0, 1, 1, 0], [0.1, 0.9, 0.5, 0.5])  # (1 + 1 + 1 + 1/2) / 4
    0.875
    """
    positive, negative = _mass_by_falling_score(labels, scores, weights)
    below = negative.sum() - np.cumsum(negative)
    return _ratio(float(positive @ (below + negative / 2)), float(positive.sum() * negative.sum()))


def pr_auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Average precision, in [0, 1]: the sum over thresholds of (recall gained) x (precision there).

    Equal scores form one threshold, as in scikit-learn (Davis & Goadrich 2006). NaN without a positive.

    >>> pr_auc([1, 0, 1], [0.9, 0.8, 0.7])  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    positive, negative = _mass_by_falling_score(labels, scores, weights)
    hits = np.cumsum(positive)
    seen = hits + np.cumsum(negative)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    return _ratio(float(positive @ precision), float(positive.sum()))


def log_loss(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean negative log-likelihood in nats, >= 0. Probabilities are kept one float step inside (0, 1), as scikit-learn does.

    -mean(y ln p + (1 - y) ln(1 - p)). NaN without rows.

    >>> round(log_loss([1, 0], [0.5, 0.5]), 4)  # ln 2
    0.6931
    """
    return _mean(log_losses(labels, probabilities), weights)


def log_losses(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """The log loss of each row (N,) float64, in nats."""
    y = np.asarray(labels, dtype=np.float64)
    stated = np.asarray(probabilities)
    step = float(np.finfo(stated.dtype if np.issubdtype(stated.dtype, np.floating) else np.float64).eps)
    p = np.clip(stated.astype(np.float64), step, 1 - step)
    return np.asarray(-(y * np.log(p) + (1 - y) * np.log1p(-p)), dtype=np.float64)


def brier(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean squared error of the probabilities, in [0, 1] (Brier 1950). NaN without rows.

    >>> brier([1, 0], [0.5, 0.0])  # (1/4 + 0) / 2
    0.125
    """
    return mse(labels, probabilities, weights)


def normalised_entropy(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Log loss divided by the log loss of always predicting the observed rate (He et al. 2014, section 3). Below 1 beats it.

    NaN where a class is missing.

    >>> normalised_entropy([1, 0, 1, 0], [0.5, 0.5, 0.5, 0.5])
    1.0
    """
    return _ratio(log_loss(labels, probabilities, weights), entropy(_mean(np.asarray(labels, dtype=np.float64), weights)))


def entropy(rate: float) -> float:
    """Entropy in nats of a coin that falls on 1 with probability `rate`; 0 at 0 and 1."""
    if not 0 < rate < 1:
        return 0.0 if rate in (0.0, 1.0) else float("nan")
    return float(-(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


class Decisions(NamedTuple):
    """Rates of yes/no decisions, each in [0, 1]; NaN where the denominator is 0."""

    accuracy: float
    precision: float
    recall: float
    f1: float


def decisions(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5, weights: ArrayLike | None = None) -> Decisions:
    """Accuracy, precision, recall and F1 (van Rijsbergen 1979) of saying yes where score >= threshold.

    >>> decisions([1, 1, 0, 0], [0.9, 0.2, 0.6, 0.1]).precision  # 1 of the 2 said yes to
    0.5
    """
    y, s = as_labels_and_scores(labels, scores)
    w = as_weights(weights, len(y))
    yes = s >= threshold
    hit, false_alarm = float(w @ (yes * y)), float(w @ (yes * (1 - y)))
    miss, total = float(w @ (~yes * y)), float(w.sum())
    return decisions_from_counts(hit, false_alarm, miss, total)


def decisions_from_counts(hit: float, false_alarm: float, miss: float, total: float) -> Decisions:
    """The four rates from (weighted) counts of true positives, false positives, false negatives and rows."""
    return Decisions(
        accuracy=_ratio(total - false_alarm - miss, total),
        precision=_ratio(hit, hit + false_alarm),
        recall=_ratio(hit, hit + miss),
        f1=_ratio(2 * hit, 2 * hit + false_alarm + miss),
    )


def accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5, weights: ArrayLike | None = None) -> float:
    """Share of rows decided rightly by score >= threshold."""
    return decisions(labels, scores, threshold, weights).accuracy


def precision(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5, weights: ArrayLike | None = None) -> float:
    """Share of positives among the rows with score >= threshold; NaN where there is no such row."""
    return decisions(labels, scores, threshold, weights).precision


def recall(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5, weights: ArrayLike | None = None) -> float:
    """Share of the positives that have score >= threshold; NaN without a positive."""
    return decisions(labels, scores, threshold, weights).recall


def f1(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5, weights: ArrayLike | None = None) -> float:
    """Harmonic mean of precision and recall at score >= threshold; NaN where neither a positive nor a yes exists."""
    return decisions(labels, scores, threshold, weights).f1


def mse(targets: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean squared error, >= 0, in squared units of the target. NaN without rows."""
    return _mean((np.asarray(targets, dtype=np.float64) - np.asarray(predictions, dtype=np.float64)) ** 2, weights)


def rmse(targets: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Root of the mean squared error, in units of the target. NaN without rows."""
    return float(np.sqrt(mse(targets, predictions, weights)))


def mae(targets: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean absolute error, in units of the target. NaN without rows.

    >>> mae([1.0, 3.0], [2.0, 3.0])  # (1 + 0) / 2
    0.5
    """
    return _mean(np.abs(np.asarray(targets, dtype=np.float64) - np.asarray(predictions, dtype=np.float64)), weights)


def _mass_by_falling_score(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives (T,) at each of the T distinct scores, highest score first."""
    y, s = as_labels_and_scores(labels, scores)
    w = as_weights(weights, len(y))
    order = np.argsort(s)[::-1]
    starts = run_starts(s[order])
    if len(starts) == 0:
        return np.zeros(0), np.zeros(0)
    positive = np.add.reduceat((w * y)[order], starts)
    return positive, np.add.reduceat((w * (1 - y))[order], starts)


def _mean(values: Floats, weights: ArrayLike | None) -> float:
    if weights is None:
        return float(values.mean()) if len(values) else float("nan")
    w = as_weights(weights, len(values))
    return _ratio(float((w * values).sum()), float(w.sum()))  # not a dot product: weights of 1 give the plain mean's bits


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")
