"""Late conversions: what each `delay.method` recovers of what their lateness costs, on the sample whose truth is known.

    python benchmarks/delay.py --folder runs/delay --impressions 1600000 --by-price 0.8 --seeds 3

The rows are the clicks of the sample with delays `--times` as long; the label is the conversion within `--window` hours. The
oracle learns from labels as they are in the end, every method from what was known when its training ended. The test days are
judged by the known probabilities: AUC has no noise but that of training. R-AUC is a method's gain over `none` as a share of
the oracle's; level is the sum of predictions over that of the known probabilities.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from scipy.stats import norm

from adrec.data.disk.tables import iter_batches
from adrec.metrics import classification
from adrec.sample import Delays
from adrec.sample.clicks import DELAY_MEDIAN_HOURS, DELAY_SPREAD, conversion_rate
from adrec.sample.generate import make_world

METHODS = ("none", "wait", "dfm", "es_dfm", "fnw", "oracle")
CONFIG = {
    "text": {"reference": None},
    "model": {"width": 32, "user": {"parts": ["soft"]}, "interaction": "dcn", "hidden": [32], "dropout": 0.2},
    "tasks": [{"name": "conversion"}],
    "training": {"batch_rows": 1024, "learning_rate": 3.0e-3, "weight_decay": 1.0, "monitor": "auc"},
    "baselines": {"names": []},
    "hybrid": {"kind": "none"},
    "recall_requests": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--impressions", type=int, default=1_600_000)
    parser.add_argument("--times", type=float, default=3.0)
    parser.add_argument("--by-price", type=float, default=0.0)
    parser.add_argument("--window", type=float, default=168.0)
    parser.add_argument("--wait", type=float, default=24.0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    options = parser.parse_args()
    prepare(options)
    truth, labels, cuts = known_truth(options)
    print(f"{len(truth):,} test clicks, {int(labels.sum()):,} conversions; training ends {cuts}")
    results: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(options.seeds):
        for method in options.methods:
            scores = trained(options, method, seed)
            auc = expected_auc(truth, scores)
            loss = float(-np.mean(truth * np.log(scores) + (1 - truth) * np.log1p(-scores)))
            level = float(scores.sum() / truth.sum())
            results.setdefault(method, []).append((auc, loss, level))
            print(f"seed {seed} {method}: AUC {auc:.5f}, log loss {loss:.5f}, level {level:.3f}", flush=True)
    best = expected_auc(truth, truth)
    print(f"the truth itself: AUC {best:.4f}; its sum over the conversions that came {truth.sum() / labels.sum():.3f}")
    report({method: np.array(rows) for method, rows in results.items()})


def report(results: dict[str, NDArray[np.float64]]) -> None:
    """Means over seeds with standard errors; R-AUC of the means, its interval by drawing seeds again."""
    generator = np.random.default_rng(0)
    print("| method | AUC | log loss | predicted / true | R-AUC |\n| --- | --- | --- | --- | --- |")
    for method, rows in results.items():
        share = ""
        if {"none", "oracle"} <= set(results) and method not in {"none", "oracle"}:
            gains = np.stack([rows[:, 0] - results["none"][:, 0], results["oracle"][:, 0] - results["none"][:, 0]])
            draws = gains[:, generator.integers(0, len(rows), (2000, len(rows)))].mean(-1)
            low, high = np.percentile(draws[0] / draws[1], [2.5, 97.5])
            share = f"{gains[0].mean() / gains[1].mean():.3f} ({low:.3f} to {high:.3f})"
        error = rows[:, 0].std(ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else float("nan")
        auc, loss, level = rows.mean(0)
        print(f"| {method} | {auc:.5f} ({error:.5f}) | {loss:.5f} | {level:.3f} | {share} |")


def prepare(options: argparse.Namespace) -> None:
    """The sample, its clicks, and the prepared folder of them; what is there already is kept."""
    folder: Path = options.folder
    if (folder / "prepared" / "manifest.json").exists():
        return
    sample = folder / "sample"
    delays = [f"conversion_delay={options.times}", f"conversion_delay_by_price={options.by_price}"]
    adrec("sample", "--output", sample, "--impressions", options.impressions, "--seed", 7, sets=delays)
    clicks = ds.dataset(sample / "impressions").scanner(filter=pc.field("click") == 1).to_table().sort_by("shown_at")
    (folder / "clicks").mkdir(exist_ok=True)
    pq.write_table(
        clicks.drop_columns(["click", "dwell_seconds", "position", "propensity"]), folder / "clicks" / "part.parquet"
    )
    config = yaml.safe_load(Path("configs/sample/preprocess.yaml").read_text(encoding="utf-8"))
    config["output"] = str(folder / "prepared")
    for table, name in (("impressions", "clicks"), ("ads", "sample/ads.parquet"), ("users", "sample/users.parquet")):
        config["source"][table]["files"] = str(folder / name)
    config["counters"] = []
    del config["tokenizer"]
    config["history"] |= {"max_skipped": 0}
    config["features"]["impressions"]["numeric"] = [{"column": "history_length", "transform": "log1p"}]
    (folder / "preprocess.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    adrec("preprocess", "--config", folder / "preprocess.yaml")


def trained(options: argparse.Namespace, method: str, seed: int) -> NDArray[np.float64]:
    """Scores of the test clicks by a network trained with `method`."""
    folder: Path = options.folder
    name = f"{method}-{seed}"
    prepared = folder / ("final" if method == "oracle" else "prepared")
    if method == "oracle" and not prepared.exists():
        _without_moments(folder / "prepared", prepared, options.window)
    settings = {**CONFIG, "prepared": str(prepared), "output": str(folder / name), "seed": seed}
    settings["training"] = {**settings["training"], "epochs": options.epochs}
    if method != "oracle":
        settings["delay"] = {"method": method, "window_hours": options.window, "wait_hours": options.wait}
    scored = folder / f"{name}.parquet"
    if not scored.exists():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        adrec("finetune", "--config", folder / f"{name}.yaml")
        adrec("score", "--bundle", folder / name, "--output", scored, sets=[f"prepared={folder / 'prepared'}", "split=test"])
    table = pa.Table.from_batches(list(iter_batches(scored, columns=["row_id", "score"]))).sort_by("row_id")
    return np.clip(table["score"].to_numpy().astype(np.float64), 1e-6, 1 - 1e-6)


def _without_moments(prepared: Path, final: Path, window: float) -> None:
    """A prepared folder whose labels are those of the end, within the window."""
    import shutil

    shutil.copytree(prepared, final)
    for file in sorted((final / "impressions").rglob("*.parquet")):
        table = pq.read_table(file)
        place = table.schema.get_field_index("conversion")
        table = table.set_column(place, table.schema.field(place), in_window(table, window))
        pq.write_table(table, file, row_group_size=65_536)
    manifest = json.loads((final / "manifest.json").read_text(encoding="utf-8"))
    (final / "manifest.json").write_text(json.dumps({**manifest, "label_moments": {}}), encoding="utf-8")


def in_window(table: pa.Table, window: float) -> pa.Array:
    """1 for conversions that came within `window` hours."""
    late = pc.subtract(pc.cast(table["converted_at"], pa.int64()), pc.cast(table["shown_at"], pa.int64()))
    inside = pc.fill_null(pc.less_equal(late, pa.scalar(round(window * 3_600_000_000), pa.int64())), False)
    return pc.cast(inside, pa.int8()).combine_chunks()


def known_truth(options: argparse.Namespace) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """Of the test clicks, by row: the probability of a conversion within the window, what came, and when training ended."""
    prepared = options.folder / "prepared"
    delays = Delays(options.times, options.by_price)
    world = make_world(options.impressions, 7, delays=delays)
    rows = pq.read_table(prepared / "impressions" / "test").sort_by("row_id")
    user, ad = (
        np.asarray([int(name[1:]) for name in pq.read_table(prepared / f"{key}s.parquet")[f"{key}_id"].to_pylist()])[
            rows[f"{key}_index"].to_numpy()
        ]
        for key in ("user", "ad")
    )
    rate = conversion_rate(world.ads, world.users, world.effects, user=user, ad=ad)
    medians = np.log(delays.times * DELAY_MEDIAN_HOURS) + delays.by_price * world.ads.price_z[ad]
    truth = rate * norm.cdf((np.log(options.window) - medians) / DELAY_SPREAD)
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    return truth, in_window(rows, options.window).to_numpy().astype(np.float64), manifest["cuts"]["valid"]


def expected_auc(truth: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """The AUC that labels drawn from `truth` have on average: every row is so much a positive and so much a negative."""
    both = np.concatenate([scores, scores])
    labels = np.repeat([1.0, 0.0], len(truth))
    return classification.auc(labels, both, np.concatenate([truth, 1 - truth]))


def adrec(*words: object, sets: list[str] | None = None) -> None:
    overrides = [part for item in sets or [] for part in ("--set", item)]
    subprocess.run(
        [sys.executable, "-m", "adrec", *map(str, words), *overrides, "--quiet"], check=True, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
