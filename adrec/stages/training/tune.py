"""`adrec tune`: search a finetune config's keys by validation metric. Test rows are never read."""

import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from adrec.config.base import load_config, save_config
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.tune import TuneConfig
from adrec.data.disk.outputs import SEARCH
from adrec.data.disk.writing import folder_aside
from adrec.errors import ConfigError
from adrec.stages.training.finetuning.material import read_material
from adrec.stages.training.tuning.parallel import run_trials
from adrec.stages.training.tuning.report import shown, write_report, write_trials
from adrec.stages.training.tuning.study import Report, Study
from adrec.stages.training.tuning.trial import train_trial
from adrec.stages.writing import node_paths
from adrec.tables import best_marked
from adrec.terminal import Terminal
from adrec.training.ctr_training import monitored_metric
from adrec.training.loop.stored import RUN_FILE
from adrec.training.loop.trainer import open_work, work_folder

STUDY = "study.db"
IDENTITY = "identity.json"
_NOT_SEARCHED = {"trials", "timeout_minutes", "output", "device", "language", "trusted_keys", "cluster"}
"""Settings that may change from one run of a search to the next."""


@dataclass(frozen=True)
class TuneResult:
    """The trials, and the best of them."""

    output: str
    metric: str
    best_value: float
    best: dict[str, Any]
    trials: list[dict[str, Any]]
    importance: dict[str, float]
    maximise: bool

    @property
    def next(self) -> str:
        """The command that trains the best config, into a bundle of its own."""
        return f"adrec finetune --config {shlex.quote(f'{self.output}/best.yaml')}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {**vars(self), "next": self.next}

    def render(self) -> Iterable[RenderableType]:
        """The ten best trials, what mattered, and where the best config is."""
        counts = {state: sum(row["state"] == state for row in self.trials) for state in ("complete", "pruned", "fail")}
        title = f"{len(self.trials)} trials: " + ", ".join(f"{count} {state}" for state, count in counts.items())
        table = Table(title=title, title_justify="left")
        for name in ("trial", f"valid {self.metric}"):
            table.add_column(name, justify="right")
        for key in self.best:
            table.add_column(key.split(".")[-1], overflow="fold")
        complete = [row for row in self.trials if row["state"] == "complete"]
        for row in sorted(complete, key=lambda row: -row["value"] if self.maximise else row["value"])[:10]:
            cells = [shown(row["values"].get(key)) for key in self.best]
            table.add_row(str(row["trial"]), best_marked(f"{row['value']:.4f}", row["value"] == self.best_value), *cells)
        yield table
        if self.importance:
            yield "what mattered: " + ", ".join(f"{key.split('.')[-1]} {share:.0%}" for key, share in self.importance.items())
        yield f"best config: {self.output}/best.yaml. Train it, beside the bundle that is there: {self.next}"


def run(config: TuneConfig, terminal: Terminal) -> TuneResult:
    """Run trials until there are `config.trials`, then write the folder. A killed search goes on where it was."""
    base = with_values(config, {})
    if base.privacy is not None:
        raise ConfigError(
            f"{config.base}: privacy: a search learns the log once a trial, without noise, and what it finds best tells of its"
            " rows. Search without `privacy` on a log that anyone may know, and take what is best over by hand."
        )
    first = base_values(config, base)
    material = read_material(base, terminal)
    metric = monitored_metric(material.config, material.data)
    maximise = metric != "log_loss"
    work = work_folder(config.output)
    identity = {
        "tune": config.model_dump(mode="json", exclude=_NOT_SEARCHED),
        "base": base.model_dump(mode="json", exclude={"trusted_keys"}),
        "data": material.prepared.fingerprint,
        **({"start": material.start.fingerprint} if material.start is not None else {}),
    }
    _open(work, config.output, identity)
    study = Study(config, work / STUDY, maximise=maximise, first=first)
    deadline = None if config.timeout_minutes is None else time.monotonic() + config.timeout_minutes * 60
    with terminal.progress("Tuning", config.trials, unit="trials", done=study.finished) as advance:
        for _ in _trials(config, study, metric, work, deadline, terminal):
            advance()
    if study.finished < config.trials:
        terminal.warn(f"stopped by timeout_minutes after {study.finished} of {config.trials} trials.")
    return _finish(config, study, metric, maximise, work)


def with_values(config: TuneConfig, values: Mapping[str, Any]) -> FinetuneConfig:
    """The base finetune config with `values` at their dotted keys, as one trial on one device. Raises ConfigError.

    A trial trains one network: where the base goes on from several bundles, that of the first.
    """
    alone = {"training.devices": 1, "training.nodes": 1, "training.strategy": "auto"}
    fixed: dict[str, Any] = {"seed": config.seed, "device": config.device, "seeds": 1, **alone}
    if config.trusted_keys:
        fixed["trusted_keys"] = [str(key) for key in config.trusted_keys]
    sources = load_config(config.base, FinetuneConfig, overrides_base=config.base.parent).sources
    if len(sources) > 1:
        fixed["start_from"] = str(sources[0])
    settings = [f"{key}={json.dumps(value)}" for key, value in {**fixed, **values}.items()]
    return load_config(config.base, FinetuneConfig, settings, overrides_base=config.base.parent)


