"""`adrec explain --global`: which inputs the model lives on, and what a feature's value does to the score."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import RenderableType
from rich.table import Table

from adrec.config.base import save_config
from adrec.config.inference.explain import ExplainConfig
from adrec.data.disk.outputs import EXPLANATION
from adrec.data.disk.writing import folder_aside
from adrec.errors import DataError
from adrec.inference.explain.overall import Dependence, Importance, dependences, importances
from adrec.inference.predictor import Predictor
from adrec.inference.score_source import open_source
from adrec.terminal import Terminal

FILE = "importance.json"
SHOWN = 15


@dataclass(frozen=True)
class OverallResult:
    """Importances, largest first, and dependences."""

    rows: int
    importance: list[Importance]
    dependence: list[Dependence]
    output: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {
            "methods": {
                "importance": "rise of the log loss when the input is shuffled (Breiman 2001), 95 % intervals over users",
                "dependence": "mean score when every row has this value (Friedman 2001)",
            },
            "rows": self.rows,
            "importance": [asdict(one) for one in self.importance],
            "dependence": [asdict(one) for one in self.dependence],
            "output": self.output,
        }

    def render(self) -> Iterable[RenderableType]:
        """The most important inputs."""
        table = Table(title=f"What the model loses without each input, {self.rows:,} rows", title_justify="left")
        table.add_column("input", overflow="fold")
        for name in ("log loss", "95 % interval", "AUC lost"):
            table.add_column(name, justify="right")
        for one in self.importance[:SHOWN]:
            name = one.name if one.kind in (one.name, "text") else f"{one.kind}: {one.name}"
            table.add_row(name, f"{one.increase:+.5f}", f"{one.low:+.5f} to {one.high:+.5f}", f"{one.auc_drop:+.4f}")
        yield table
        yield f"output: {self.output}/{FILE}; 'adrec evaluate --set importance={self.output}' draws it"


def explain_overall(config: ExplainConfig, terminal: Terminal) -> OverallResult:
    """Read the first rows, shuffle, write. Raises DataError where the rows have no clicks or nothing but clicks."""
    device = "cpu" if config.device == "auto" else config.device
    predictor = Predictor.load(config.bundle, device=device, cache=config.cache)
    source = open_source(config.model_copy(update={"chunk_rows": config.overall_rows}), predictor)
    chunk = next(iter(source.chunks(0)))
    rows = np.arange(min(config.overall_rows, len(chunk.examples)))
    examples, raw = chunk.examples.take(rows), chunk.table.take(pa.array(rows))
    if not 0 < np.nanmean(examples.labels.get("click", np.zeros(1))) < 1:
        raise DataError("explain --global needs rows with clicks and misses: their column 'click' holds 1 and 0.")
    with terminal.progress("Shuffling inputs", unit="inputs") as advance:
        important = importances(predictor, source.catalogs, examples, seed=config.seed, advance=advance)
    with terminal.progress("Setting features", unit="features") as advance:
        found = []
        for one in dependences(predictor, source.catalogs, examples, raw, seed=config.seed):
            found.append(one)
            advance(1)
    result = OverallResult(len(rows), important, found, str(config.output))
    with folder_aside(config.output, EXPLANATION) as folder:
        text = json.dumps(result.as_dict(), ensure_ascii=False, indent=1)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")
        save_config(config, folder / "config.yaml")
    return result
