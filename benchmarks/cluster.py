"""What Ray adds: processor seconds of preprocess, score, rank and evaluate by one machine, and by one and two workers.

python benchmarks/cluster.py --rows 400000 --work runs/bench-cluster

The log is the sample's, in eight CSV files; the bundle is trained on 20,000 rows of such a log. Each command runs by itself,
with one worker and with two, and once more on a hundredth of the rows, which is what starting costs. Processor seconds are
those of the command and of everything below it, so they say the same on a busy machine; those of the workers are what more
nodes share. What travels is counted by a run in which everything on its way is pickled. A figure that is in `figures.json` of
the work folder is not measured again.
Ends in a table, and in the seconds that 1, 10 and 100 nodes of 16 processors are predicted to take.
"""

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq

FILES = 8
COMMANDS = ("preprocess", "score", "rank", "evaluate")
PROCESSORS_A_NODE = 16
TRAINING_ROWS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--requests", type=int, default=2_000, help="lists of rank")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sample", type=Path, help="folder of `adrec sample` with so many rows, where there is one")
    parser.add_argument("--commands", nargs="+", default=COMMANDS, choices=COMMANDS)
    options = parser.parse_args()
    work = options.work.resolve()
    book = work / "figures.json"
    sizes = {"large": options.rows, "small": options.rows // 100}
    for name, rows in {**sizes, "training": TRAINING_ROWS}.items():
        _log(work / name, rows, options.sample if name == "large" else None, options.requests if name == "large" else 50)
    if not (work / "bundle").exists():
        _run(work, "training", "preprocess", 0)
        _run(work, "training", "finetune", 0)
    figures: dict[str, Any] = json.loads(book.read_text()) if book.exists() else {}
    for command in options.commands:
        for name in sizes:
            for workers in (0, 1, 2):
                key = f"{command} {name} {workers}"
                if key not in figures:
                    figures[key] = _run(work, name, command, workers)
                    print(key, figures[key], file=sys.stderr)
                    book.write_text(json.dumps(figures, indent=1))
        if f"{command} bytes" not in figures:
            figures[f"{command} bytes"] = _bytes(work, command)
            book.write_text(json.dumps(figures, indent=1))
    _tell(figures, options)


def _tell(figures: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"processor seconds, {options.rows:,} rows ({options.requests:,} requests of rank); in brackets without starting")
    print(f"{'':12}{'alone':>18}{'1 worker':>18}{'2 workers':>18}{'ratio':>7}{'shared':>8}{'GB a worker':>13}{'MB travel':>11}")
    shared, serial = {}, {}
    for command in options.commands:
        cells, net = [], []
        for workers in (0, 1, 2):
            large, small = figures[f"{command} large {workers}"], figures[f"{command} small {workers}"]
            net.append(large["all"] - small["all"])
            cells.append(f"{large['all']:.1f} ({net[-1]:.1f})")
        two, start = figures[f"{command} large 2"], figures[f"{command} small 2"]
        shared[command] = max(two["workers"] - start["workers"], 0.0)
        serial[command] = two["command"]
        part = shared[command] / max(net[2], 1e-9)
        print(f"{command:12}" + "".join(f"{cell:>18}" for cell in cells), end="")
        print(f"{net[2] / net[0]:>7.2f}{part:>8.0%}{two['gb']:>13.2f}{figures[f'{command} bytes'] / 1e6:>11.1f}")
    print("seconds predicted: what the command does by itself, then what workers share")
    for command in options.commands:
        each = [serial[command] + shared[command] / (PROCESSORS_A_NODE * nodes) for nodes in (1, 10, 100)]
        walls = [figures[f"{command} large {workers}"]["wall"] for workers in (1, 2)]
        print(f"{command:12}" + "".join(f"{value:>9.1f}" for value in each), end="")
        print(f"   by the clock here: {walls[0]:.1f} with 1 worker, {walls[1]:.1f} with 2")


def _log(folder: Path, rows: int, sample: Path | None, requests: int) -> None:
    """Eight CSV files, and requests of its last tenth."""
    if (folder / "requests.parquet").exists():
        return
    made = folder / "sample"
    if sample is not None:
        folder.mkdir(parents=True, exist_ok=True)
        made.symlink_to(sample.resolve())
    else:
        command = [sys.executable, "-m", "adrec", "sample", "--quiet", "--output", made, "--impressions", str(rows)]
        subprocess.run(command, check=True)
    table = ds.dataset(made / "impressions").to_table()
    (folder / "log").mkdir(parents=True, exist_ok=True)
    step = -(-len(table) // FILES)
    listed = [name for name in table.column_names if not str(table.schema.field(name).type).startswith("list")]
    for number in range(FILES):
        pyarrow.csv.write_csv(table.select(listed).slice(number * step, step), folder / "log" / f"part-{number}.csv")
    late = (
        table.slice(len(table) * 9 // 10).select(["user_id", "shown_at"]).group_by("user_id").aggregate([("shown_at", "max")])
    )
    late = late.rename_columns(["user_id", "shown_at"]).slice(0, requests).sort_by("shown_at")
    pq.write_table(
        late.append_column("request_id", pc.binary_join_element_wise("q", late["user_id"], "")), folder / "requests.parquet"
    )


def _settings(work: Path, folder: Path, command: str, workers: int) -> dict[str, Any]:
    sample, prepared, mark = folder / "sample", folder / "prepared", f"-{workers}" if workers else ""
    own: dict[str, dict[str, Any]] = {
        "preprocess": {
            "source.format": "tables", "source.impressions.files": folder / "log", "source.ads.files": sample / "ads.parquet",
            "source.users.files": sample / "users.parquet", "output": folder / f"prepared{mark}", "append": "never",
            "counters": "usual", "tokenizer.kind": "none", "threads": 1,
        },
        "finetune": {
            "prepared": prepared, "output": work / "bundle", "text.reference": "null", "model.width": 32, "training.epochs": 1,
            "baselines.names": "[]", "hybrid.kind": "none", "recall_requests": 0,
        },
        "score": {
            "bundle": work / "bundle", "prepared": prepared, "split": "train", "shard_rows": 65536, "threads": 1,
            "output": folder / f"scored{mark}.parquet",
        },
        "rank": {
            "bundle": work / "bundle", "prepared": prepared, "requests.files": folder / "requests.parquet",
            "recall_requests": 0, "policies.default": "{limits: {budget: false}}", "output": folder / f"ranked{mark}.parquet",
        },
        "evaluate": {
            "scored": folder / "scored.parquet", "bootstrap.replicates": 200, "report": "false",
            "output": folder / f"evaluation{mark}",
        },
    }  # fmt: skip
    return own[command] | ({"cluster.workers": workers} if workers else {})


def _run(work: Path, name: str, command: str, workers: int) -> dict[str, float]:
    """Processor seconds of the command, the workers, Ray itself and all; seconds by the clock; the largest worker's GB."""
    settings = _settings(work, work / name, command, workers)
    _remove(settings["output"])  # else what is there would be found good
    line = [sys.executable, "-m", "adrec", command, "--quiet"]
    line += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    began = time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    spent: dict[int, tuple[str, float]] = {}
    most = 0.0
    while process.poll() is None:
        for pid in _below(process.pid):
            before, seconds = spent.get(pid, ("ray", 0.0))
            kind = "workers" if before == "workers" else _kind(pid, process.pid)  # one that has ended has no name any more
            spent[pid] = (kind, max(seconds, _seconds(pid)))
            if kind == "workers":
                most = max(most, _gigabytes(pid))
        time.sleep(0.1)
    assert process.returncode == 0, line
    sums = {kind: sum(value for own, value in spent.values() if own == kind) for kind in ("command", "workers", "ray")}
    made = {**sums, "all": sum(sums.values()), "wall": time.monotonic() - began, "gb": most}
    return {key: round(value, 2) for key, value in made.items()}


def _bytes(work: Path, command: str) -> int:
    """Bytes of tasks and results of one command on the large log, in this process."""
    import importlib

    from adrec.config.base import load_config
    from adrec.config.data.preprocess import PreprocessConfig
    from adrec.config.evaluation.evaluate import EvaluateConfig
    from adrec.config.inference.rank import RankConfig
    from adrec.config.inference.score import ScoreConfig
    from adrec.terminal import Terminal

    moved = [0]

    class Counting:
        """In the place of the pool of workers."""

        def __init__(self, cluster: Any, factory: Any, payload: Any, terminal: Any, **more: Any) -> None:
            self.factory, self.payload = factory, payload

        def __enter__(self) -> "Counting":
            self.folder = tempfile.TemporaryDirectory()
            self.work = self.factory(pickle.loads(pickle.dumps(self.payload)), Path(self.folder.name))
            return self

        def __exit__(self, *fault: Any) -> None:
            self.folder.cleanup()

        def workers(self, most: int) -> int:
            return 2

        def each(self, tasks: Any, most: int | None = None, *, at_once: bool = False) -> Any:
            for task in tasks:
                sent = pickle.dumps(task)
                back = pickle.dumps(self.work(pickle.loads(sent)))
                moved[0] += len(sent) + len(back)
                yield task, pickle.loads(back)

        def in_order(self, tasks: Any, most: int) -> Any:
            for _, result in self.each(tasks):
                yield result

    users = ("inference.shards", "inference.lists.blocks", "stages.evaluation.measuring", "prepare.staging.parts")
    for module in (*users, "prepare.log.sharing"):
        importlib.import_module(f"adrec.{module}").Pool = Counting  # type: ignore[attr-defined]
    models = {"preprocess": PreprocessConfig, "score": ScoreConfig, "rank": RankConfig, "evaluate": EvaluateConfig}
    stages = {"preprocess": "data.preprocess", "score": "inference.score", "rank": "inference.rank"}
    settings = _settings(work, work / "large", command, 2)
    _remove(settings["output"])
    lines = [f"{key}={value}" for key, value in settings.items()]
    stage = importlib.import_module(f"adrec.stages.{stages.get(command, 'evaluation.evaluate')}")
    stage.run(load_config(None, models[command], lines), Terminal(quiet=True))
    return moved[0]


def _remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    output.unlink(missing_ok=True)


def _kind(pid: int, command: int) -> str:
    if pid == command:
        return "command"
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "ray"
    return "workers" if line.startswith(b"ray::Worker") else "ray"


def _below(pid: int) -> list[int]:
    try:
        children = [word for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(found for child in children for found in _below(int(child)))]


def _seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _gigabytes(pid: int) -> float:
    """Memory of its own."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e6


if __name__ == "__main__":
    main()
