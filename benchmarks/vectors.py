"""Peak memory of a log whose ads bring wide vectors: beyond the vectors, through preprocess, finetune, score and rank.

    python benchmarks/vectors.py [--ads 1000000] [--modalities 3] [--width 512] [--work FOLDER]

Each ad has `modalities` vectors of `width` numbers (float16: 3 GB for a million ads). Every command is a process of its own;
its peak resident memory counts the pages of mapped files that it looked at; "without files" is what it allocated (Linux).
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

AT_ONCE = 20_000
USERS = 5_000
START = 1_767_225_600_000_000


def main() -> None:
    """Write the log, run the commands, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ads", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--modalities", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--work", type=Path, default=None, help="folder for scratch files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        folder = Path(scratch)
        write(folder, options)
        size = options.ads * options.modalities * options.width * 2 / 2**20
        print(f"{options.ads:,} ads x {options.modalities} x {options.width} numbers: vectors of {size:,.0f} MB", flush=True)
        print(f"{'command':<12} {'seconds':>8} {'cpu s':>7} {'peak MB':>8} {'without files':>14}", flush=True)
        for command in ("preprocess", "finetune", "score", "rank"):
            program = [sys.executable, "-c", MEASURED, command, str(folder / f"{command}.yaml")]
            done = subprocess.run(program, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-2_000:])
            seconds, cpu, peak, own = map(float, done.stdout.split()[-4:])
            print(f"{command:<12} {seconds:>8.1f} {cpu:>7.1f} {peak:>8,.0f} {own:>14,.0f}", flush=True)


MEASURED = """
import resource, sys, threading, time
from adrec.cli.app import app
def own():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(fields["RssAnon"].split()[0]) / 1024
peak, done = 0.0, threading.Event()
def look():
    global peak
    while not done.wait(0.05):
        peak = max(peak, own())
watch = threading.Thread(target=look); watch.start()
start = time.perf_counter()
try:
    app([sys.argv[1], "--config", sys.argv[2], "--quiet"])
except SystemExit as ended:
    assert not ended.code, ended.code
finally:
    done.set(); watch.join()
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, peak)
"""


def write(folder: Path, options: argparse.Namespace) -> None:
    """Ads with their vectors, a log of random rows, and the four configs."""
    rng = np.random.default_rng(0)
    names = [f"m{number}" for number in range(options.modalities)]
    kind = pa.list_(pa.float16(), options.width)
    schema = pa.schema([("ad_id", pa.string()), ("title", pa.string()), *((name, kind) for name in names)])
    with pq.ParquetWriter(folder / "ads.parquet", schema, compression="none", use_dictionary=["title"]) as writer:
        for first in range(0, options.ads, AT_ONCE):
            count = min(AT_ONCE, options.ads - first)
            columns = [pa.array([f"a{number}" for number in range(first, first + count)]), pa.array(["shoes"] * count)]
            for _ in names:
                cells = rng.standard_normal(count * options.width, np.float32).astype(np.float16)
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(cells), options.width))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    rows = options.rows
    log = {
        "user_id": pa.array([f"u{number}" for number in rng.integers(0, USERS, rows)]),
        "ad_id": pa.array([f"a{number}" for number in rng.integers(0, options.ads, rows)]),
        "shown_at": pa.array(START + np.arange(rows) * 8_000_000, pa.timestamp("us", "UTC")),
        "click": pa.array((rng.random(rows) < 0.1).astype(np.int8)),
    }
    pq.write_table(pa.table(log), folder / "impressions.parquet")
    pq.write_table(pa.table({"user_id": [f"u{number}" for number in range(20)]}), folder / "asked.parquet")
    vectors = [{"column": name, "precision": "float16"} for name in names]
    configs = {
        "preprocess": {
            "output": "prepared", "memory_limit_gb": 2, "tokenizer": {"kind": "none"}, "history": {"max_clicks": 20},
            "source": {"format": "tables", "ads": {"files": "ads.parquet"}, "impressions": {"files": "impressions.parquet"}},
            "features": {"ads": {"vectors": vectors}},
        },
        "finetune": {
            "prepared": "prepared", "output": "bundle", "training": {"epochs": 1}, "refit": False, "recall_requests": 5,
            "baselines": {"names": ["popularity"]},
        },
        "score": {"bundle": "bundle", "prepared": "prepared", "split": "test", "output": "scored.parquet"},
        "rank": {
            "bundle": "bundle", "prepared": "prepared", "users": "asked.parquet", "split": "users", "output": "ranked.parquet",
            "recall_requests": 5,
        },
    }  # fmt: skip
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


if __name__ == "__main__":
    main()
