"""Explore: choose an ad for a slot at random, and say exactly how probable the choice was.

The propensity of an ad is the probability that its slot would show it, given the slots above: a list's propensity is
the product (the sequential form that McInerney et al., KDD 2020, use). Random numbers are a hash of (seed, request,
slot, ad), so they depend neither on blocks nor on earlier requests, and a resumed run draws what an unbroken one would.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri

from adrec.ranking.arrays import Bools, Floats, Ints

_GRID = np.linspace(-6.0, 6.0, 97)  # step 0.125: see `win_probability`
_CHUNK = 50_000  # floats of work at a time: what a core's cache holds
_GRID_WEIGHT = np.exp(-0.5 * _GRID**2) / np.sqrt(2 * np.pi) * (_GRID[1] - _GRID[0])


def uniform(seed: int, *keys: Ints | int) -> Floats:
    """Uniform numbers in (0, 1) from broadcast integer keys: SplitMix64 (Steele, Lea and Flood 2014) chained over them."""
    state = _mix(np.asarray(seed, dtype=np.int64).astype(np.uint64))
    for key in keys:
        state = _mix(state ^ np.asarray(key, dtype=np.int64).astype(np.uint64))
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def greedy(gain: Floats, ad: Ints, feasible: Bools) -> Ints:
    """(R,) column of the largest gain among the feasible; equals by ad row. Column 0 where none is feasible."""
    masked = np.where(feasible, gain, -np.inf)
    ties = masked == masked.max(axis=1, keepdims=True)
    column: Ints = np.argmin(np.where(ties & feasible, ad, np.iinfo(np.int64).max), axis=1)
    return column


def epsilon_greedy(
    gain: Floats, ad: Ints, feasible: Bools, *, epsilon: float, seed: int, request: Ints, slot: int
) -> tuple[Ints, Floats]:
    """With probability `epsilon` a uniform choice among the feasible, else the best. Returns (R,) columns, propensities.

    The propensity is exact: epsilon / feasible, plus 1 - epsilon for the best.
    """
    best = greedy(gain, ad, feasible)
    lots = np.where(feasible, uniform(seed, request[:, None], slot, ad), -1.0)
    explores = uniform(seed, request, slot, -1) < epsilon
    column = np.where(explores, lots.argmax(axis=1), best)
    count = np.maximum(feasible.sum(axis=1), 1)
    return column, epsilon / count + np.where(column == best, 1.0 - epsilon, 0.0)


def logit_deviation(score: Floats, impressions: Floats, *, prior_impressions: float) -> Floats:
    """Standard deviation of a logit known from n impressions: 1 / sqrt((n + prior) score (1 - score)), at most 3.

    The delta method on a rate estimated from n + prior trials. It measures how often the ad was seen in training, not
    what the network ignores.
    """
    trials = (impressions + prior_impressions) * np.maximum(score * (1 - score), 1e-12)
    deviation: Floats = np.minimum(1 / np.sqrt(trials), 3.0)
    return deviation


def thompson(
    *,
    weight: float,
    offset: Floats,
    unit_value: Floats,
    score: Floats,
    deviation: Floats,
    ad: Ints,
    feasible: Bools,
    seed: int,
    request: Ints,
    slot: int,
    measured: bool = True,
) -> tuple[Ints, Floats]:
    """Draw each candidate's logit from N(logit(score), deviation^2), take the largest gain. Returns (R,) columns, propensities.

    gain = weight x log(unit_value x probability) + offset. Draws are fresh and independent at each slot, so the
    propensity given the slots above is the probability that the chosen gain is the largest: `win_probability`.
    All of shape (R, C) but request (R,). `measured` False leaves the propensities, which cost most of the time, NaN.
    """
    normal = ndtri(uniform(seed, request[:, None], slot, ad))
    mean = logit(np.clip(score, 1e-9, 1 - 1e-9))
    drawn = expit(mean + deviation * normal)
    gain = weight * np.log(np.maximum(unit_value * drawn, 1e-300)) + offset
    column = greedy(gain, ad, feasible)
    if not measured:
        return column, np.full(len(column), np.nan)
    return column, win_probability(
        column, weight=weight, offset=offset, unit_value=unit_value, mean=mean, deviation=deviation, feasible=feasible
    )


def win_probability(
    column: Ints,
    *,
    weight: float,
    offset: Floats,
    unit_value: Floats,
    mean: Floats,
    deviation: Floats,
    feasible: Bools,
) -> Floats:
    """(R,) probability that the candidate at `column` draws the largest gain among the feasible.

    P = integral of phi(z) prod_j Phi((logit needed for j to reach the same gain - mean_j) / deviation_j) dz, by the
    trapezoidal rule on 97 points of z in [-6, 6] (2e-9 of the mass lies outside). The error is below 1e-5 while no
    rival's deviation is under a tenth of the winner's, and below 1e-2 down to a thirtieth.
    """
    rows = np.arange(len(column))
    own = mean[rows, column, None] + deviation[rows, column, None] * _GRID  # (R, Z)
    log_unit = np.log(np.maximum(unit_value, 1e-300))
    own_log_probability = -np.logaddexp(0.0, -own)
    level = weight * (log_unit[rows, column, None] + own_log_probability) + offset[rows, column, None]  # (R, Z)
    below = np.broadcast_to(_GRID_WEIGHT, level.shape).copy()
    step = max(1, _CHUNK // level.size)
    for start in range(0, mean.shape[1], step):
        rivals = slice(start, start + step)
        # log probability that each rival needs in order to reach the level (R, Z, J); at or above 0 it cannot.
        needed = (level[:, :, None] - offset[:, None, rivals]) / max(weight, 1e-12) - log_unit[:, None, rivals]
        reachable = needed < 0
        needed_logit = needed - np.log(-np.expm1(np.where(reachable, needed, -1.0)))
        standard = (needed_logit - mean[:, None, rivals]) / np.maximum(deviation[:, None, rivals], 1e-12)
        competes = feasible[:, rivals] & (column[:, None] != np.arange(mean.shape[1])[rivals])
        below *= np.where(reachable & competes[:, None, :], ndtr(standard), 1.0).prod(axis=2)
    total: Floats = below.sum(axis=1)
    return total
