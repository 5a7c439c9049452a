"""What `adrec federate` shows of a run."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.table import Table


@dataclass(frozen=True)
class FederateResult:
    """How it went."""

    output: str
    clients: int
    rows: int
    smallest: int
    """rows of the smallest client"""
    rounds: int
    fallen: int
    """times that a client fell out"""
    figures: dict[str, float]
    """of the bundle on validation rows"""
    curve: list[dict[str, float]] = field(default_factory=list)
    """`round` and validation metrics of the raw outputs"""
    privacy: dict[str, Any] | None = None
    """the ledger of a bundle that claims an epsilon"""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return dict(vars(self))

    def render(self) -> Iterable[RenderableType]:
        """The curve, and a line."""
        table = Table("round", title=f"{self.clients:,} clients, {self.rows:,} rows (the smallest has {self.smallest:,})")
        names = [name for name in ("auc", "auc_request", "log_loss") if name in self.figures]
        for name in names:
            table.add_column(name, justify="right")
        for row in self.curve:
            table.add_row(f"{row['round']:.0f}", *(f"{row[name]:.4f}" for name in names))
        table.add_row("bundle", *(f"{self.figures[name]:.4f}" for name in names))
        yield table
        if self.privacy is not None:
            yield (
                f"private: epsilon {self.privacy['spent']:.3g} at delta {self.privacy['delta']:g} for"
                f" {self.privacy['neighbours']}; the figures above are exact, and for your eyes"
            )
        yield f"{self.rounds:,} rounds, clients fell out {self.fallen:,} times; bundle: {self.output}"
