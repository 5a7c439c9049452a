"""Rows a second and peak memory of `adrec preprocess`, beside polars reading, joining and writing the same columns.

    python benchmarks/preprocess.py [--rows 2000000 10000000] [--data FOLDER] [--append]

`--append` measures instead what a day costs: the log is cut into 15 spans of time, of which 14 are prepared and the last one is
appended, exactly and fast, beside a full run over all of them.

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

DAYS = 15
CONFIG = Path(__file__).parents[1] / "configs" / "sample" / "preprocess.yaml"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000_000, 10_000_000])
    parser.add_argument("--data", type=Path, default=None, help="folder of samples that are there already, named by their rows")
    parser.add_argument("--work", type=Path, default=None, help="folder for scratch files")
    parser.add_argument("--append", action="store_true", help="measure the append of the last of 15 days")
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
            if options.append:
                measure_append(data, folder, rows)
                continue
            for function, label in (("with_polars", "polars: read, join, write"), ("with_adrec", "adrec preprocess")):
                seconds, cpu, peak = in_a_process(function, data, folder / function)
                print(f"{rows:>12,} {label:<32} {seconds:>8.1f} {cpu:>7.1f} {rows / cpu:>13,.0f} {peak:>8.0f}", flush=True)


def measure_append(data: Path, folder: Path, rows: int) -> None:
    """Print a line for the full run and for the append of the last of DAYS days in both modes."""
    import shutil

    cut_in_days(data, folder / "days")
    steps = [("full run over 15 days", "full", "exact", DAYS)]
    for mode in ("exact", "fast"):
        steps += [("", mode, mode, DAYS - 1), (f"append of day 15, {mode}", mode, mode, DAYS)]
    for label, output, mode, days in steps:
        log = folder / f"log-{output}"
        shutil.rmtree(log, ignore_errors=True)
        log.mkdir()
        for file in sorted((folder / "days").iterdir())[:days]:
            (log / file.name).symlink_to(file)
        for table in ("ads", "users"):
            (folder / f"{table}.parquet").unlink(missing_ok=True)
            (folder / f"{table}.parquet").symlink_to((data / f"{table}.parquet").resolve())
        seconds, cpu, peak = in_a_process("append_with_adrec", folder, folder / f"{mode}-{output}")
        if label:
            print(f"{rows:>12,} {label:<32} {seconds:>8.1f} {cpu:>7.1f} {'':>13} {peak:>8.0f}", flush=True)


def cut_in_days(data: Path, folder: Path) -> None:
    """The log of a sample as DAYS files, by equal spans of time."""
    import duckdb

    folder.mkdir()
    log = f"read_parquet('{data}/impressions/*.parquet')"
    [(first, last)] = duckdb.execute(f"SELECT min(epoch_us(shown_at)), max(epoch_us(shown_at)) + 1 FROM {log}").fetchall()
    for day in range(DAYS):
        low, high = (first + (last - first) * at // DAYS for at in (day, day + 1))
        chosen = f"SELECT * FROM {log} WHERE epoch_us(shown_at) >= {low} AND epoch_us(shown_at) < {high}"
        duckdb.execute(f"COPY ({chosen}) TO '{folder}/day-{day:02d}.parquet' (FORMAT parquet, COMPRESSION zstd)")


def append_with_adrec(folder: Path, output: Path) -> None:
    """The stage over the days that lie there now; `output` is called MODE-LOG."""
    from adrec.config.base import load_config
    from adrec.config.data.preprocess import PreprocessConfig
    from adrec.stages.data.preprocess import run
    from adrec.terminal import Terminal

    mode, log = output.name.split("-")
    tables = {"ads": "ads.parquet", "users": "users.parquet", "impressions": f"log-{log}"}
    overrides = [f"source.{table}.files={folder / name}" for table, name in tables.items()]
    split = "split={method: time, valid_from: 2026-03-13, test_from: 2026-03-14}"
    run(load_config(CONFIG, PreprocessConfig, [f"output={output}", *overrides, split, f"append={mode}"]), Terminal(quiet=True))


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
    from adrec.config.data.preprocess import PreprocessConfig
    from adrec.stages.data.preprocess import run
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
