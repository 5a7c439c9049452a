"""What lists of ads look like as a whole: coverage, diversity, novelty, concentration, revenue. No labels needed."""

import numpy as np
import numpy.typing as npt

from adrec.metrics.ties import ArrayLike, Floats, group_codes, run_starts


def coverage(ads: ArrayLike, catalogue: int) -> float:
    """Share of the catalogue that appears in any list, in [0, 1]. NaN for an empty catalogue.

    >>> coverage([3, 3, 5], catalogue=4)
    0.5
    """
    return len(np.unique(np.asarray(ads))) / catalogue if catalogue > 0 else float("nan")


def gini(exposures: ArrayLike) -> float:
    """Gini coefficient of exposures (A,) >= 0, zeros included: 0 all equal, towards 1 one ad takes all (Gini 1912).

    NaN where nothing was shown.

    >>> gini([1, 1, 1, 1])
    0.0
    """
    x = np.sort(np.asarray(exposures, dtype=np.float64))
    total = x.sum()
    if total <= 0:
        return float("nan")
    place = np.arange(1, len(x) + 1)
    return float((2 * place - len(x) - 1) @ x / (len(x) * total))


def top_share(owners: ArrayLike) -> float:
    """Largest share of the rows that one owner (advertiser, category) takes, in (0, 1]. NaN without rows.

    >>> top_share(["a", "a", "b", "c"])
    0.5
    """
    counts = np.unique(np.asarray(owners), return_counts=True)[1]
    return float(counts.max() / counts.sum()) if len(counts) else float("nan")


def concentration(owners: ArrayLike) -> float:
    """Herfindahl-Hirschman index: the sum of squared shares of the rows, in (0, 1] (Hirschman 1964). NaN without rows.

    >>> concentration(["a", "a", "b", "c"])  # (1/2)^2 + 2 x (1/4)^2
    0.375
    """
    counts = np.unique(np.asarray(owners), return_counts=True)[1]
    return float(((counts / counts.sum()) ** 2).sum()) if len(counts) else float("nan")


def intra_list_diversity(vectors: npt.NDArray[np.floating], groups: ArrayLike) -> Floats:
    """Mean over pairs of a list of 1 - cosine, per group (G,), in [0, 2]; NaN for lists of one (Ziegler et al. 2005).

    vectors (N, D) are the rows' ad vectors, of any length; groups (N,). For unit vectors the pairs' cosines sum to
    (|sum of vectors|^2 - n) / 2, so no pair is ever formed.
    """
    codes, count = group_codes(groups)
    order = np.argsort(codes, kind="stable")
    starts = run_starts(codes[order])
    sizes = np.diff(starts, append=len(codes))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors, dtype=np.float64), where=lengths > 0)
    if count == 0:
        return np.zeros(0)
    # A zero vector has cosine 0 to everything, itself included: subtract the true squared lengths, not n.
    sums = np.add.reduceat(unit[order], starts, axis=0)
    own = np.add.reduceat((unit**2).sum(axis=1)[order], starts)
    pairs = sizes * (sizes - 1)
    similarity = np.divide((sums**2).sum(axis=1) - own, pairs, out=np.full(count, np.nan), where=pairs > 0)
    return np.asarray(1 - similarity, dtype=np.float64)


def category_diversity(categories: ArrayLike, groups: ArrayLike) -> Floats:
    """Share of the pairs of a list whose categories differ, per group (G,), in [0, 1]; NaN for lists of one.

    >>> category_diversity(["a", "a", "b"], [1, 1, 1]).tolist()  # 2 of 3 pairs
    [0.6666666666666667]
    """
    codes, count = group_codes(groups)
    kinds, kind_count = group_codes(categories)
    cell, rows = np.unique(codes * kind_count + kinds, return_counts=True)
    same = np.bincount(cell // max(kind_count, 1), rows * (rows - 1), count)
    sizes = np.bincount(codes, minlength=count)
    pairs = sizes * (sizes - 1)
    share = np.divide(same, pairs, out=np.full(count, np.nan), where=pairs > 0)
    return np.asarray(1 - share, dtype=np.float64)


def novelty(counts: ArrayLike, total: float) -> Floats:
    """Self-information -log2(count / total) of each row's ad (N,), in bits (Zhou et al. 2010).

    An ad that was never seen counts as one half.
    `counts` (N,) are the impressions (or clicks) that the row's ad had before, `total` those of all ads.
    """
    share = np.maximum(np.asarray(counts, dtype=np.float64), 0.5) / max(total, 1.0)
    return np.asarray(-np.log2(np.minimum(share, 1.0)), dtype=np.float64)


def revenue_per_thousand(value: ArrayLike) -> float:
    """1000 x the mean value of a shown ad: clicks x price for what happened, score x price for what is expected.

    NaN without rows.

    >>> revenue_per_thousand([0.0, 0.5])
    250.0
    """
    v = np.asarray(value, dtype=np.float64)
    return float(1000 * v.mean()) if len(v) else float("nan")
