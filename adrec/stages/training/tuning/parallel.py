"""Trials side by side on a cluster. The study stays with the command: workers train, and ask it whether to go on.

A worker that is lost costs its trial's time: another trains it again from the start. A command that is stopped tries the values
of its unfinished trials first when it is run again. With several trials at once, which values are tried depends on which ended
first; what a trial finds for its values does not.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from adrec.cluster.desk import ask, desk
from adrec.cluster.pool import Pool
from adrec.config.cluster import ClusterConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.errors import AdrecError
from adrec.stages.training.tuning.study import Outcome, PrunedError, Study
from adrec.stages.training.tuning.trial import train_trial
from adrec.terminal import Terminal


def run_trials(
    study: Study,
    cluster: ClusterConfig,
    chosen: Callable[[dict[str, Any]], FinetuneConfig],
    *,
    reads: Iterable[Path],
    trials: int,
    deadline: float | None,
    terminal: Terminal,
) -> Iterator[None]:
    """Run trials until there are `trials`, or the moment `deadline` (`time.monotonic`) is past; yields after each.

    `chosen` gives the whole config of a trial from its values, all of whose inputs lie below `reads`.
    """

    def asked() -> Iterator[dict[str, Any]]:
        for _ in range(trials - study.finished):
            if deadline is not None and time.monotonic() > deadline:
                return
            number, values = study.ask()
            yield {"name": str(number), "trial": number, **_config_or_fault(chosen, values)}

    with (
        Pool(cluster, trial_worker, None, terminal, reads=reads, of="trial") as pool,
        desk(pool.ray, lambda question: study.is_hopeless(*question)) as made,
    ):
        pool.payload = {"desk": made}
        for task, outcome in pool.each(asked(), trials - study.finished, at_once=True):
            study.tell(task["trial"], outcome)
            yield


def trial_worker(payload: dict[str, Any], scratch: Path) -> Callable[[dict[str, Any]], Outcome]:
    """In a worker of a cluster: from the config of a trial to how it ended."""

    def train(task: dict[str, Any]) -> Outcome:
        def report(step: int, value: float) -> None:
            if ask(payload["desk"], (task["trial"], step, value)):
                raise PrunedError

        if "fault" in task:
            return Outcome(None, task["fault"])
        work = scratch / "trial"
        shutil.rmtree(work, ignore_errors=True)
        try:
            return Outcome(train_trial(FinetuneConfig.model_validate(task["config"]), work, Terminal(quiet=True), report))
        except PrunedError:
            return Outcome(None)
        except AdrecError as error:
            return Outcome(None, str(error).splitlines()[0])

    return train


def _config_or_fault(chosen: Callable[[dict[str, Any]], FinetuneConfig], values: dict[str, Any]) -> dict[str, Any]:
    """What a trial trains. Values that do not go together are its own fault, and no other trial's."""
    try:
        return {"config": chosen(values).model_dump(mode="json")}
    except AdrecError as error:
        return {"fault": str(error).splitlines()[0]}
