"""Attacks on a model's silence: who was in its training, and what epsilon the attacker's luck proves it to have at least.

# M models, U units; a score is higher where the unit looks more like a member
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm

from adrec.metrics.classification import auc

Floats = NDArray[np.float64]
_LEAST_SPREAD = 1e-6
GUESSED = (0.05, 0.25, 1.0)
"""Shares of the units that are guessed, half of them as members: few sure guesses, or many unsure ones."""


def confidence(probability: ArrayLike, label: ArrayLike) -> Floats:
    """log(p / (1 - p)) of the probability p that a model gives to what happened, (N,): as good as normal over models
    (Carlini et al. 2022, section V).
    """
    p = np.clip(np.asarray(probability, np.float64), 1e-9, 1 - 1e-9)
    logit = np.log(p) - np.log1p(-p)
    return np.asarray(np.where(np.asarray(label) > 0, logit, -logit))


def likelihood_ratios(scores: Floats, member: NDArray[np.bool_]) -> Floats:
    """LiRA: for each model, from all others, log of how much likelier a unit's score is as a member's than as another's (M, U).

    Normal distributions a unit, of means of its own and of one spread for all, since models are few (Carlini et al. 2022,
    section VI.A). 0 where the others know a unit from one side alone.
    """
    models = len(scores)
    found = np.zeros(scores.shape)
    for target in range(models):
        others = np.arange(models) != target
        known, inside = scores[others], member[others]
        ratio = np.zeros(scores.shape[1])
        counts = np.stack([inside.sum(0), (~inside).sum(0)])
        for side, sign, count in ((inside, 1.0, counts[0]), (~inside, -1.0, counts[1])):
            mean = np.where(side, known, 0.0).sum(0) / np.maximum(count, 1)
            residual = np.where(side, known - mean, 0.0)
            freedom = max(int((count - 1).clip(min=0).sum()), 1)
            spread = max(float(np.sqrt((residual**2).sum() / freedom)), _LEAST_SPREAD)
            ratio += sign * norm.logpdf(scores[target], mean, spread)
        found[target] = np.where((counts > 0).all(axis=0), ratio, 0.0)
    return found


def membership_auc(scores: Floats, member: NDArray[np.bool_]) -> Floats:
    """(M,) the chance that a member of each model scores above a unit that is none: 0.5 is silence."""
    return np.array([auc(inside.astype(np.float64), score) for score, inside in zip(scores, member, strict=True)])


def caught(score: Floats, member: NDArray[np.bool_], *, false_alarms: float) -> float:
    """Share of the members (U,) found where so large a share of the others is taken for members."""
    outside = np.sort(score[~member])
    threshold = outside[min(int(np.ceil(len(outside) * (1 - false_alarms))), len(outside) - 1)]
    return float((score[member] > threshold).mean())


def least_epsilon(score: Floats, member: NDArray[np.bool_], *, delta: float, level: float = 0.95) -> float:
    """What the guesses of an attacker prove, at that level of confidence: the epsilon is no less.

    Each unit was a member by a fair coin of its own. Of the r guesses that are surest (highest scores: members; lowest: none)
    an (epsilon, 0) private model lets at most Binomial(r, e^epsilon / (1 + e^epsilon)) be right (Steinke, Nasr and Jagielski
    2023, theorem 5.2): the lower end of Clopper and Pearson's interval of the share that is right, as log odds. `delta` is
    allowed for by giving away delta times the units of the level. The best of several r, by Bonferroni.
    """
    order = np.argsort(-score, kind="stable")
    error = (1.0 - level) / len(GUESSED) - 2.0 * delta * len(score)
    best = 0.0
    for share in GUESSED:
        side = max(1, int(len(score) * share / 2))
        right = int(member[order[:side]].sum() + (~member[order[-side:]]).sum())
        if right and error > 0:
            low = float(beta.ppf(error, right, 2 * side - right + 1))
            best = max(best, float(np.log(low / (1.0 - low))))
    return best


def exposure(score: float, others: ArrayLike) -> float:
    """log2 of how many times smaller than all candidates the rank of a planted phrase is (Carlini et al. 2019, section 4.2).

    `score`: likelihood of the planted one; `others` (R,): those of phrases like it that were never planted. log2(R + 1) at the
    most, where it is the likeliest of all; 1.44 on average by chance. Ties count half.
    """
    values = np.asarray(others, np.float64)
    rank = 1.0 + (values > score).sum() + 0.5 * (values == score).sum()
    return float(np.log2(len(values) + 1) - np.log2(rank))
