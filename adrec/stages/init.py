"""`adrec init`: look at the user's files, guess what is what, write configs that run, and say what was guessed and why."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adrec.config.base import load_config
from adrec.config.commands import config_model
from adrec.config.init import InitConfig
from adrec.data.disk.outputs import CONFIGS
from adrec.data.disk.writing import folder_aside
from adrec.errors import DataError, ResourceError
from adrec.explore import Finding, guess, look_at, write_configs
from adrec.terminal import Terminal


@dataclass(frozen=True)
class InitResult:
    """The configs written, and what stands behind them."""

    output: Path
    configs: list[str]
    format: str
    findings: list[Finding]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Everything, JSON-safe."""
        return {**asdict(self), "output": str(self.output)}

    def render(self) -> Iterable[RenderableType]:
        """What was guessed and why, what was noticed, what to run next."""
        if self.findings:
            table = Table("table", "your column", "is", "because", title="What was guessed", title_justify="left")
            for finding in self.findings:
                style = "dim" if finding.meaning == "not used" else ""
                row = (finding.table, finding.column, finding.meaning, finding.why)
                table.add_row(*(Text(cell) for cell in row), style=style)
            yield table
        else:
            yield f"Recognised: {self.format}."
        for note in self.notes:
            yield Text(f"note: {note}")
        shown = os.path.relpath(self.output)
        yield Text(f"Wrote {', '.join(f'{name}.yaml' for name in self.configs)} to {shown}. Check them, then run:")
        for name in self.configs:
            yield Text(f"  adrec {'pretrain-mlm' if name == 'pretrain' else name} --config {shown}/{name}.yaml")


def run(config: InitConfig, terminal: Terminal) -> InitResult:
    """Look, guess, write, and load every config again to be sure that it validates."""
    if config.output.is_dir() and any(config.output.iterdir()):
        raise ResourceError(f"{config.output}: holds files already. Choose another --output, or remove them first.")
    for path in config.data:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder.")
    with terminal.progress("Looking at your files"):
        look = look_at(config.data)
    found = guess(look.tables) if look.source is None else None
    runs = config.runs or Path.cwd() / "runs" / config.output.name
    with folder_aside(config.output, CONFIGS) as folder:
        names = write_configs(folder, runs=runs, final=config.output, found=found, source=look.source)
    for name in names:
        load_config(config.output / f"{name}.yaml", config_model(name))
    return InitResult(
        config.output,
        names,
        str(look.source["format"]) if look.source is not None else "tables",
        found.findings if found is not None else [],
        found.notes if found is not None else [],
    )
