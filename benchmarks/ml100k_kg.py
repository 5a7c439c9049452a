"""MovieLens-100k with the graph of its films and without: python benchmarks/ml100k_kg.py --data FOLDER.

The folder holds RecBole's atomic files ml-100k.inter, .item, .user, .kg and .link, as the wheel `recbole==1.2.1` carries them
under recbole/dataset_example/ml-100k (`pip download --no-deps recbole==1.2.1`, then unzip). A rating of 4 or 5 is a click, the
last fifth of the ratings in time are the test rows, and histories and rates are those of before each row, as adrec has them
for any log. The same model twice, which differs by the list of paths alone; seeds draw the network. About two minutes a seed
and way on one core.
"""

import argparse
from pathlib import Path
from typing import Any

from lastfm_kg import QUIET, Scored, scored, tell_gain, tell_mean

from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import Prepared, open_prepared
from adrec.stages.data import preprocess
from adrec.stages.training import finetune

GRAPH: dict[str, Any] = {"column": "graph", "paths": 2, "max_items": 64}


def main() -> None:
    """Print the test AUC of each seed, with and without, their means and the paired differences."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/ml100k_kg"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    given = parser.parse_args()
    folders = {graph: _prepared(given.data, given.work, graph=graph) for graph in (False, True)}
    reached = []
    for seed in range(given.seeds):
        ways = (_measured(folders[graph], given.work, seed, given.epochs, graph=graph) for graph in (False, True))
        reached.append(tell_gain(f"seed {seed}", *ways))
    tell_mean(reached)


def _prepared(data: Path, work: Path, *, graph: bool) -> Prepared:
    counters: list[dict[str, Any]] = [
        {"by": ["ad"], "measures": ["impressions"], "log1p": True},
        {"by": ["ad"], "measures": ["rate"], "prior_strength": 5},
        {"by": ["user"], "measures": ["impressions"], "log1p": True},
        {"by": ["user"], "measures": ["rate"], "prior_strength": 5},
        {"by": ["category"], "measures": ["rate", "history_share"], "prior_strength": 5},
        {"by": ["user", "category"], "measures": ["rate"], "prior_strength": 5},
    ]
    config = PreprocessConfig.model_validate(
        {
            "output": str((work / f"prepared{'_graph' * graph}").absolute()),
            "source": {"format": "recbole", "folder": str(data.absolute()), "positive_rating": 4},
            "tokenizer": {"kind": "none"},
            "split": {"method": "time", "valid_fraction": 0.1, "test_fraction": 0.2},
            "history": {"max_clicks": 100, "max_skipped": 100},
            "counters": counters,
            "features": {
                "impressions": {"numeric": [{"column": "counter_*"}, {"column": "history_length", "transform": "log1p"}]},
                "ads": {"categorical": ["category", "release_year"], "lists": [GRAPH] if graph else []},
                "users": {"categorical": ["age", "gender", "occupation"]},
            },
        }
    )
    preprocess.run(config, QUIET)
    return open_prepared(config.output)


def _measured(prepared: Prepared, work: Path, seed: int, epochs: int, *, graph: bool) -> Scored:
    output = work / f"bundle{seed}{'_graph' * graph}"
    config = FinetuneConfig.model_validate(
        {
            "prepared": str(prepared.path),
            "output": str(output.absolute()),
            "seed": seed,
            "device": "cpu",
            "recall_requests": 0,
            "model": {
                "width": 32, "hidden": [32], "dropout": 0.3, "identities": ["ads"],
                "user": {"parts": ["soft"], "skipped": True},
            },
            "training": {"epochs": epochs, "batch_rows": 512, "patience": 2, "monitor": "auc", "loggers": []},
            "baselines": {"names": ["lightgbm", "logistic"]},
            "hybrid": {"kind": "weighted"},
        }
    )  # fmt: skip
    finetune.run(config, QUIET)
    return scored(output, prepared)


if __name__ == "__main__":
    main()
