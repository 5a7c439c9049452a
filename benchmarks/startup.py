"""How long `adrec --help` takes, beside importing the two libraries that any Typer command needs.

Promise: at most 1.5 times `python -c "import typer, rich"`. The two are run in turns and judged by processor time of the
child, whose median a busy machine moves least.

    python benchmarks/startup.py
"""

import os
import resource
import statistics
import subprocess
import sys
import time

REPEATS = 15
COMMANDS = {
    'python -c "import typer, rich"': [sys.executable, "-c", "import typer, rich"],
    "adrec --help": [sys.executable, "-m", "adrec", "--help"],
    "adrec --version": [sys.executable, "-m", "adrec", "--version"],
    "adrec finetune --help": [sys.executable, "-m", "adrec", "finetune", "--help"],
}


def main() -> None:
    wall: dict[str, list[float]] = {name: [] for name in COMMANDS}
    processor: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPEATS):
        for name, command in COMMANDS.items():
            before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
            wall[name].append(time.perf_counter() - begun)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            processor[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    base = statistics.median(processor[next(iter(COMMANDS))])
    print(f"{'':34}{'processor ms':>14}{'wall ms':>10}{'ratio':>8}")
    for name in COMMANDS:
        cost = statistics.median(processor[name])
        print(f"{name:34}{1000 * cost:14.0f}{1000 * statistics.median(wall[name]):10.0f}{cost / base:8.2f}")


if __name__ == "__main__":
    main()
