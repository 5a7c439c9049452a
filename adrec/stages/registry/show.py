"""`adrec registry`: the bundles of a registry, by hand: look, promote, roll back."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adrec.config.training.daily import RegistryConfig
from adrec.errors import ConfigError
from adrec.stages.registry.folder import Registry
from adrec.stages.registry.serving import reload_servers
from adrec.tables import BEST
from adrec.terminal import Terminal


@dataclass(frozen=True)
class RegistryResult:
    """What is in the registry, after what was done."""

    path: str
    champion: str | None
    records: list[dict[str, Any]]
    events: list[dict[str, str]]
    done: str = ""
    reloaded: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return vars(self)

    def render(self) -> Iterable[RenderableType]:
        """A row a bundle, the champion marked."""
        if self.done:
            yield self.done
        table = Table(title=f"{self.path}: champion {self.champion or 'none yet'}", title_justify="left")
        table.add_column("bundle", no_wrap=True)
        for heading in ("data until", "from", "verdict"):
            table.add_column(heading)
        for heading in ("auc", "gain"):
            table.add_column(heading, justify="right")
        for record in self.records:
            auc: dict[str, Any] = next((figure for figure in record["figures"] if figure["metric"] == "auc"), {})
            mark = f" {BEST}" if record["name"] == self.champion else ""  # bold is lost in a pipe
            cells = [
                record["name"] + mark,
                str(record["data"]["last"])[:16],
                record["started_from"] or "nothing",
                record["verdict"],
            ]
            cells += [f"{auc['new']:.4f}" if auc else "", f"{auc['gain']:+.4f}" if auc.get("gain") is not None else ""]
            table.add_row(*(Text(cell, style="bold" if record["name"] == self.champion else "") for cell in cells))
        yield table
        yield from (f"{event['at'][:19]}  {event['name']} {event['what']} ({event['why']})" for event in self.events[-5:])
        if self.reloaded:
            yield f"reloaded: {', '.join(self.reloaded)}"


def run(config: RegistryConfig, terminal: Terminal) -> RegistryResult:
    """Do what was asked, and show what is there. Raises DataError where there is no registry, or no such bundle."""
    if config.promote is not None and config.roll_back:
        raise ConfigError("promote and roll_back are two things: ask for one at a time.")
    registry = Registry.open(config.path)
    done, reloaded = "", []
    if config.promote is not None:
        registry.promote(config.promote, "by hand")
        done = f"{config.promote} is the champion now."
    elif config.roll_back:
        left, back = registry.roll_back()
        done = f"{back} is the champion again; {left} is not any more."
    if done and registry.champion is not None:
        reloaded = reload_servers(config, registry.bundle(registry.champion), terminal)
    return RegistryResult(str(config.path), registry.champion, registry.records(), registry.events, done, reloaded)
