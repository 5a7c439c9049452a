"""How well links that nobody has seen are found: ranks among all entities, known links left out (Bordes et al. 2013, filtered).

# T questions, E entities, N known links
"""

import numpy as np
from numpy.typing import NDArray

Longs = NDArray[np.int64]


def filtered_ranks(
    scores: NDArray[np.floating], true: Longs, asked: Longs, known_asked: Longs, known_true: Longs
) -> NDArray[np.float64]:
    """(T,) rank of entity `true` by falling score among the E entities; those that also answer the question are left out.

    `scores` (T, E), `asked` (T, 2) what the question is (an end and a relation), `known_asked` (N, 2) and `known_true` (N,) all
    answers known. Entities of equal score count half (realistic rank: the mean of the best and the worst possible).

    >>> one = np.array([[0, 0]])
    >>> filtered_ranks(np.array([[0.9, 0.8, 0.5]]), np.array([2]), one, np.repeat(one, 2, 0), np.array([0, 2])).tolist()
    [2.0]
    """
    width = int(max(asked[:, 1].max(initial=0), known_asked[:, 1].max(initial=0))) + 1
    question, key = known_asked[:, 0] * width + known_asked[:, 1], asked[:, 0] * width + asked[:, 1]
    order = np.argsort(question, kind="stable")
    first, last = (np.searchsorted(question[order], key, side) for side in ("left", "right"))
    count = last - first
    row = np.repeat(np.arange(len(key)), count)
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    held = np.array(scores, np.float64)
    own = held[np.arange(len(true)), true]
    held[row, known_true[order][place]] = -np.inf
    better, equal = (held > own[:, None]).sum(axis=1), (held == own[:, None]).sum(axis=1)
    equal -= held[np.arange(len(true)), true] == own  # itself, where no known link took it out
    ranks: NDArray[np.float64] = 1 + better + equal / 2
    return ranks


def mean_reciprocal_rank(ranks: NDArray[np.float64]) -> float:
    """The mean of 1 / rank, in (0, 1]; NaN without ranks.

    >>> mean_reciprocal_rank(np.array([1.0, 2.0, 4.0])) == (1 / 1 + 1 / 2 + 1 / 4) / 3
    True
    """
    return float((1 / ranks).mean()) if len(ranks) else float("nan")


def hits_at(ranks: NDArray[np.float64], k: int) -> float:
    """The share of ranks of at most `k`, in [0, 1]; NaN without ranks.

    >>> hits_at(np.array([1.0, 2.0, 4.0, 11.0]), 3)
    0.5
    """
    return float((ranks <= k).mean()) if len(ranks) else float("nan")
