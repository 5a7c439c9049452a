"""`adrec.preprocess`, `adrec.finetune`, `adrec.evaluate`: the commands as functions, with frames in and frames out."""

import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from adrec.api.frames import Kind, from_arrow, kind_of, spooled
from adrec.api.settings import config_of
from adrec.config.base import StageConfig
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.stages.storage import run_guarded
from adrec.terminal import Terminal

Config = str | Path | Mapping[str, Any] | None
ConfigT = TypeVar("ConfigT", bound=StageConfig)


class Result:
    """What a command returned. `frame` is its main table, `frames` all of them, `output` where it wrote; the rest is as the
    command has it, and `as_dict()` is what `--json` prints.
    """

    def __init__(self, result: Any, tables: Callable[[Any], dict[str, pa.Table]], kind: Kind, output: str | None) -> None:
        self.result, self.output = result, output
        self._tables, self._kind = tables, kind

    @cached_property
    def frames(self) -> dict[str, Any]:
        """Name -> frame, the main one first."""
        return {name: from_arrow(table, self._kind) for name, table in self._tables(self.result).items()}

    @property
    def frame(self) -> Any:
        """The main table."""
        return next(iter(self.frames.values()))

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        found: dict[str, Any] = self.result.as_dict()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.result, name)

    def __repr__(self) -> str:
        """The main table."""
        return repr(self.frame)


def preprocess(
    config: Config = None, *, impressions: Any = None, ads: Any = None, users: Any = None, **overrides: Any
) -> Result:
    """Run `adrec preprocess`: raw tables to a prepared folder at `output`.

    `config` is a YAML file or a mapping; `overrides` are its keys (`split={"method": "rolling"}`, `text__stop_words=False`).
    `impressions`, `ads` and `users` are frames or paths of tables. Frames are kept as Parquet beside `output`, in
    `<output>_frames`. `frame` of the result has a row a split. Raises AdrecErrors.
    """
    kind = _kind(impressions, ads, users)
    given = {"impressions": impressions, "ads": ads, "users": users}
    tables = {name: table for name, table in given.items() if table is not None}
    if tables:
        output = overrides.get("output") or (config.get("output") if isinstance(config, Mapping) else None)
        folder = Path(f"{output}_frames") if output is not None else Path(tempfile.mkdtemp(prefix="adrec-frames-"))
        overrides["source__format"] = "tables"
        overrides |= {f"source__{name}__files": spooled(table, folder.absolute(), name) for name, table in tables.items()}
    return _run("data.preprocess", PreprocessConfig, config, overrides, _splits, kind)


def finetune(config: Config = None, **overrides: Any) -> Result:
    """Run `adrec finetune`: a prepared folder to a bundle at `output`. `frame` has a row a model with its validation metrics;
    `adrec.load(result.output)` opens the bundle. Raises AdrecErrors.
    """
    return _run("training.finetune", FinetuneConfig, config, overrides, _models, "pandas")


def evaluate(config: Config = None, *, scored: Any = None, **overrides: Any) -> Result:
    """Run `adrec evaluate` on scored rows, a frame (as `Model.score` returns it, with its labels) or a path.

    `against` may hold frames and paths of other scores of the same rows. `frame` has a row a run and metric, with its interval;
    `frames["comparisons"]` the paired differences. A frame's report is kept only where `output` names a folder.
    """
    against = overrides.pop("against", None)
    others = [] if against is None else list(against) if isinstance(against, list | tuple) else [against]
    with tempfile.TemporaryDirectory(prefix="adrec-frames-") as name:
        if scored is not None:
            overrides["scored"] = spooled(scored, Path(name), "scored")
        if others:
            overrides["against"] = [spooled(other, Path(name), f"against{number}") for number, other in enumerate(others, 1)]
        is_kept = kind_of(scored) is None or "output" in overrides
        if not is_kept:
            overrides |= {"output": f"{name}/evaluation", "report": False}
        return _run("evaluation.evaluate", EvaluateConfig, config, overrides, _metrics, _kind(scored), is_kept=is_kept)


def _run(
    stage: str,
    model: type[StageConfig],
    config: Config,
    overrides: Mapping[str, Any],
    tables: Callable[[Any], dict[str, pa.Table]],
    kind: Kind,
    *,
    is_kept: bool = True,
) -> Result:
    import importlib

    run = importlib.import_module(f"adrec.stages.{stage}").run
    result = run_guarded(run, config_of(model, config, overrides), Terminal())
    return Result(result, tables, kind, str(result.output) if is_kept else None)


def _kind(*values: Any) -> Kind:
    return next((kind for value in values if (kind := kind_of(value)) is not None), "pandas")


def _splits(result: Any) -> dict[str, pa.Table]:
    rows = [{"split": split, **counts} for split, counts in result.manifest["splits"].items()]
    return {
        "splits": pa.Table.from_pylist(
            [{key: row[key] for key in row if not isinstance(row[key], dict | list)} for row in rows]
        )
    }


def _models(result: Any) -> dict[str, pa.Table]:
    names = list(dict.fromkeys(name for metrics in result.models.values() for name in metrics))
    columns = {name: [metrics.get(name) for metrics in result.models.values()] for name in names}
    return {"models": pa.table({"model": list(result.models), **columns})}


def _metrics(result: Any) -> dict[str, pa.Table]:
    metrics = [
        {"task": task.task.label_name, "run": run, "metric": metric, **interval._asdict()}
        for task in result.tasks
        for run, found in task.metrics.items()
        for metric, interval in found.items()
    ]
    comparisons = [
        {"task": task.task.label_name, "against": gap.other, "role": gap.role, "metric": gap.metric}
        | {**gap.difference._asdict(), "adjusted_p": gap.adjusted_p, "verdict": gap.verdict()}
        for task in result.tasks
        for gap in task.comparisons
    ]
    return {"metrics": pa.Table.from_pylist(metrics), "comparisons": pa.Table.from_pylist(comparisons)}
