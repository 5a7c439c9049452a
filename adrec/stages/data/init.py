"""`adrec init`: look at the user's files, guess what is what, write configs that run, and say what was guessed and why."""

import os
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adrec.config.base import load_config
from adrec.config.commands import config_model
from adrec.config.data.init import InitConfig
from adrec.data.disk.outputs import CONFIGS
from adrec.data.disk.writing import folder_aside
from adrec.errors import DataError, ResourceError
from adrec.explore import Finding, Gap, Guess, guess, look_at, write_configs
from adrec.terminal import Terminal
from adrec.urls import address_of

_NOT_AT_ONCE = ("serve", "tune")
_SHAPES = {
    "impressions": "impressions with their clicks",
    "events": "impressions, and clicks in rows of their own",
    "clicks": "clicks alone: what was not clicked is drawn from the other ads (`negatives`)",
    "counts": "counts of impressions and clicks",
    "ratings": "ratings, of which the good ones count as clicks",
    "unlabelled": "rows that do not say what was clicked",
}
_WITHOUT_AN_AD = ("rank", "serve")


@dataclass(frozen=True)
class InitResult:
    """The configs written, and what stands behind them."""

    output: Path
    configs: list[str]
    format: str
    findings: list[Finding]
    notes: list[str]
    shape: str | None = None
    gaps: list[Gap] = field(default_factory=list)
    again: str = ""
    """The command that looks once more with a column named."""

    def as_dict(self) -> dict[str, Any]:
        """Everything, JSON-safe."""
        return {**asdict(self), "output": str(self.output), "next": self.next}

    @property
    def next(self) -> list[str]:
        """The commands to run, in order."""
        if self.shape == "unlabelled":
            return [name for name in self.configs if name == "preprocess"]
        lacks_ads = any(gap.canonical == "ad_id" for gap in self.gaps)
        return [name for name in self.configs if name not in _NOT_AT_ONCE and not (lacks_ads and name in _WITHOUT_AN_AD)]

    def render(self) -> Iterable[RenderableType]:
        """What was guessed and why, what was not found, what was noticed, what to run next."""
        if self.shape is None:
            yield f"Recognised: {self.format}."
        else:
            yield Text(f"Your log holds {_SHAPES[self.shape]}.")
        for role in dict.fromkeys(finding.table for finding in self.findings):
            table = Table(title=f"What was guessed: {role}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
            for heading, most in (("column", 21), ("role", 19), ("why", None), ("example", 14)):
                table.add_column(heading, max_width=most)
            for finding in (finding for finding in self.findings if finding.table == role):
                style = "dim" if finding.meaning == "not used" else ""
                row = (finding.column, finding.meaning, finding.why, _short(finding.example))
                table.add_row(*(Text(cell) for cell in row), style=style)
            yield table
        for gap in self.gaps:
            yield Text(f"not found: {gap.canonical}. Without it {gap.without}.")
            if gap.candidates:
                yield Text(f"  Is it {' or '.join(gap.candidates)}? Then run:")
                yield Text(f"  {self.again} --set {shlex.quote(f'columns.{gap.canonical}={gap.candidates[0]}')}")
        for note in self.notes:
            yield Text(f"note: {note}")
        shown = os.path.relpath(self.output)
        yield Text(f"Wrote {', '.join(f'{name}.yaml' for name in self.configs)} to {shown}. Check them, then run:")
        for name in self.next:
            yield Text(
                f"  adrec {'pretrain-mlm' if name == 'pretrain' else name} --config {shlex.quote(f'{shown}/{name}.yaml')}"
            )
        if self.shape == "unlabelled":
            yield Text("There is nothing to learn from yet: finetune needs to know what was clicked.")


def run(config: InitConfig, terminal: Terminal) -> InitResult:
    """Look, guess, write, and load every config again to be sure that it validates."""
    if config.output.is_dir() and any(config.output.iterdir()):
        raise ResourceError(f"{config.output}: holds files already. Choose another --output, or remove them first.")
    for path in config.data:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder.")
    with terminal.progress("Looking at your files"):
        look = look_at(config.data)
    guessed = guess(look.tables, config.columns) if look.source is None else None
    runs = config.runs or Path.cwd() / "runs" / config.output.name
    with folder_aside(config.output, CONFIGS) as folder:
        names, notes = write_configs(folder, runs=runs, final=config.output, guess=guessed, source=look.source)
    for name in names:
        load_config(config.output / f"{name}.yaml", config_model(name))
    return InitResult(
        config.output,
        names,
        str(look.source["format"]) if look.source is not None else "tables",
        guessed.findings if guessed is not None else [],
        [*(guessed.notes if guessed is not None else []), *notes],
        guessed.shape if guessed is not None else None,
        guessed.gaps if guessed is not None else [],
        _again(config, guessed),
    )


def _again(config: InitConfig, found: Guess | None) -> str:
    """The same command into a folder of its own, with what was said already."""
    if found is None:
        return ""
    data = " ".join(shlex.quote(address_of(path) or os.path.relpath(path)) for path in config.data)
    said = "".join(f" --set {shlex.quote(f'columns.{ours}={_yaml(yours)}')}" for ours, yours in config.columns.items())
    return f"adrec init {data} --output {shlex.quote(os.path.relpath(config.output) + '-2')}{said}"


def _yaml(value: str | list[str] | None) -> str:
    return "null" if value is None else value if isinstance(value, str) else f"[{', '.join(value)}]"


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
