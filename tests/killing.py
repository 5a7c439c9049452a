"""Kill -9 a stage at random moments of its work. Processes are forked from a server that has the imports done already, so that
forty runs cost little more than their work."""

import importlib
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HEAVY = [
    "torch",
    "transformers",
    "adrec.stages.inference.score",
    "adrec.stages.inference.rank",
    "adrec.inference.shards",
    "adrec.inference.lists.ranker",
]


def run_stage(stage: str, config: Any) -> None:
    """What a process of its own does."""
    from adrec.terminal import Terminal

    importlib.import_module(f"adrec.stages.{stage}").run(config, Terminal(quiet=True))


def survives_kills(
    stage: str, config: Any, check: Callable[[], None], *, kills: int, seed: int = 0, expected_resumes: int = 1
) -> None:
    """Kill the stage `kills` times, at moments drawn over all of its run; after each, run it again to its end and `check`.

    At least `expected_resumes` kills must have left finished parts behind, or the moments say nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)

    def finish() -> float:
        process = context.Process(target=run_stage, args=(stage, config))
        began = time.monotonic()
        process.start()
        process.join(300)
        assert process.exitcode == 0
        return time.monotonic() - began

    finish()  # the first also starts the server
    seconds = finish()
    rng = np.random.default_rng(seed)
    killed = resumes = 0
    while killed < kills:
        Path(config.output).unlink()
        process = context.Process(target=run_stage, args=(stage, config))
        process.start()
        time.sleep(float(rng.uniform(0.0, 1.0)) * seconds)
        process.kill()
        process.join()
        killed += process.exitcode != 0  # else it was done before
        resumes += bool(list(Path(config.output).parent.glob(".*/part-*")))
        finish()
        check()
        assert [file.name for file in Path(config.output).parent.iterdir()] == [config.output.name], killed
    assert resumes >= expected_resumes
