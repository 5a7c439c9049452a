"""adrec score from Parquet to Parquet against the bare network on ready batches of the same rows, and its peak memory.

python benchmarks/score.py --bundle runs/sample/bundle --prepared runs/sample/prepared --split train

Both are measured in turn, best of `--rounds`. The ratio in processor seconds counts all threads of both, so that it says the
same on a busy machine; the ratio by the clock also credits reading, computing and writing at the same time.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch

from adrec.config.inference.score import ScoreConfig
from adrec.data.batches.collate import Batch, Collator
from adrec.data.batches.dataset import InOrder
from adrec.data.examples import load_examples
from adrec.data.prepared import open_prepared
from adrec.inference.predictor import BATCH_ROWS, Predictor
from adrec.stages.inference import score
from adrec.terminal import Terminal

BARE_ROWS = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=None)
    options = parser.parse_args()
    if options.cache is None:
        with tempfile.TemporaryDirectory() as folder:
            _measure(options, Path(folder))
    else:
        _measure(options, options.cache)


def _measure(options: argparse.Namespace, cache: Path) -> None:
    stage, bare, rows, peak = [], [], 0, 0.0
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            config = ScoreConfig(
                bundle=options.bundle,
                prepared=options.prepared,
                split=options.split,
                output=Path(folder) / "scored.parquet",
                cache=cache,
                baselines=False,
            )
            began = _clocks()
            rows = score.run(config, Terminal(quiet=True)).rows
            stage.append(_since(began))
        if number == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
            predictor, batches, bare_rows = _ready(options, cache)
        began = _clocks()
        with torch.inference_mode():
            for batch in batches:
                predictor.network(batch)
        bare.append(_since(began))
    wall, busy = (min(taken[at] for taken in stage) / rows for at in (0, 1))
    bare_wall, bare_busy = (min(taken[at] for taken in bare) / bare_rows for at in (0, 1))
    print(f"adrec score: {rows:,} rows, {1 / wall:,.0f} rows/s, {1 / busy:,.0f} rows a processor second; peak {peak:.2f} GB")
    print(f"bare network: {1 / bare_wall:,.0f} rows/s, {1 / bare_busy:,.0f} rows a processor second ({bare_rows:,} rows)")
    print(f"adrec score reaches {bare_wall / wall:.0%} of it by the clock, {bare_busy / busy:.0%} in processor seconds")


def _ready(options: argparse.Namespace, cache: Path) -> tuple[Predictor, list[Batch], int]:
    """Batches of the split's first rows, made beforehand."""
    prepared = open_prepared(options.prepared)
    predictor = Predictor.load(options.bundle, cache=cache)
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    history = predictor.packed.config.model.user.max_history
    collate = Collator(catalogs.ads, catalogs.users, catalogs.ad_texts, catalogs.user_texts, catalogs.queries, tasks=())
    examples = load_examples(prepared, options.split, max_history=history, rows=BARE_ROWS)
    examples = predictor.matched(examples, catalogs)
    return predictor, list(InOrder(examples, collate, BATCH_ROWS)), len(examples)


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _since(began: tuple[float, float]) -> tuple[float, float]:
    return time.monotonic() - began[0], time.process_time() - began[1]


if __name__ == "__main__":
    main()
