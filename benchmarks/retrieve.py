"""Top-k retrieval side by side with faiss flat inner product, and the recall of approximate search.

    python benchmarks/retrieve.py --ads 1000000 --requests 1000 --k 100 [--ann hnsw ivfpq]

Exact search runs on random Gaussian vectors (the hardest case: thresholds rise slowly); the two libraries take turns, each in
its own process, and the least of the repetitions counts. Approximate search runs on clustered vectors, like those of real
titles.
"""

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import faiss
import numpy as np
import torch

from adrec.ranking.approximate import ApproximateIndex
from adrec.ranking.recall import shares_of
from adrec.ranking.retrieve import ExactIndex


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ads", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--ann", nargs="*", default=[], choices=["hnsw", "ivfpq"])
    options = parser.parse_args()
    size = f"{options.ads:,} ads x {options.width}, {options.requests:,} requests, top {options.k}"
    print(f"{size}; {torch.get_num_threads()} threads")
    exact(options)
    for method in options.ann:
        approximate(options, method)


def exact(options: argparse.Namespace) -> None:
    """adrec and faiss in turns, each in its own process: in one, the threads of either library slow the other down."""
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, context, _make_world, (options,)) as ours,
        ProcessPoolExecutor(1, context, _make_world, (options,)) as theirs,
    ):
        seconds: dict[str, list[tuple[float, float]]] = {"adrec": [], "faiss flat": []}
        for _ in range(options.repeat):
            our_ads, taken = ours.submit(_by_adrec, options.k).result()
            seconds["adrec"].append(taken)
            their_ads, taken = theirs.submit(_by_faiss, options.k).result()
            seconds["faiss flat"].append(taken)
    for name, taken in seconds.items():
        wall, busy = (sorted(one[at] for one in taken) for at in (0, 1))
        print(f"  {name:<12} {wall[0]:6.2f} s by the clock, {busy[0]:6.2f} processor seconds (least of {len(taken)});", end=" ")
        print(f"median {statistics.median(wall):.2f} s")
    print(f"  same ads found: {shares_of(their_ads, our_ads).mean():.5f}")


_WORLD: dict[str, Any] = {}  # of one process: the vectors, and the index once it is built


def _make_world(options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    _WORLD["queries"] = rng.standard_normal((options.requests, options.width), dtype=np.float32)
    _WORLD["ads"] = rng.standard_normal((options.ads, options.width), dtype=np.float32)


def _by_adrec(k: int) -> tuple[np.ndarray, tuple[float, float]]:
    if "index" not in _WORLD:
        _WORLD["index"] = ExactIndex(_WORLD["ads"])
    start = _clocks()
    found = _WORLD["index"].search(_WORLD["queries"], k)
    return found.ad, _since(start)


def _by_faiss(k: int) -> tuple[np.ndarray, tuple[float, float]]:
    if "index" not in _WORLD:
        _WORLD["index"] = faiss.IndexFlatIP(_WORLD["ads"].shape[1])
        _WORLD["index"].add(_WORLD["ads"])
    start = _clocks()
    _, found = _WORLD["index"].search(_WORLD["queries"], k)
    return found, _since(start)


def approximate(options: argparse.Namespace, method: str) -> None:
    """Build, tune on 100 requests, measure on the others."""
    rng = np.random.default_rng(1)
    ads, queries = clustered(rng, options.ads, options.width), clustered(rng, options.requests + 100, options.width)
    start = time.process_time()
    index = ApproximateIndex(ads, method, seed=0)
    built = time.process_time() - start
    wanted = ExactIndex(ads).search(queries[:100], options.k).ad
    tuned = index.tune(wanted, lambda: index.search(queries[:100], options.k).ad, target=0.985)
    start = time.process_time()
    found = index.search(queries[100:], options.k)
    taken = time.process_time() - start
    reached = float(shares_of(ExactIndex(ads).search(queries[100:], options.k).ad, found.ad).mean())
    speed = options.requests / taken
    print(f"  {method}: built in {built:.0f} processor seconds, effort {index.effort}, {speed:,.0f} requests in one;")
    print(f"  recall@{options.k} {reached:.4f}, on the tuning sample {tuned:.4f}")


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - start[0], time.process_time() - start[1]


def clustered(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Unit vectors of 16 intrinsic dimensions around 2,000 topics, lifted by a fixed nonlinear map."""
    fixed = np.random.default_rng(99)
    centres = fixed.standard_normal((2_000, 16)).astype(np.float32)
    lift = fixed.standard_normal((16, width)).astype(np.float32)
    latent = centres[rng.integers(0, 2_000, count)] + 0.6 * rng.standard_normal((count, 16), dtype=np.float32)
    lifted = np.tanh(latent @ lift / 2)
    return lifted / np.linalg.norm(lifted, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
