"""How fast lists are made, apart from the model: windows of requests against one request at a time, every limit on.

python benchmarks/rank.py --requests 2048 --candidates 200 --top-n 10
"""

import argparse
import time

import numpy as np

from adrec.ranking.auction import budget_in_micros
from adrec.ranking.diversify import ByValue
from adrec.ranking.ledger import Ledger
from adrec.ranking.policy import Candidates, ListPolicy, rank_block

ADS, GROUPS = 5_000, 200


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2_048)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--top-n", type=int, default=10)
    options = parser.parse_args()
    policies = {
        "by value": ListPolicy(top_n=options.top_n),
        "auction, budgets, caps": ListPolicy(top_n=options.top_n, auctioned=True, per_advertiser=2, user_ad=2, campaign=400),
        "the same, epsilon": ListPolicy(
            top_n=options.top_n, auctioned=True, per_advertiser=2, user_ad=2, campaign=400, epsilon=0.1
        ),
        "the same, Thompson": ListPolicy(
            top_n=options.top_n, auctioned=True, per_advertiser=2, user_ad=2, campaign=400, thompson=True
        ),
    }
    for name, policy in policies.items():
        speeds = [rate(options, policy, block) for block in (256, 1)]
        print(f"{name:<24} blocks of 256: {speeds[0]:7,.0f} requests/s; one at a time: {speeds[1]:7,.0f} requests/s")


def rate(options: argparse.Namespace, policy: ListPolicy, block: int) -> float:
    """Requests a second."""
    rng = np.random.default_rng(0)
    requests = options.requests if block > 1 else options.requests // 8
    ledger = Ledger(budget_in_micros(rng.lognormal(1.0, 1.0, ADS)), GROUPS)
    seconds = 0.0
    for start in range(0, requests, block):
        size = min(block, requests - start)
        ad = rng.integers(0, ADS, (size, 2 * options.candidates))
        ad = np.stack([rng.permutation(np.unique(row))[: options.candidates] for row in ad])
        score, bid = rng.beta(2, 12, ad.shape), rng.lognormal(-0.7, 0.4, ADS)[ad]
        group = ad % GROUPS
        candidates = Candidates(
            start + np.arange(size), rng.integers(0, 500, size), np.zeros(size, np.int64), ad, score, score * bid, bid, group,
            group % 20, group, np.full(ad.shape, 0.3),
        )  # fmt: skip
        begin = time.perf_counter()
        rank_block(
            candidates, [policy], [lambda rows, shape=ad.shape[1]: ByValue((len(rows), shape))], ledger, released=1.0, seed=0
        )
        seconds += time.perf_counter() - begin
    return requests / seconds


if __name__ == "__main__":
    main()
