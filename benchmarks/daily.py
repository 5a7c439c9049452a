"""Fourteen days of a growing log: each day's bundle trained on from yesterday's, beside one trained from nothing.

    python benchmarks/daily.py --work /tmp/daily --impressions 120000

The built-in sample is stretched to `--before` days of run-up and `--days` days, a file a day. Each day the log is appended
to, and both bundles are judged on the newest day, which neither has learned. Prints, per day, the AUC of both, their paired
difference (DeLong, clustered by user) and the processor seconds of both trainings; at the end the mean difference with its
standard error over the days, and the share of processor time. Rerun, it goes on behind the last whole day.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from adrec.bundle import open_bundle
from adrec.config.base import load_config
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.data.sample import SampleConfig
from adrec.config.inference.score import ScoreConfig
from adrec.config.training.daily import DailyConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.pretrain import PretrainConfig
from adrec.metrics.classification import auc
from adrec.metrics.intervals.paired import auc_difference
from adrec.stages.data import preprocess, sample
from adrec.stages.inference import score
from adrec.stages.training import finetune, pretrain
from adrec.terminal import Terminal

CONFIGS = Path(__file__).parents[1] / "configs" / "sample"
SAMPLE_DAYS = 14
TERMINAL = Terminal(quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the log and the bundles")
    parser.add_argument("--impressions", type=int, default=120_000)
    parser.add_argument("--before", type=int, default=7, help="days of run-up")
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--onward", default=None, help="settings of the training that goes on, as YAML; those of adrec daily")
    parser.add_argument("--set", action="append", default=[], help="settings of both trainings")
    options = parser.parse_args()
    onward = yaml.safe_load(options.onward) if options.onward else DailyConfig.model_fields["onward"].default
    log, days = write_log(options.work, options.impressions, options.before + options.days)
    preparing = preprocess_config(options.work, log)
    record = options.work / "days.json"
    done: list[dict[str, float]] = json.loads(record.read_text()) if record.exists() else []
    print("day        rows    from nothing  from yesterday  difference ± error   s from nothing  s from yesterday", flush=True)
    first = options.before + len(done) + (1 if done else 0)
    for day in range(first, options.before + options.days + 1):
        for number in range(day):
            pq.write_table(days[number], log / f"day-{number:02d}.parquet")
        began = time.process_time()
        preprocess.run(preparing, TERMINAL)
        appending = time.process_time() - began
        if day == options.before:
            train(options, preparing.output, options.work / "warm00", None, {})
            continue
        number = day - options.before
        found = one_day(options, preparing.output, number, onward) | {"append": appending}
        done.append(found)
        record.write_text(json.dumps(done))
        show(number, found)
    summary(done)


def one_day(options: Any, prepared: Path, number: int, onward: dict[str, Any]) -> dict[str, float]:
    """Both bundles of a day, and what they are worth on its rows."""
    cold, warm = options.work / f"cold{number:02d}", options.work / f"warm{number:02d}"
    yesterday = options.work / f"warm{number - 1:02d}"
    seconds = {"cold": train(options, prepared, cold, None, {}), "warm": train(options, prepared, warm, yesterday, onward)}
    scores = {}
    for name, bundle in (("cold", cold), ("warm", warm)):
        output = options.work / f"{name}.parquet"
        score.run(ScoreConfig(bundle=bundle, prepared=prepared, split="test", output=output), TERMINAL)
        scores[name] = pq.read_table(output)
    labels = scores["cold"]["click"].to_numpy().astype(float)
    first, second = (scores[name]["logit"].to_numpy() for name in ("warm", "cold"))
    users = scores["cold"]["user_id"].to_pandas().to_numpy()
    difference, error = auc_difference(labels, first, second, users)
    manifest = open_bundle(warm, verify=False).manifest
    assert manifest["started_from"] == open_bundle(yesterday, verify=False).fingerprint
    shutil.rmtree(cold)
    return {
        "rows": len(labels),
        "cold_auc": auc(labels, second),
        "warm_auc": auc(labels, first),
        "difference": difference,
        "error": error,
        "cold_seconds": seconds["cold"],
        "warm_seconds": seconds["warm"],
    }


def train(options: Any, prepared: Path, output: Path, start: Path | None, settings: dict[str, Any]) -> float:
    """Train a bundle; the processor seconds of it."""
    changes = {"prepared": str(prepared), "output": str(output), "text.reference": str(options.work / "encoder")}
    changes |= {"baselines.names": ["lightgbm"], "training.loggers": [], "text.cache": str(options.work / "cache")}
    changes |= {"start_from": str(start), **settings} if start is not None else {}
    if not (options.work / "encoder").exists():
        pretrain.run(
            load_config(
                CONFIGS / "pretrain.yaml",
                PretrainConfig,
                [f"prepared={prepared}", f"output={options.work / 'encoder'}", "training.loggers=[]"],
            ),
            TERMINAL,
        )
    given = [*options.set, *(f"{key}={json.dumps(value)}" for key, value in changes.items())]
    config = load_config(CONFIGS / "finetune.yaml", FinetuneConfig, given)
    began = time.process_time()
    if not output.exists():
        finetune.run(config, TERMINAL)
    return time.process_time() - began


def write_log(work: Path, impressions: int, count: int) -> tuple[Path, list[pa.Table]]:
    """The sample stretched to `count` days, all its moments alike; its rows by day."""
    whole = work / "whole"
    if not whole.exists():
        sample.run(SampleConfig(output=whole, impressions=impressions), TERMINAL)
    rows = pq.read_table(whole / "impressions")
    start = rows["shown_at"].to_numpy().min().astype("datetime64[D]")

    def stretched(table: pa.Table, name: str) -> pa.Table:
        gap = (table[name].to_numpy() - start).astype("timedelta64[us]")
        scaled = np.where(np.isnat(gap), 0, gap.astype(np.int64)) * count // SAMPLE_DAYS
        moved = np.where(np.isnat(gap), np.datetime64("NaT", "us"), start + scaled.astype("timedelta64[us]"))
        return table.set_column(table.schema.get_field_index(name), name, pa.array(moved, pa.timestamp("us", "UTC")))

    for name in ("shown_at", "converted_at"):
        rows = stretched(rows, name)
    ads = pq.read_table(whole / "ads.parquet")
    for name in ("starts_at", "ends_at"):
        ads = stretched(ads, name)
    pq.write_table(ads, work / "ads.parquet")
    # A request lies within one file: that of its first row.
    first = rows.group_by("request_id").aggregate([("shown_at", "min")])
    begins = rows.select(["request_id"]).join(first, "request_id")
    order = dict(zip(begins["request_id"].to_pylist(), begins["shown_at_min"].to_numpy(), strict=True))
    day = np.array([(order[name] - start) // np.timedelta64(1, "D") for name in rows["request_id"].to_pylist()])
    log = work / "log"
    log.mkdir(exist_ok=True)
    return log, [rows.filter(pa.array(day == number)) for number in range(count)]


def preprocess_config(work: Path, log: Path) -> PreprocessConfig:
    """The sample's, over a log that grows: a rolling split, appended to, what was fitted kept."""
    settings = [f"output={work / 'prepared'}", f"source.impressions.files={log}", f"source.ads.files={work / 'ads.parquet'}"]
    settings += [f"source.users.files={work / 'whole' / 'users.parquet'}", "split={method: rolling}", "append=fast"]
    return load_config(CONFIGS / "preprocess.yaml", PreprocessConfig, settings)


def show(number: int, found: dict[str, float]) -> None:
    print(
        f"{number:3d}  {found['rows']:10,.0f}  {found['cold_auc']:12.4f}  {found['warm_auc']:14.4f}"
        f"  {found['difference']:+.4f} ± {found['error']:.4f}  {found['cold_seconds']:14.1f}  {found['warm_seconds']:16.1f}",
        flush=True,
    )


def summary(done: list[dict[str, float]]) -> None:
    gaps = np.array([found["difference"] for found in done])
    seconds = {name: sum(found[f"{name}_seconds"] for found in done) for name in ("cold", "warm")}
    print(f"mean difference {gaps.mean():+.4f} ± {gaps.std(ddof=1) / np.sqrt(len(gaps)):.4f} over {len(gaps)} days")
    print(f"processor time {seconds['warm'] / seconds['cold']:.1%} of training from nothing")
    print(f"appending a day: {np.mean([found['append'] for found in done]):.1f} s")


if __name__ == "__main__":
    main()
