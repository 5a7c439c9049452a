"""Processor seconds a million rows of preprocess, score, rank and evaluate: by one machine, and with Ray beside it.

python benchmarks/cluster.py --rows 400000 --work runs/bench-cluster

The log is the sample's, in eight CSV files. Each command runs once by itself and once with `--cluster local` and two workers;
processor seconds are those of the process and of everything below it, so that they say the same on a busy machine. Ray's own
start (a fixed cost of each command) is measured apart, by a run of a thousandth of the rows. Ends in a table.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.csv
import pyarrow.dataset as ds

FILES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    work = options.work.resolve()
    large, small = work / "large", work / "small"
    for folder, rows in ((large, options.rows), (small, 4_000)):
        _log(folder, rows)
    found = {}
    for name in ("preprocess", "score", "rank", "evaluate"):
        for folder in (large, small):
            if name == "score" and not (folder / "bundle").exists():
                _run(folder, "finetune", None)
            found[name, folder.name, "alone"] = _run(folder, name, None)
            found[name, folder.name, "ray"] = _run(folder, name, "local")
    print(f"{'':12}{'rows':>10}{'alone':>10}{'Ray':>10}{'ratio':>8}{'start':>8}   processor seconds; start: Ray's, apart")
    for name in ("preprocess", "score", "rank", "evaluate"):
        alone, ray = found[name, "large", "alone"], found[name, "large", "ray"]
        start = found[name, "small", "ray"] - found[name, "small", "alone"]
        print(f"{name:12}{options.rows:>10,}{alone:>10.1f}{ray:>10.1f}{(ray - start) / alone:>8.2f}{start:>8.1f}")
    print(json.dumps({" ".join(key): round(value, 1) for key, value in found.items()}))


def _log(folder: Path, rows: int) -> None:
    if (folder / "log").exists():
        return
    sample = folder / "sample"
    subprocess.run(
        [sys.executable, "-m", "adrec", "sample", "--quiet", "--output", sample, "--impressions", str(rows)], check=True
    )
    table = ds.dataset(sample / "impressions").to_table()
    (folder / "log").mkdir(parents=True)
    step = -(-len(table) // FILES)
    listed = [name for name in table.column_names if not str(table.schema.field(name).type).startswith("list")]
    for number in range(FILES):
        pyarrow.csv.write_csv(table.select(listed).slice(number * step, step), folder / "log" / f"part-{number}.csv")


def _run(folder: Path, command: str, cluster: str | None) -> float:
    """Processor seconds of one command and all of its processes."""
    sample, prepared, bundle = folder / "sample", folder / f"prepared{'-ray' if cluster else ''}", folder / "bundle"
    settings = {
        "preprocess": {
            "source.format": "tables", "source.impressions.files": folder / "log", "source.ads.files": sample / "ads.parquet",
            "source.users.files": sample / "users.parquet", "output": prepared, "append": "never", "counters": "usual",
            "tokenizer.kind": "none", "threads": 1,
        },
        "finetune": {
            "prepared": prepared, "output": bundle, "text.reference": "null", "model.width": 16, "training.epochs": 1,
            "baselines.names": "[]", "recall_requests": 0,
        },
        "score": {"bundle": bundle, "prepared": folder / "prepared", "split": "train", "shard_rows": 32768, "threads": 1},
        "rank": {"bundle": bundle, "prepared": folder / "prepared", "split": "test", "recall_requests": 0},
        "evaluate": {"scored": folder / "scored.parquet", "bootstrap.replicates": 200, "report": "false"},
    }[command]  # fmt: skip
    outputs = {"score": "scored.parquet", "rank": "ranked.parquet", "evaluate": "evaluation"}
    if command in outputs:
        settings["output"] = folder / (("ray-" if cluster else "") + outputs[command])
    line = [sys.executable, "-m", "adrec", command, "--quiet"]
    line += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    if cluster is not None:
        line += ["--cluster", cluster, "--set", "cluster.workers=2"]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    spent: dict[int, float] = {}
    while process.poll() is None:
        for pid in _below(process.pid):
            spent[pid] = max(spent.get(pid, 0.0), _seconds(pid))
        time.sleep(0.25)
    assert process.returncode == 0, line
    print(f"{folder.name} {command} {cluster or 'alone'}: {sum(spent.values()):.1f} s", file=sys.stderr)
    return sum(spent.values())


def _below(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(found for child in children for found in _below(int(child)))]


def _seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