def base_values(config: TuneConfig, base: FinetuneConfig) -> dict[str, Any] | None:
    """What the base has at the searched keys; None where one lies outside the space. Raises ConfigError for an unknown key."""
    tree: Any = base.model_dump(mode="json")
    values: dict[str, Any] = {}
    for key, dimension in config.space.items():
        try:
            values[key] = reduce(_child, key.split("."), tree)
        except LookupError:
            # Loading refuses the key, and names the nearest one that there is.
            with_values(config, {key: dimension.choices[0] if dimension.choices else dimension.low})
            raise ConfigError(f"{config.base}: {key}: the base config has no such key.") from None
    return values if all(dimension.holds(values[key]) for key, dimension in config.space.items()) else None


def _child(node: Any, key: str) -> Any:
    """An item of a section or list. Raises LookupError."""
    if isinstance(node, list) and key.isdigit():
        return node[int(key)]
    if isinstance(node, dict):
        return node[key]
    raise LookupError(key)


def _trials(
    config: TuneConfig, study: Study, metric: str, work: Path, deadline: float | None, terminal: Terminal
) -> Iterator[None]:
    """Run what trials are missing; yields after each."""
    chosen = partial(_chosen, config, metric)
    if config.cluster is not None:
        yield from run_trials(
            study, config.cluster, chosen,
            reads=_reads(config, chosen), trials=config.trials, deadline=deadline, terminal=terminal,
        )  # fmt: skip
        return
    while study.finished < config.trials and (deadline is None or time.monotonic() <= deadline):
        # A kill leaves the trial's checkpoint behind, and the study asks for the same values again: the trial goes on.
        study.run_one(partial(_trial, chosen, work / "trial", terminal))
        shutil.rmtree(work / "trial", ignore_errors=True)
        yield


def _chosen(config: TuneConfig, metric: str, values: Mapping[str, Any]) -> FinetuneConfig:
    """The whole config of a trial."""
    return with_values(config, {"training.monitor": metric, **values})


def _trial(
    chosen: Callable[[Mapping[str, Any]], FinetuneConfig],
    work: Path,
    terminal: Terminal,
    values: Mapping[str, Any],
    report: Report,
) -> float:
    """Train once with `values`; the best validation metric."""
    described = ", ".join(f"{key.split('.')[-1]} {shown(value)}" for key, value in values.items())
    return train_trial(chosen(values), work, terminal, report, described)


def _reads(config: TuneConfig, chosen: Callable[[Mapping[str, Any]], FinetuneConfig]) -> list[Path]:
    """Whatever a trial may read: inputs of the base, and encoders among the choices."""
    choices = [{key: choice} for key, dimension in config.space.items() for choice in dimension.choices or ()]
    found: set[Path] = set()
    for values in ({}, *choices):
        with suppress(ConfigError):  # of values that do not go with the base: a trial says so
            found |= node_paths(chosen(values))
    return sorted(found)


def _open(work: Path, output: Path, identity: dict[str, Any]) -> None:
    """The work folder of this search: the one a kill left, or a new one with the study of an earlier, finished run of it."""
    wanted = json.loads(json.dumps(identity))
    if (work / STUDY).exists() and _read_json(work / RUN_FILE) == wanted:
        return
    open_work(work, identity, resume=False)
    if (output / STUDY).exists() and _read_json(output / IDENTITY) == wanted:
        shutil.copyfile(output / STUDY, work / STUDY)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _finish(config: TuneConfig, study: Study, metric: str, maximise: bool, work: Path) -> TuneResult:
    """Write the folder and remove the work folder."""
    best_value, best = study.best()
    rows, importance = study.rows(), study.importance()
    with folder_aside(config.output, SEARCH) as folder:
        shutil.copyfile(work / STUDY, folder / STUDY)
        shutil.copyfile(work / RUN_FILE, folder / IDENTITY)
        save_config(config.model_copy(update={"cluster": None}), folder / "config.yaml")
        # Its bundle stands beside the search: the one of `base` may be serving.
        own = config.output.with_name(f"{config.output.name}-best")
        settings = [f"{key}={json.dumps(value)}" for key, value in (best | {"output": str(own)}).items()]
        save_config(load_config(config.base, FinetuneConfig, settings, overrides_base=config.base.parent), folder / "best.yaml")
        write_trials(rows, list(config.space), folder / "trials.csv")
        summary = {"metric": metric, "best_value": best_value, "best": best, "importance": importance}
        (folder / "tune.json").write_text(json.dumps(summary, ensure_ascii=False, indent=2), encoding="utf-8")
        result = TuneResult(str(config.output), metric, best_value, best, rows, importance, maximise)
        write_report(
            folder / "report.html", config.output.name, rows, summary,
            maximise=maximise, following=result.next, language=config.language,
        )  # fmt: skip
    shutil.rmtree(work, ignore_errors=True)
    return result
