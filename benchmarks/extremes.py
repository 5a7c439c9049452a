"""Logs of extreme shapes through `adrec preprocess`: processor seconds and peak resident memory of each, a process of its own.

    python benchmarks/extremes.py [--scale 1.0] [--memory-gb 2.0] [--only users]

One user with half of 4 M rows; 200,000 rows with 400 kept columns; 300 small files; 34 M users of one row each. `--scale` makes
all of them smaller, `--only users` runs one of them.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = 1_767_225_600_000_000
COUNTERS = ["usual", {"by": ["user", "category"], "measures": ["rate"], "half_lives_hours": [None, 24]}]


def main() -> None:
    """Write each log, prepare it, print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--memory-gb", type=float, default=2.0)
    parser.add_argument("--work", type=Path, default=None, help="folder for scratch files")
    parser.add_argument("--only", default="", help="word of the log to run")
    options = parser.parse_args()
    print(f"{'log':<32} {'rows':>10} {'cpu s':>7} {'rows / cpu s':>13} {'peak MB':>8}", flush=True)
    for label, write, keep in (
        ("one user with half of the rows", heavy_user, 0), ("400 kept columns", wide, 400), ("300 files", many_files, 0),
        ("34 M users", many_users, 0),
    ):  # fmt: skip
        if options.only not in label:
            continue
        with tempfile.TemporaryDirectory(dir=options.work) as scratch:
            folder = Path(scratch)
            rows = write(folder, options.scale)
            config = {
                "output": str(folder / "prepared"), "memory_limit_gb": options.memory_gb, "tokenizer": {"kind": "none"},
                "source": {
                    "format": "tables", "impressions": {"files": str(folder / "log")},
                    "ads": {"files": str(folder / "ads.parquet")},
                },
                "counters": COUNTERS, "keep": [f"kept_{number}" for number in range(keep)],
                "features": {"impressions": {"numeric": ["counter_*"]}},
            }  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-c", _PROGRAM, repr(config)], check=True, stdout=subprocess.PIPE, text=True
            )  # fmt: skip
            cpu, peak = (float(value) for value in done.stdout.split()[-2:])
            print(f"{label:<32} {rows:>10,} {cpu:>7.1f} {rows / cpu:>13,.0f} {peak:>8.0f}", flush=True)


_PROGRAM = """
import resource, sys
from adrec.config.data.preprocess import PreprocessConfig
from adrec.stages.data.preprocess import run
from adrec.terminal import Terminal
run(PreprocessConfig.model_validate(eval(sys.argv[1])), Terminal(quiet=True))
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def heavy_user(folder: Path, scale: float) -> int:
    """4 M rows, ten a request; a guest account has every other request."""
    requests = int(400_000 * scale)
    user = np.where(np.arange(requests) % 2 == 0, 0, 1 + np.arange(requests) % 50_000)
    return _write(folder, [_rows(np.arange(requests), user)])


def wide(folder: Path, scale: float) -> int:
    """200,000 rows with 400 columns of their own."""
    requests = int(20_000 * scale)
    table = _rows(np.arange(requests), np.arange(requests) % 5_000)
    rng = np.random.default_rng(0)
    for number in range(400):
        table = table.append_column(f"kept_{number}", pa.array(rng.random(len(table))))
    return _write(folder, [table])


def many_files(folder: Path, scale: float) -> int:
    """300 files of some hundred rows."""
    requests = max(int(30 * scale), 2)
    return _write(folder, [_rows(file * requests + np.arange(requests), np.arange(requests) % 7) for file in range(300)])


def many_users(folder: Path, scale: float) -> int:
    """34 files of a million rows, each row the only one of its user: as many ids, counters and histories as rows."""
    users = int(1_000_000 * scale)
    numbers = (np.arange(file * users, (file + 1) * users) for file in range(34))
    return _write(folder, (_rows(number, number, shown=1) for number in numbers))


def _rows(number: np.ndarray, user: np.ndarray, *, shown: int = 10) -> pa.Table:
    rng = np.random.default_rng(int(number[0]))
    count = len(number) * shown
    return pa.table(
        {
            "user_id": pa.array(np.repeat(user, shown)).cast(pa.string()),
            "ad_id": pa.array((5_000 * rng.random(count) ** 2).astype(np.int64)).cast(pa.string()),
            "shown_at": pa.array(START + np.repeat(number, shown) * 200_000 * shown).cast(pa.timestamp("us", tz="UTC")),
            "request_id": pa.array(np.repeat(number, shown)).cast(pa.string()),
            "position": np.tile(np.arange(1, shown + 1, dtype=np.int32), len(number)),
            "click": (rng.random(count) < 0.08).astype(np.int8),
        }
    )


def _write(folder: Path, tables: Iterable[pa.Table]) -> int:
    (folder / "log").mkdir()
    ads = [str(number) for number in range(5_000)]
    pq.write_table(
        pa.table({"ad_id": ads, "title": ads, "category": [f"c{number % 20}" for number in range(5_000)]}),
        folder / "ads.parquet",
    )
    rows = 0
    for number, table in enumerate(tables):
        pq.write_table(table, folder / "log" / f"part-{number:04d}.parquet")
        rows += len(table)
    return rows


if __name__ == "__main__":
    main()
