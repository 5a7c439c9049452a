"""Candidate recall: how many of the ads that the full scorer would put first are among the candidates that it is given.

What a request never retrieves no scorer can save, and no metric of logged rows shows it (Covington et al. 2016, "Deep neural
networks for YouTube recommendations", judge candidate generation by recall). Pure functions over arrays, and the figures as
they stand in a bundle and beside lists.
"""

from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import numpy as np

from adrec.ranking.arrays import Floats, Ints
from adrec.ranking.channels import merge_channels

_PARTS = 6
"""Shares of the turns are tried in sixths."""
LOW = 0.8
"""Below this share of the best ads retrieval, and not the scorer, decides what is shown."""


@dataclass(frozen=True)
class CandidateRecall:
    """Of one policy, over a sample of requests."""

    policy: str
    requests: int
    """that had an ad to show"""
    k: int
    """the scorer's so many best ads are looked for"""
    candidates: int
    """ads that each channel, and all of them in turn, may propose"""
    eligible: float
    """ads that the rules allow, on average"""
    channels: dict[str, float]
    """channel → share of the best ads among its own candidates"""
    recall: float
    """share of the best ads among the candidates of all channels in turn"""
    deviation: float
    """standard error of `recall` over requests"""
    shares: dict[str, float] = field(default_factory=dict)
    """channel → its share of the turns; empty where they are equal"""
    by_value: float | None = None
    """the same for the ads of largest value, where the policy orders by another value than the score"""

    @property
    def is_low(self) -> bool:
        """Whether too few of the best ads are retrieved."""
        return self.recall < LOW

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values, from which `CandidateRecall(**values)` is made again."""
        return asdict(self)


def best_of(score: Floats, k: int) -> Ints:
    """(R, k) columns of the largest scores (R, A), best first; -1 where fewer are above -inf. Equals by column."""
    best: Ints = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(score, best, axis=1) > -np.inf, best, -1)


def shares_of(best: Ints, candidates: Ints) -> Floats:
    """(R,) share of each request's `best` (R, K) ads among its `candidates` (R, C); -1 is no ad, NaN where there is no best."""
    wanted, row = best >= 0, np.arange(len(best))[:, None]
    span = max(int(best.max(initial=0)), int(candidates.max(initial=0))) + 1
    there = np.isin(row * span + best, (row * span + candidates)[candidates >= 0]) & wanted
    count = wanted.sum(axis=1)
    shares: Floats = np.where(count > 0, there.sum(axis=1) / np.maximum(count, 1), np.nan)
    return shares


def best_shares(channels: dict[str, Ints], best: Ints, k: int) -> dict[str, float]:
    """The shares of the turns by which k candidates hold most of `best` (R, K); among equals the most even.

    channels: name → (R, C) its candidates. Tries all splits into sixths: 28 for three channels, 84 for four.
    """
    splits = [split for split in product(range(_PARTS + 1), repeat=len(channels)) if sum(split) == _PARTS]
    lists = [*channels.values()]

    def worth(split: tuple[int, ...]) -> tuple[float, float]:
        found = float(np.nanmean(shares_of(best, merge_channels(lists, k, split))))
        return (round(found, 9), -float(np.std(split)))

    chosen = max(splits, key=worth)
    return {name: part / _PARTS for name, part in zip(channels, chosen, strict=True)}
