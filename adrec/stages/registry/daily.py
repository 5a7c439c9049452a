"""`adrec daily`: new files → append → finetune from yesterday's bundle → judge both on the newest rows → promote or refuse.

Every step leaves something whole behind, and a rerun finds it: killed anywhere, the same command finishes the work. Costs an
append, a finetune that goes on from yesterday's weights, and scoring the test part twice.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from adrec.bundle import MANIFEST, open_bundle, open_trusted
from adrec.config.base import load_config
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.daily import DailyConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.disk.lock import output_lock
from adrec.data.disk.signatures import sign
from adrec.data.prepared import Prepared, open_prepared
from adrec.errors import DataError
from adrec.stages.data import preprocess
from adrec.stages.registry import tracking
from adrec.stages.registry.folder import Registry
from adrec.stages.registry.gate import judge, verdict
from adrec.stages.registry.serving import reload_servers
from adrec.stages.storage import run_guarded
from adrec.stages.training import finetune
from adrec.terminal import Terminal
from adrec.training.loop.stored import close_work
from adrec.training.loop.trainer import work_folder

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
REFUSED = 3
"""Exit code where the gate kept yesterday's bundle."""


@dataclass(frozen=True)
class DailyResult:
    """What became of the day's bundle."""

    registry: str
    name: str
    champion: str
    verdict: str
    """promoted or refused"""
    why: str
    is_new: bool
    """False where these data had been judged before, and nothing was trained"""
    figures: list[dict[str, Any]] = field(default_factory=list)
    reloaded: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 where the bundle took over, else 3."""
        return 0 if self.verdict == "promoted" else REFUSED

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {**vars(self), "exit_code": self.exit_code}

    def render(self) -> Iterable[RenderableType]:
        """The verdict first, then the figures behind it."""
        yield f"{self.name}: {self.verdict} ({self.why})"
        if not self.is_new:
            yield "These files and settings had been judged before: nothing was trained."
        yield from figures_table(self.figures)
        yield f"champion: {self.champion} in {self.registry}"
        if self.verdict == "refused":
            yield f"to promote it all the same: adrec registry {self.registry} --promote {self.name}"
        if self.reloaded:
            yield f"reloaded: {', '.join(self.reloaded)}"
        if self.removed:
            yield f"removed old bundles: {', '.join(self.removed)}"


def figures_table(figures: list[dict[str, Any]]) -> Iterable[RenderableType]:
    """The metrics of the new bundle, and what it gains on the old one."""
    if not figures:
        return
    table = Table(title="On the newest rows", title_justify="left")
    for heading in ("metric", "new", "old", "gain", "95 %", "least"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for figure in figures:
        cells = [_number(figure[key]) for key in ("new", "old")]
        gain, low, high = (_number(figure[key], "+") for key in ("gain", "low", "high"))
        around = f"{low} to {high}" if low and high else ""
        table.add_row(figure["metric"], *cells, gain, around, _number(figure["least"], "+"))
    yield table


def run(config: DailyConfig, terminal: Terminal) -> DailyResult:
    """Take in what is new, and decide which bundle is served from now on. Raises AdrecErrors; the champion stays until then."""
    if config.mlflow is not None:
        tracking.require()
    registry = Registry(config.registry)
    preparing = _preprocess_config(config)
    load_config(config.finetune, FinetuneConfig)  # a slip in it is told before anything is made
    registry.start()
    run_guarded(preprocess.run, preparing, terminal)
    prepared = open_prepared(preparing.output)
    _check_test_rows(prepared)
    settings = _digest(config)
    record = _judged_before(registry, prepared, settings)
    is_new = record is None
    if record is None:
        record = _make(config, registry, prepared, settings, terminal)
    name = record["name"]
    if record["verdict"] == "promoted" and not registry.was_promoted(name):
        registry.promote(name, record["why"])
    champion = registry.champion
    assert champion is not None
    reloaded = reload_servers(config, registry.bundle(champion), terminal)
    if config.mlflow is not None:
        tracking.register(config.mlflow, registry, record)
    removed = registry.prune(config.keep)
    return DailyResult(
        registry=str(config.registry),
        name=name,
        champion=champion,
        verdict=record["verdict"],
        why=record["why"],
        is_new=is_new,
        figures=record["figures"],
        reloaded=reloaded,
        removed=removed,
    )


def _make(config: DailyConfig, registry: Registry, prepared: Prepared, settings: str, terminal: Terminal) -> dict[str, Any]:
    """Train the day's bundle, judge it beside the champion, and write its record."""
    champion = registry.champion
    if champion is not None:
        open_trusted(registry.bundle(champion), config.trusted_keys)
    start = None if champion is None or _is_fresh(config, registry, prepared) else champion
    training = _training(config, registry, prepared, start, settings)
    name = training.output.name
    if registry.has_bundle(name):
        _tidy(registry.bundle(name), terminal)
    else:
        run_guarded(finetune.run, training, terminal)
    if config.signing_key is not None:  # also one whose making was killed before this
        sign(registry.bundle(name) / MANIFEST, config.signing_key)
    new, old = registry.bundle(name), registry.bundle(champion) if champion is not None else None
    if old is not None:
        _warn_of_learned_rows(old, prepared, terminal)
    figures = judge(
        new,
        old,
        prepared=prepared.path,
        folder=registry.judged(name),
        settings=config.gate,
        report=config.report,
        seed=config.seed,
        terminal=terminal,
    )
    passes, why = (True, "the first bundle") if old is None else verdict(figures, config.gate)
    return registry.record(
        name,
        {
            "data": {
                "fingerprint": prepared.fingerprint,
                "first": prepared.manifest.get("first"),
                "last": prepared.manifest.get("last"),
                "rows": prepared.manifest.get("rows"),
                "judged_rows": prepared.rows("test"),
                "forgotten": _forgotten(prepared),
            },
            "settings": settings,
            "bundle": open_bundle(new, verify=False).fingerprint,
            "started_from": start,
            "judged_beside": champion,
            "figures": [figure.as_dict() for figure in figures],
            "verdict": "promoted" if passes else "refused",
            "why": why,
        },
    )


