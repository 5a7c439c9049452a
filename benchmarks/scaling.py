"""Training by one and by two processes: rows a second.

    python benchmarks/scaling.py --prepared runs/sample/prepared --device cpu

Strong scaling: the same batch, cut in two. Weak scaling: two such batches a step. Each process has one thread, so that two
cores are two processors; each kind runs `--runs` times, in turn, and the best of each is shown, for a machine is rarely all
one's own. Starting is taken off: the same command with a tenth of the rows is run beside each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = {"one process": (1, 1.0), "strong: two, half a batch each": (2, 0.5), "weak: two, a batch each": (2, 1.0)}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--batch-rows", type=int, default=2_048)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that are trained on, about")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], help="settings of finetune")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    for _ in range(options.runs):
        for name, (processes, share) in KINDS.items():
            long, short = (measured(options, processes, share, rows) for rows in (options.rows, options.rows // 10))
            seconds[name].append(long - short)
    print(f"{'':32}{'rows / s':>10}{'ratio':>7}")
    rows, alone = options.rows - options.rows // 10, min(seconds["one process"])
    for name, took in seconds.items():
        print(f"{name:32}{rows / min(took):>10,.0f}{alone / min(took):>7.2f}")


def measured(options: argparse.Namespace, processes: int, share: float, rows: int) -> float:
    """Seconds of the training on `rows` rows."""
    batch = int(options.batch_rows * share)
    steps = max(1, rows // (batch * processes))
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "prepared": options.prepared, "output": f"{scratch}/bundle", "training.devices": processes,
            "training.batch_rows": batch, "training.max_steps": steps, "training.epochs": 1_000, "training.patience": "null",
            "training.loggers": "[]", "baselines.names": "[]", "hybrid.kind": "none", "recall_requests": 0,
            "device": options.device,
        }  # fmt: skip
        lines = [f"{key}={value}" for key, value in settings.items()] + options.set
        command = [sys.executable, "-m", "adrec", "finetune", "--quiet", *(word for line in lines for word in ("--set", line))]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        training = json.loads(Path(scratch, "bundle", "metrics.json").read_text(encoding="utf-8"))["training"]
    return float(training["seconds"])


if __name__ == "__main__":
    main()
