"""Is a simple baseline clearly better than the model that is shipped? One comparison on validation rows, and its sentence."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from adrec.metrics.intervals.paired import around, paired_difference
from adrec.models.baselines.base import Baseline, Floats, Inputs, log_odds

_LEAST = 10
"""Clicks, misses and users below which nothing is said."""
_NAMES = {"auc": "AUC", "auc_request": "AUC per request", "log_loss": "log loss"}


@dataclass(frozen=True)
class SimpleCheck:
    """The best baseline less the model, in the metric that training monitors (of a loss: the model's less the baseline's)."""

    name: str
    metric: str
    difference: float
    low: float
    high: float
    """95 % interval of the paired difference, users taken as independent"""

    @property
    def is_better(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0

    def sentence(self) -> str:
        """For the terminal."""
        metric = _NAMES[self.metric]
        figures = f"{metric} {self.difference:+.4f}, 95 % interval {self.low:+.4f} to {self.high:+.4f}"
        if not self.is_better:
            return f"no simple baseline is clearly better than the model; the best is {self.name} ({figures})"
        return (
            f"{self.name} is clearly better than the model on the validation rows ({figures}). Let it score beside the network"
            " with hybrid.kind=auto, or train longer."
        )


def simple_check(
    model: Floats, scores: Mapping[str, Floats], baselines: Mapping[str, Baseline], valid: Inputs, *, metric: str
) -> SimpleCheck | None:
    """Compare `model` (N,) logits with the best of `scores`, name → (N,) of the `baselines` of those names.

    None where there are too few clicks or users to compare, or there is no baseline that `metric` can judge.
    """
    if valid.weights is not None:  # rows of counts: `evaluate` compares them
        return None
    known = ~np.isnan(valid.clicks)
    y, request, whose = valid.clicks[known], valid.examples.request[known], valid.clusters[known]
    if metric == "log_loss":
        scores = {name: log_odds(score).astype(np.float32) for name, score in scores.items() if baselines[name].is_probability}
    clusters = len(np.unique(whose))
    if min(y.sum(), (1 - y).sum(), clusters) < _LEAST:
        return None

    def compared(score: Floats) -> tuple[float, float]:
        return paired_difference(metric, y, score[known], model[known], request, whose)

    pairs = {name: compared(score) for name, score in scores.items()}
    pairs = {name: pair for name, pair in pairs.items() if np.isfinite(pair).all()}
    if not pairs:
        return None
    name = max(pairs, key=lambda key: pairs[key][0])
    value, error = pairs[name]
    return SimpleCheck(name, metric, value, *around(value, error, clusters=clusters))
