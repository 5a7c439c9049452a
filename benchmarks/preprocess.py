"""Rows a second and peak memory of `adrec preprocess`, beside polars reading, joining and writing the same columns.

    python benchmarks/preprocess.py [--rows 2000000 10000000] [--data FOLDER]

The sample's log goes through the sample's config: checks, order, texts, histories of clicks and of skipped ads, the usual
counters, the split, fitted features, a tokenizer. polars reads, looks up ads and users, and writes by split; it orders,
checks and counts nothing. Each measurement is a process of its own, so that its peak resident memory is its own.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "sample" / "preprocess.yaml"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000_000, 10_000_000])
    parser.add_argument("--data", type=Path, default=None, help="folder of samples that are there already, named by their rows")
    parser.add_argument("--work", type=Path, default=None, help="folder for scratch files")
    options = parser.parse_args()
    print(f"{'rows':>12} {'method':<32} {'seconds':>8} {'cpu s':>7} {'rows / cpu s':>13} {'peak MB':>8}", flush=True)
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.work) as scratch:
            folder = Path(scratch)
            data = options.data / str(rows) if options.data is not None else folder / "data"
            if not data.exists():
                subprocess.run(
                    [sys.executable, "-m", "adrec", "sample", "--out", str(data), "--impressions", str(rows), "--quiet"],
                    check=True, stdout=subprocess.DEVNULL,
                )  # fmt: skip
            for function, label in (("with_polars", "polars: read, join, write"), ("with_adrec", "adrec preprocess")):
                seconds, cpu, peak = in_a_process(function, data, folder / function)
                print(f"{rows:>12,} {label:<32} {seconds:>8.1f} {cpu:>7.1f} {rows / cpu:>13,.0f} {peak:>8.0f}", flush=True)


def in_a_process(function: str, data: Path, output: Path) -> tuple[float, float, float]:
    """Run one of this file's functions in a new process; its seconds, processor seconds and peak resident megabytes."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import preprocess; from pathlib import Path; "
        f"preprocess.measured(preprocess.{function}, Path({str(data)!r}), Path({str(output)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    seconds, cpu, peak = done.stdout.split()[-3:]
    return float(seconds), float(cpu), float(peak)


def measured(function, data: Path, output: Path) -> None:
    """Call, then print seconds, processor seconds and this process's peak resident megabytes."""
    start = time.perf_counter()
    function(data, output)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def with_adrec(data: Path, output: Path) -> None:
    """The stage itself."""
    from adrec.config.base import load_config
    from adrec.config.preprocess import PreprocessConfig
    from adrec.stages.preprocess import run
    from adrec.terminal import Terminal

    tables = {"ads": "ads.parquet", "users": "users.parquet", "impressions": "impressions"}
    overrides = [f"source.{table}.files={data / name}" for table, name in tables.items()]
    run(load_config(CONFIG, PreprocessConfig, [f"output={output}", *overrides]), Terminal(quiet=True))


def with_polars(data: Path, output: Path) -> None:
    """The same columns but for the past: streamed, joined with ads and users, written in three parts."""
    import polars

    log = polars.scan_parquet(data / "impressions" / "*.parquet")
    for table, key in (("ads", "ad"), ("users", "user")):
        found = polars.scan_parquet(data / f"{table}.parquet").select(f"{key}_id").with_row_index(f"{key}_index")
        log = log.join(found, on=f"{key}_id", how="left")
    moments = polars.scan_parquet(data / "impressions" / "*.parquet").select("shown_at")
    valid, test = (moments.select(polars.col("shown_at").quantile(share)).collect().item() for share in (0.7, 0.8))
    parts = {
        "train": polars.col("shown_at") < valid,
        "valid": (polars.col("shown_at") >= valid) & (polars.col("shown_at") < test),
        "test": polars.col("shown_at") >= test,
    }
    for name, condition in parts.items():
        output.mkdir(parents=True, exist_ok=True)
        log.filter(condition).sink_parquet(output / f"{name}.parquet", compression="zstd")


if __name__ == "__main__":
    main()