def _training(config: DailyConfig, registry: Registry, prepared: Prepared, start: str | None, settings: str) -> FinetuneConfig:
    """The finetune config of the day. Its bundle is named for the last day of the data and for all that decides what it is."""
    last = str(prepared.manifest.get("last") or "undated")[:10]
    digest = hashlib.sha256(json.dumps([prepared.fingerprint, settings, start]).encode()).hexdigest()[:8]
    changes: dict[str, Any] = {"prepared": str(prepared.path), "output": str(registry.bundle(f"{last}-{digest}"))}
    changes["start_from"] = None
    if start is not None:
        changes |= {**config.onward, "start_from": str(registry.bundle(start))}
    return load_config(config.finetune, FinetuneConfig, [f"{key}={json.dumps(value)}" for key, value in changes.items()])


def _preprocess_config(config: DailyConfig) -> PreprocessConfig:
    """The config of preprocess with what differs here."""
    changes = {**config.prepare, **({} if config.prepared is None else {"output": str(config.prepared)})}
    return load_config(config.preprocess, PreprocessConfig, [f"{key}={json.dumps(value)}" for key, value in changes.items()])


def _tidy(bundle: Path, terminal: Terminal) -> None:
    """Remove what a run that was killed just after its bundle stood left beside it."""
    with output_lock(bundle):
        close_work(work_folder(bundle), terminal)


def _forgotten(prepared: Prepared) -> str:
    """Changes when somebody was forgotten since; empty where nobody was."""
    return str((prepared.manifest.get("privacy") or {}).get("forgotten", {}).get("digest", ""))


def _is_fresh(config: DailyConfig, registry: Registry, prepared: Prepared) -> bool:
    """Whether this day's bundle starts from nothing: as the config says, or because the champion knows somebody forgotten."""
    records = registry.records()
    champion = next((record for record in records if record["name"] == registry.champion), None)
    if champion is not None and champion["data"].get("forgotten", "") != _forgotten(prepared):
        return True
    if config.from_nothing or config.from_nothing_every is None:
        return config.from_nothing
    onward = 0
    for record in records:
        onward = onward + 1 if record["started_from"] is not None else 0
    return onward >= config.from_nothing_every


def _judged_before(registry: Registry, prepared: Prepared, settings: str) -> dict[str, Any] | None:
    """The newest record of a bundle of these data and settings."""
    wanted = (prepared.fingerprint, settings)
    return next(
        (record for record in reversed(registry.records()) if (record["data"]["fingerprint"], record["settings"]) == wanted),
        None,
    )


def _digest(config: DailyConfig) -> str:
    """Changes with whatever decides what a day's bundle is, and how it is judged."""
    own = config.model_dump(mode="json", include={"onward", "from_nothing", "from_nothing_every", "gate", "seed"})
    file = hashlib.sha256(config.finetune.read_bytes()).hexdigest() if config.finetune.is_file() else ""
    return hashlib.sha256(json.dumps([own, file], sort_keys=True).encode()).hexdigest()[:16]


def _check_test_rows(prepared: Prepared) -> None:
    if not prepared.rows("test"):
        raise DataError(
            f"{prepared.path}: has no test rows to judge the new bundle by. In the preprocess config, set "
            "`split: {method: rolling}`: the newest day is for the test then."
        )


def _warn_of_learned_rows(bundle: Path, prepared: Prepared, terminal: Terminal) -> None:
    """Say so where the champion has learned from rows that it is judged on: they flatter it."""
    until = open_bundle(bundle, verify=False).manifest.get("learned_until")
    begins = prepared.begins("test")
    if until is not None and begins is not None and until >= (begins - _EPOCH) // timedelta(microseconds=1):
        terminal.warn(f"{bundle}: has learned rows of the test part, which flatter it. Judge by a part that is newer.")


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.4f}"
