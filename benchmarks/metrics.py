"""Per-request metrics beside one polars sort of the same rows, and the bootstrap's cost.

    python benchmarks/metrics.py [--requests 1000000] [--size 20]

Rounds alternate between the two, so that a busy machine slows both; the median of the rounds is printed.
"""

import argparse
import time

import numpy as np
import polars as pl

from adrec.metrics.intervals.bootstrap import bootstrap, of_curve
from adrec.metrics.ranking import RankedGroups

METRICS = ("auc", "mrr", "mrr_all", "ndcg", "hit_rate", "precision", "recall", "average_precision")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = options.requests * options.size
    group = np.repeat(np.arange(options.requests), options.size)
    score = rng.random(rows, dtype=np.float32)
    label = rng.random(rows) < 0.1
    table = pl.DataFrame({"group": group, "score": score, "label": label})
    ours, theirs = [], []
    for _ in range(options.rounds):
        theirs.append(seconds(lambda: table.sort(["group", "score"], descending=[False, True])))
        ours.append(seconds(lambda: all_metrics(label, score, group)))
    print(f"{rows:,} rows, {options.requests:,} requests")
    print(f"polars, one sort by request and score   {np.median(theirs):6.2f} s")
    ratio = np.median(ours) / np.median(theirs)
    print(f"adrec, {len(METRICS)} per-request metrics          {np.median(ours):6.2f} s, {ratio:.2f} times")
    some = min(rows, 1_000_000)
    users = max(some // 20, 1)
    user = rng.integers(0, users, some)
    curve = of_curve(label[:some], score[:some], user, users)
    spent = seconds(lambda: bootstrap({"": [curve]}, users=users, replicates=1000, generator=rng))
    print(f"adrec, AUC and PR-AUC of {some:,} rows, 1,000 draws of {users:,} users: {spent:.2f} s")


def all_metrics(label: np.ndarray, score: np.ndarray, group: np.ndarray) -> list[float]:
    """Every per-request metric, from the arrays as they come."""
    ranked = RankedGroups(label, score, group)
    return [float(np.nanmean(getattr(ranked, name)())) for name in METRICS]


def seconds(work) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
