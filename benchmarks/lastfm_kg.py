"""Last.FM in KGCN's CTR protocol (random 6:2:2, AUC), with the graph of entities and without: python benchmarks/lastfm_kg.py.

Reads ../shared/data/lastfm_kg. The log has no moments, so that each row brings its history: the user's likes among the training
rows. A like of the training rows is not in its own history, and a miss there lacks one like at random, so that lengths tell
nothing. About a minute a split and way on one core.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import Prepared, open_prepared
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc
from adrec.metrics.intervals.paired import auc_difference
from adrec.stages.data import preprocess
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
COLLABORATIVE = ["user_cf", "item_cf", "matrix_factorisation"]


def main() -> None:
    """Print the test AUC of each split, with and without, their means and the paired differences."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data/lastfm_kg"))
    parser.add_argument("--work", type=Path, default=Path("runs/lastfm_kg"))
    parser.add_argument("--splits", type=int, default=5)
    given = parser.parse_args()
    ratings = np.loadtxt(given.data / "ratings_final.txt", dtype=np.int64)
    write_graph(given.work, np.loadtxt(given.data / "kg_final.txt", dtype=np.int64), int(ratings[:, 1].max()) + 1)
    reached = []
    for split in range(given.splits):
        write_rows(given.work / f"rows{split}.parquet", ratings, split)
        reached.append(tell_gain(f"split {split}", *(measured(given.work, split, graph=graph) for graph in (False, True))))
    tell_mean(reached)


Scored = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Labels, logits and users of the test rows."""


def tell_gain(name: str, without: Scored, with_graph: Scored) -> tuple[float, float]:
    """Print and return both AUCs; the difference is paired, its error over users."""
    (label, base, users), (_, own, _) = without, with_graph
    gain, error = auc_difference(label, own, base, users)
    reached = float(auc(label, base)), float(auc(label, own))
    print(f"{name}: without {reached[0]:.4f}, with {reached[1]:.4f}, gain {gain:.4f} ± {error:.4f}", flush=True)
    return reached


def tell_mean(reached: list[tuple[float, float]]) -> None:
    """Print the means; the error of the gain is that of its mean over the runs."""
    gains = np.diff(np.array(reached), axis=1)[:, 0]
    error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    without, with_graph = np.mean(reached, axis=0)
    print(f"mean: without {without:.4f}, with {with_graph:.4f}, gain {gains.mean():.4f} ± {error:.4f}")


def scored(bundle: Path, prepared: Prepared) -> Scored:
    """Of the test rows."""
    predictor = Predictor.load(bundle, verify=False)
    rows = pa.concat_tables([pq.read_table(file) for file in prepared.split_files("test")])
    scores = predictor.score_examples(predictor.examples_of(rows), predictor.catalogs(prepared.ads(), prepared.users()))
    return rows["click"].to_numpy(), scores.logit, np.array(rows["user_id"].to_pylist())


def write_rows(path: Path, ratings: np.ndarray, seed: int) -> None:
    """Ratings (N, 3) of user, item, like as impressions, a random 60 % to train on and 20 % to validate by."""
    rng = np.random.default_rng(seed)
    order, part = rng.permutation(len(ratings)), np.full(len(ratings), "test", object)
    part[order[: int(0.6 * len(ratings))]] = "train"
    part[order[int(0.6 * len(ratings)) : int(0.8 * len(ratings))]] = "valid"
    likes: dict[int, list[int]] = {}
    for user, item, _ in ratings[(part == "train") & (ratings[:, 2] == 1)]:
        likes.setdefault(user, []).append(item)
    histories = []
    for (user, item, like), held in zip(ratings, part, strict=True):
        history = list(likes.get(user, []))
        if held == "train" and history:
            history.remove(item) if like else history.pop(rng.integers(len(history)))
        rng.shuffle(history)
        histories.append([f"i{other}" for other in history])
    columns = {
        "user_id": [f"u{user}" for user in ratings[:, 0]],
        "ad_id": [f"i{item}" for item in ratings[:, 1]],
        "click": ratings[:, 2].astype(np.int8),
        "split": list(part),
        "history": pa.array(histories, pa.list_(pa.string())),
    }
    pq.write_table(pa.table(columns), path)


def write_graph(folder: Path, links: np.ndarray, items: int) -> None:
    """Ads, and the two tables of links. An item is an entity too (`e` and its number), and its ad has the item's links as its
    own, `~` where they point to it, so that a second link leads on from what it is linked to, to the other items there."""
    folder.mkdir(parents=True, exist_ok=True)
    head, tail = links[:, 0], links[:, 2]
    from_item, to_item = head < items, tail < items
    relations = np.array([f"r{relation}" for relation in links[:, 1]])
    ad = np.concatenate([head[from_item], tail[to_item]])
    entity = np.concatenate([tail[from_item], head[to_item]])
    of_ads = np.concatenate([relations[from_item], np.char.add("~", relations[to_item])])
    tables = {
        "ads": {"ad_id": _named("i", np.arange(items))},
        "ad_links": {"ad_id": _named("i", ad), "relation": of_ads, "entity_id": _named("e", entity)},
        "links": {"head": _named("e", head), "relation": relations, "tail": _named("e", tail)},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")


def _named(kind: str, numbers: np.ndarray) -> list[str]:
    return [f"{kind}{number}" for number in numbers]


def measured(work: Path, split: int, *, graph: bool) -> Scored:
    """Train on one split, and score its test rows."""
    prepared = _prepared(work, split, graph=graph)
    output = work / f"bundle{split}{'_graph' * graph}"
    config = FinetuneConfig.model_validate(
        {
            "prepared": str(prepared.path),
            "output": str(output),
            "seed": split,
            "device": "cpu",
            "recall_requests": 0,
            "model": {
                "width": 32, "hidden": [32], "dropout": 0.3, "identities": ["ads", "users"],
                "user": {"parts": ["soft", "target"]},
            },
            "training": {
                "epochs": 8, "batch_rows": 512, "learning_rate": 3e-3, "weight_decay": 0.1, "patience": 2, "monitor": "auc",
                "loggers": [],
            },
            "baselines": {"names": [*COLLABORATIVE, "lightgbm"]},
            "hybrid": {"kind": "weighted", "also": COLLABORATIVE},
        }
    )  # fmt: skip
    finetune.run(config, QUIET)
    return scored(output, prepared)


def _prepared(work: Path, split: int, *, graph: bool) -> Prepared:
    links = {name: {"files": str(work / f"{name}.parquet")} for name in ("links", "ad_links")}
    config = PreprocessConfig.model_validate(
        {
            "output": str(work / f"prepared{split}{'_graph' * graph}"),
            "source": {
                "format": "tables",
                "impressions": {"files": str(work / f"rows{split}.parquet")},
                "ads": {"files": str(work / "ads.parquet")},
                "tables": links if graph else {},
            },
            "tokenizer": {"kind": "none"},
            "split": {"method": "column"},
            "features": {"ads": {"lists": [{"column": "graph", "paths": 2, "max_items": 32}] if graph else []}},
        }
    )
    preprocess.run(config, QUIET)
    return open_prepared(config.output)


if __name__ == "__main__":
    main()
