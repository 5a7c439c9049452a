"""`adrec sample`: write the built-in world. Cost: about 4 seconds a million impressions; memory does not grow with them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from adrec.config.base import save_config
from adrec.config.data.sample import SampleConfig
from adrec.data.disk.outputs import SAMPLE
from adrec.data.disk.writing import folder_aside
from adrec.sample import Delays, SampleSummary, generate_sample
from adrec.terminal import Terminal


@dataclass(frozen=True)
class SampleResult:
    """Where the sample lies and what is in it."""

    output: Path
    summary: SampleSummary

    def as_dict(self) -> dict[str, Any]:
        """The summary and the folder."""
        return {"output": str(self.output), **asdict(self.summary)}

    def render(self) -> Iterable[RenderableType]:
        """One table."""
        table = Table(title=f"Sample written to {self.output}", show_header=False, title_justify="left")
        table.add_column()
        table.add_column(justify="right")
        summary = self.summary
        for name in ("ads", "users", "requests", "impressions", "clicks", "conversions"):
            table.add_row(name, f"{getattr(summary, name):,}")
        table.add_row("click rate", f"{summary.clicks / summary.impressions:.3f}")
        table.add_row("AUC of the true click probability", f"{summary.oracle_auc:.4f}")
        yield table


def run(config: SampleConfig, terminal: Terminal) -> SampleResult:
    """Write the sample aside and swap it into place."""
    with folder_aside(config.output, SAMPLE) as folder, terminal.progress("Sample", config.impressions) as advance:
        summary = generate_sample(
            folder,
            impressions=config.impressions,
            seed=config.seed,
            advance=advance,
            pictures=config.pictures,
            sounds=config.sounds,
            delays=Delays(config.conversion_delay, config.conversion_delay_by_price),
            graph=config.graph,
        )
        save_config(config, folder / "config.yaml")
    return SampleResult(config.output, summary)
