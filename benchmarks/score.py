"""adrec score against the bare network on the same rows, and its peak memory.

python benchmarks/score.py --bundle runs/sample/bundle --prepared runs/sample/prepared --split train
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from adrec.config.score import ScoreConfig
from adrec.data.collate import Collator
from adrec.data.dataset import InOrder
from adrec.data.examples import iter_examples
from adrec.data.prepared import open_prepared
from adrec.inference.predictor import BATCH_ROWS, Predictor
from adrec.stages import score
from adrec.terminal import Terminal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--split", default="train")
    options = parser.parse_args()
    prepared = open_prepared(options.prepared)
    with tempfile.TemporaryDirectory() as folder:
        config = ScoreConfig(
            bundle=options.bundle,
            prepared=options.prepared,
            split=options.split,
            output=Path(folder) / "scored.parquet",
            baselines=False,
        )
        result = score.run(config, Terminal(quiet=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    stage = result.rows / result.seconds
    predictor = Predictor.load(options.bundle)
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    history = predictor.packed.config.model.user.max_history
    collate = Collator(catalogs.ads, catalogs.users, catalogs.ad_texts, catalogs.user_texts, catalogs.queries, tasks=())
    seconds, rows = 0.0, 0
    with torch.inference_mode():
        for examples in iter_examples(prepared, options.split, max_history=history):
            predictor.encode(examples, catalogs)
            for batch in InOrder(examples, collate, BATCH_ROWS):
                began = time.monotonic()
                predictor.model(batch)
                seconds += time.monotonic() - began
                rows += len(batch.ad)
    bare = rows / seconds
    print(f"adrec score: {result.rows:,} rows, {stage:,.0f} rows/s from Parquet to Parquet, peak memory {peak:.2f} GB")
    print(f"bare network on ready batches: {bare:,.0f} rows/s; adrec score reaches {np.divide(stage, bare):.0%} of it")


if __name__ == "__main__":
    main()
