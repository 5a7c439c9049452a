"""Rows a second and peak memory of history and counters, beside polars reading and writing the same columns without any.

    python benchmarks/counters.py [--rows 2000000 10000000]

Each measurement is a process of its own, so that its peak resident memory is its own. One core each.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SLOTS = 10
ADS, ADVERTISERS, CATEGORIES = 20_000, 1_000, 40


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000_000, 10_000_000])
    parser.add_argument("--users-per-row", type=float, default=0.01)
    parser.add_argument("--work", type=Path, default=None, help="folder for scratch files")
    options = parser.parse_args()
    print(f"{'rows':>12} {'method':<28} {'seconds':>8} {'cpu s':>7} {'rows / cpu s':>13} {'peak MB':>8}")
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.work) as scratch:
            folder = Path(scratch)
            in_a_process("write_world", folder, rows, max(1, int(rows * options.users_per_row)))
            for method, label in (("with_past", "history and usual counters"), ("with_polars", "polars, no counters")):
                seconds, cpu, peak = in_a_process(method, folder)
                print(f"{rows:>12,} {label:<28} {seconds:>8.1f} {cpu:>7.1f} {rows / cpu:>13,.0f} {peak:>8.0f}", flush=True)


def in_a_process(function: str, folder: Path, *arguments: int) -> tuple[float, float, float]:
    """Run one of this file's functions in a new process; returns its seconds, processor seconds and peak resident megabytes."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import counters; from pathlib import Path; "
        f"counters.measured(counters.{function}, Path({str(folder)!r}), *{arguments!r})"
    )
    limits = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=limits)
    seconds, cpu, peak = done.stdout.split()[-3:]
    return float(seconds), float(cpu), float(peak)


def measured(function, folder: Path, *arguments: int) -> None:
    """Call, then print seconds, processor seconds and this process's peak resident megabytes."""
    pa.set_cpu_count(1)
    start = time.perf_counter()
    function(folder, *arguments)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def write_world(folder: Path, rows: int, users: int) -> None:
    """Impressions in time order, ten to a request, a month long; popular ads and busy users are skewed."""
    generator = np.random.default_rng(0)
    requests = rows // SLOTS
    month = 30 * 24 * 3_600_000_000
    pq.write_table(
        pa.table(
            {
                "ad_id": [f"a{i}" for i in range(ADS)],
                "category": [f"c{i}" for i in generator.integers(0, CATEGORIES, ADS)],
                "advertiser_id": [f"v{i}" for i in generator.integers(0, ADVERTISERS, ADS)],
            }
        ),
        folder / "ads.parquet",
    )
    writer: pq.ParquetWriter | None = None
    for start in range(0, requests, 20_000):
        count = min(20_000, requests - start)
        at = np.sort(generator.integers(month * start // requests, month * (start + count) // requests, count))
        user = (users * generator.random(count) ** 1.5).astype(np.int32)
        table = pa.table(
            {
                "user_index": np.repeat(user, SLOTS),
                "ad_index": (ADS * generator.random(count * SLOTS) ** 2).astype(np.int32),
                "shown_at": pa.array(np.repeat(at, SLOTS)).cast(pa.timestamp("us", tz="UTC")),
                "request_id": pa.array(np.repeat(np.arange(start, start + count), SLOTS)).cast(pa.string()),
                "position": np.tile(np.arange(1, SLOTS + 1, dtype=np.int32), count),
                "click": (generator.random(count * SLOTS) < 0.08).astype(np.int8),
            }
        )
        writer = writer or pq.ParquetWriter(folder / "rows.parquet", table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def with_past(folder: Path) -> None:
    """Read, attach history and the usual counters, write."""
    import duckdb

    from adrec.asof.attach import Attach
    from adrec.specs import HistorySpec, usual_counters

    ads = pq.read_table(folder / "ads.parquet")
    counters = usual_counters([*ads.column_names, "position"])
    settings = {"memory_limit": "400MB", "threads": 1, "temp_directory": str(folder / "spill")}
    with duckdb.connect(str(folder / "work.duckdb"), config=settings) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            f"CREATE TABLE events AS SELECT *, shown_at AS started, CAST(request_id AS INTEGER) AS request "
            f"FROM read_parquet('{folder / 'rows.parquet'}')"
        )
        count = connection.execute("SELECT max(user_index) + 1 FROM events").fetchone()[0]
        users = pa.table({"user_id": pa.array(np.arange(count)).cast(pa.string())})
        attach = Attach(connection, ads=ads, users=users, history=HistorySpec(), counters=counters, state=folder / "state")
        write_batches(attach.run(), folder / "past.parquet")


def with_polars(folder: Path) -> None:
    """Read, join the ads, write: no counters."""
    import polars as pl

    ads = pl.scan_parquet(folder / "ads.parquet").with_row_index("ad_index").with_columns(pl.col("ad_index").cast(pl.Int32))
    joined = pl.scan_parquet(folder / "rows.parquet").join(ads, on="ad_index", how="left", maintain_order="left")
    joined.sink_parquet(folder / "polars.parquet", compression="zstd")


def write_batches(batches, path: Path) -> None:
    """One zstd Parquet file."""
    writer: pq.ParquetWriter | None = None
    for batch in batches:
        writer = writer or pq.ParquetWriter(path, batch.schema, compression="zstd")
        writer.write_batch(batch)
    if writer is not None:
        writer.close()


if __name__ == "__main__":
    main()
