"""The search itself: an optuna study in SQLite that a killed run goes on with.

Each trial's proposal is drawn with a seed made from the number of finished trials, so a resumed study proposes what an
uninterrupted one would have.
"""

import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from adrec.config.training.tune import Dimension, TuneConfig
from adrec.errors import AdrecError, ResourceError, install_hint

STARTUP_TRIALS = 5
"""Random trials before tpe has something to go by."""

FAULT = "fault"
"""User attribute of a trial that failed: why."""
Report = Callable[[int, float], None]
"""Called with (evaluation from 1, value) at each evaluation; raises where the trial is to be stopped."""


class PrunedError(Exception):
    """A trial is to be stopped."""


class Outcome(NamedTuple):
    """How a trial ended: with a value, pruned (neither), or with a fault."""

    value: float | None
    fault: str | None = None


class Study:
    """Trials by ask and tell over one search space. Usable from several threads."""

    def __init__(self, config: TuneConfig, storage: Path, *, maximise: bool, first: Mapping[str, Any] | None) -> None:
        self.config = config
        self.optuna = _optuna()
        self._lock = threading.RLock()
        self._open: dict[int, Any] = {}
        """number → trial that was asked for and not told"""
        with _quietly():
            self.study = self.optuna.create_study(
                storage=f"sqlite:///{storage}",
                study_name="adrec",
                direction="maximize" if maximise else "minimize",
                pruner=self._pruner(),
                load_if_exists=True,
            )
        self._requeue_interrupted()
        if first is not None and not self.study.trials:
            self.study.enqueue_trial({key: self._stored(key, value) for key, value in first.items()})

    @property
    def finished(self) -> int:
        """Trials that ended: complete, pruned or failed, those cut off by a kill not counted."""
        return len(self._ended())

    def run_one(self, objective: Callable[[dict[str, Any], Report], float]) -> None:
        """One trial. `objective(values, report)` returns the metric; an AdrecError marks the trial as failed."""
        number, values = self.ask()

        def report(step: int, value: float) -> None:
            if self.is_hopeless(number, step, value):
                raise PrunedError

        try:
            self.tell(number, Outcome(objective(values, report)))
        except PrunedError:
            self.tell(number, Outcome(None))
        except AdrecError as error:
            self.tell(number, Outcome(None, str(error).splitlines()[0]))

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Number and values of the next trial. Several may be asked for before any is told."""
        with self._lock:
            self.study.sampler = self._sampler()
            trial = self.study.ask()
            self._open[trial.number] = trial
            return trial.number, {key: self._suggest(trial, key, dimension) for key, dimension in self.config.space.items()}

    def is_hopeless(self, number: int, step: int, value: float) -> bool:
        """Take in a trial's value at an evaluation; whether it is to be stopped."""
        with self._lock:
            trial = self._open.get(number)
            if trial is None:  # ended already, by a worker that took the place of the one that asks
                return True
            trial.report(value, step)
            return bool(trial.should_prune())

    def tell(self, number: int, outcome: Outcome) -> None:
        """How a trial ended."""
        state = self.optuna.trial.TrialState
        with self._lock:
            trial = self._open.pop(number)
            if outcome.fault is not None:
                trial.set_user_attr(FAULT, outcome.fault)
                self.study.tell(trial, state=state.FAIL)
            elif outcome.value is None:
                self.study.tell(trial, state=state.PRUNED)
            else:
                self.study.tell(trial, outcome.value)

    def rows(self) -> list[dict[str, Any]]:
        """One a finished trial, in order: number, state, value, evaluations, seconds, fault, and the values tried."""
        found = []
        for trial in self._ended():
            reached = trial.intermediate_values
            found.append(
                {
                    "trial": trial.number,
                    "state": trial.state.name.lower(),
                    "value": trial.value if trial.value is not None else (reached[max(reached)] if reached else None),
                    "evaluations": max(reached, default=0),
                    "seconds": trial.duration.total_seconds() if trial.duration else 0.0,
                    "fault": trial.user_attrs.get(FAULT, ""),
                    "values": {key: self._given(key, value) for key, value in trial.params.items()},
                }
            )
        return found

    def best(self) -> tuple[float, dict[str, Any]]:
        """Metric and values of the best complete trial. Raises AdrecError where no trial was completed."""
        complete = [row for row in self.rows() if row["state"] == "complete"]
        if not complete:
            faults = [row["fault"] for row in self.rows() if row["fault"]]
            raise AdrecError(f"no trial was completed. {faults[0] if faults else 'Raise trials, or prune less.'}")
        best = self.study.best_trial
        return float(best.value), {key: self._given(key, value) for key, value in best.params.items()}

    def importance(self) -> dict[str, float]:
        """Share of the metric's variance that each key explains (fANOVA, Hutter et al. 2014); empty with under 4 trials."""
        complete = [row for row in self.rows() if row["state"] == "complete"]
        if len(complete) < 4 or len({row["value"] for row in complete}) < 2:
            return {}
        with _quietly():
            evaluator = self.optuna.importance.FanovaImportanceEvaluator(seed=self.config.seed)
            return dict(self.optuna.importance.get_param_importances(self.study, evaluator=evaluator))

    def _ended(self) -> list[Any]:
        state = self.optuna.trial.TrialState
        ended = (trial for trial in self.study.trials if trial.state.is_finished())
        return [trial for trial in ended if trial.state != state.FAIL or FAULT in trial.user_attrs]

    def _suggest(self, trial: Any, key: str, dimension: Dimension) -> Any:
        if dimension.choices is not None:
            return json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in dimension.choices]))
        if dimension.integer:
            assert dimension.low is not None and dimension.high is not None
            step = int(dimension.step or 1)
            return trial.suggest_int(key, int(dimension.low), int(dimension.high), step=step, log=dimension.log)
        return trial.suggest_float(key, dimension.low, dimension.high, step=dimension.step, log=dimension.log)

    def _stored(self, key: str, value: Any) -> Any:
        """As optuna keeps it: choices as JSON, since they may be lists."""
        return json.dumps(value) if self.config.space[key].choices is not None else value

    def _given(self, key: str, value: Any) -> Any:
        return json.loads(value) if self.config.space[key].choices is not None else value

    def _sampler(self) -> Any:
        seed = self.config.seed * 100_003 + self.finished + len(self._open)
        if self.config.sampler == "random":
            return self.optuna.samplers.RandomSampler(seed=seed)
        with _quietly():
            return self.optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=bool(self._open)
            )  # with others under way, it keeps away from where they are

    def _pruner(self) -> Any:
        if self.config.pruner == "none":
            return self.optuna.pruners.NopPruner()
        if self.config.pruner == "halving":
            return self.optuna.pruners.SuccessiveHalvingPruner()
        return self.optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1, n_min_trials=2)

    def _requeue_interrupted(self) -> None:
        """A trial that a kill cut off is closed without a fault, and its values are tried first."""
        state = self.optuna.trial.TrialState
        for trial in self.study.get_trials(states=(state.RUNNING,)):
            self.study.tell(trial.number, state=state.FAIL)
            self.study.enqueue_trial(trial.params)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ResourceError(f"'adrec tune' needs optuna, which is not installed. Run: {install_hint('tune')}") from None
    optuna.logging.set_verbosity(logging.ERROR)
    return optuna


@contextmanager
def _quietly() -> Iterator[None]:
    """optuna warns of features it calls experimental each time they are used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
