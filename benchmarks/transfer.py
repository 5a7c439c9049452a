"""What another market's bundle is worth to a new market: python benchmarks/transfer.py --encoder runs/sample/encoder.

Samples of other seeds: other ads, users, advertisers and effects of topics, one taste. The curve is AUC and log loss on the
target's last quarter against the target rows at hand (a quarter of them validates): from nothing, from the source's bundle
(`start_from`), the same at a tenth of the learning rate (`carried_rate`), on the target's own scales or on the source's
(`carried_scales`), two networks of one source, and one of each of two sources (`start_from: [a, b]`; both ensembles at a tenth
of the rate), from one network that has learned both sources as one log ("one of both"), and the sources' bundles as they are.
About 20 minutes on a core; samples and sources' bundles of an earlier run in `--work` are taken over. The target has 14,400
rows to learn from in all:
`--rows 100 1000 10000 14400 --ways alone "slower, its scales"` is the curve of one way with and without. Of each: AUC and log
loss, AUC on ads that none of the target's rows at hand shows and on the others, and what it gains over "alone" on all and on
either, with 95 % intervals over users.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from modalities import cold_rows

from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.prepared import Prepared, open_prepared
from adrec.inference.predictor import Predictor
from adrec.metrics.classification import auc, log_loss
from adrec.metrics.intervals.paired import around, auc_difference
from adrec.sample import generate_sample
from adrec.stages.data import preprocess
from adrec.stages.training import finetune
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)
BASE = Path("configs/sample/preprocess.yaml")
SOURCE_ROWS, TARGET_ROWS = 40_000, 24_000


def main() -> None:
    """Print a line of AUCs for each seed and number of rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--encoder", required=True, help="text encoder that both markets read by, frozen")
    parser.add_argument("--work", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", help="some of them alone, by their names in the output")
    given = parser.parse_args()
    markets = {"source": (SOURCE_ROWS, 11), "second": (SOURCE_ROWS, 13), "target": (TARGET_ROWS, 12)}
    for name, (rows, seed) in markets.items():
        if not (given.work / name / "ads.parquet").exists():
            generate_sample(given.work / name, impressions=rows, seed=seed)
    if not (given.work / "both/ads.parquet").exists():
        _join(given.work, ("source", "second"), given.work / "both")
    bundles = []
    for name in ("source", "second", "both"):
        bundles.append(given.work / f"{name}_bundle")
        if not bundles[-1].exists():
            prepared = _prepared(given.work, name, given.work / name / "impressions", {"method": "time", "valid_fraction": 0.1})
            _trained(prepared, bundles[-1], given.encoder, seed=1)
    start = {"start_from": str(bundles[0])}
    two = {"seeds": 2, "ensemble": True, "carried_rate": 0.1, "carried_scales": True}
    ways: dict[str, dict[str, Any]] = {
        "alone": {},
        **{
            f"{name}, {scales} scales": {**start, "carried_rate": rate, "carried_scales": scales == "its"}
            for scales in ("own", "its")
            for name, rate in (("carried", 1.0), ("slower", 0.1))
        },
        "two of one source": {**start, **two},
        "two sources": {"start_from": [str(path) for path in bundles[:2]], **two},
        "one of both": {"start_from": str(bundles[2]), "carried_rate": 0.1, "carried_scales": True},
    }
    if given.ways:
        ways = {name: ways[name] for name in given.ways}
    for seed in range(1, given.seeds + 1):
        for rows in given.rows:
            file = given.work / f"rows{rows}_{seed}.parquet"
            pq.write_table(_drawn(given.work / "target/impressions", rows, seed), file)
            target = _prepared(given.work, "target", file, {"method": "column"})
            test = pa.concat_tables([pq.read_table(file) for file in target.split_files("test")])
            scored = {
                way: _scores(_trained(target, given.work / f"bundle_{way}", given.encoder, seed=seed, **settings), target, test)
                for way, settings in ways.items()
            }
            for name, path in zip(("source", "second source", "network of both"), bundles, strict=True):
                scored[f"the {name}'s as it is"] = _scores(path, target, test)
            cold = cold_rows(target, test)
            print(json.dumps({"rows": rows, "seed": seed, "cold": int(cold.sum())}), flush=True)
            for way, scores in scored.items():
                print(json.dumps({"way": way, **_told(test, scores, scored.get("alone"), cold)}), flush=True)


def _join(work: Path, markets: tuple[str, ...], output: Path) -> None:
    """The logs of several markets as one, identifiers by the market."""
    (output / "impressions").mkdir(parents=True, exist_ok=True)
    for name, place in (("users.parquet",) * 2, ("impressions", "impressions/part-0.parquet"), ("ads.parquet",) * 2):
        tables = []
        for market in markets:
            table = pq.read_table(work / market / name)
            for column in {"ad_id", "user_id", "advertiser_id", "request_id"} & set(table.column_names):
                named = pc.binary_join_element_wise(market, table[column], "-")
                table = table.set_column(table.column_names.index(column), column, named)
            tables.append(table)
        pq.write_table(pa.concat_tables(tables), output / place)


def _drawn(folder: Path, rows: int, seed: int) -> pa.Table:
    """Whole requests of the first 60 % in time, about `rows` of them, the last quarter to validate by; the last 25 % tests."""
    log = pq.read_table(folder)
    request = np.unique(log["request_id"].to_numpy(), return_inverse=True)[1]
    early = np.arange(len(log)) < 0.6 * len(log)
    order = np.random.default_rng(seed).permutation(np.unique(request[early]))
    sizes = np.bincount(request[early], minlength=request.max() + 1)
    drawn = order[: int(np.searchsorted(np.cumsum(sizes[order]), rows)) + 1]
    part = np.full(len(log), "", object)
    chosen = np.flatnonzero(early & np.isin(request, drawn))
    part[chosen] = "train"
    last = np.unique(request[chosen[int(0.75 * len(chosen)) :]])
    part[early & np.isin(request, last)] = "valid"
    part[int(0.75 * len(log)) :] = "test"
    return log.append_column("split", pa.array(list(part))).filter(pa.array(part != ""))


def _prepared(work: Path, market: str, rows: Path, split: dict[str, Any]) -> Prepared:
    settings = yaml.safe_load(BASE.read_text(encoding="utf-8"))
    settings |= {
        "output": str((work / f"prepared_{market}_{rows.stem}").absolute()),
        "source": {
            "format": "tables",
            "impressions": {"files": str(rows.absolute())},
            "ads": {"files": str((work / market / "ads.parquet").absolute())},
            "users": {"files": str((work / market / "users.parquet").absolute())},
        },
        "split": split,
        "tokenizer": {"kind": "none"},
    }
    preprocess.run(PreprocessConfig.model_validate(settings), QUIET)
    return open_prepared(Path(settings["output"]))


def _trained(prepared: Prepared, output: Path, encoder: str, *, seed: int, **more: Any) -> Path:
    settings = {
        "prepared": str(prepared.path),
        "output": str(output),
        "seed": seed,
        "text": {"reference": encoder},
        "model": {"width": 32, "hidden": [32], "feature_width": 8, "user": {"parts": ["soft", "target"]}},
        "training": {"epochs": 8 if prepared.rows("train") < 5_000 else 3, "batch_rows": 256, "loggers": []},
        "baselines": {"names": []},
        "hybrid": {"kind": "none"},
        "recall_requests": 0,
        **more,
    }
    finetune.run(FinetuneConfig.model_validate(settings), QUIET)
    return output


def _scores(bundle: Path, prepared: Prepared, rows: pa.Table) -> np.ndarray:
    predictor = Predictor.load(bundle, verify=False)
    catalogs = predictor.catalogs(prepared.ads(), prepared.users())
    return predictor.score_examples(predictor.examples_of(rows), catalogs, baselines=False).score


def _told(rows: pa.Table, scores: np.ndarray, base: np.ndarray | None, cold: np.ndarray) -> dict[str, Any]:
    """AUC of all rows, of cold ads and of the others, each with its gain over `base`."""
    clicks = rows["click"].to_numpy()
    users = np.unique(rows["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    told: dict[str, Any] = {"log_loss": round(float(log_loss(clicks, scores)), 4)}
    for name, chosen in (("auc", np.ones(len(cold), bool)), ("cold", cold), ("warm", ~cold)):
        if clicks[chosen].min(initial=1) == clicks[chosen].max(initial=0):
            continue
        told[name] = round(float(auc(clicks[chosen], scores[chosen])), 4)
        if base is not None and base is not scores:
            clusters = users[chosen]
            difference, error = auc_difference(clicks[chosen], scores[chosen], base[chosen], clusters)
            low, high = around(difference, error, clusters=len(np.unique(clusters)))
            told[f"{name} gain"] = [round(float(value), 4) for value in (difference, low, high)]
    return told


if __name__ == "__main__":
    main()
