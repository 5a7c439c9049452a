"""`adrec explain --global`: which inputs the model lives on, and what a feature's value does to the score."""

import json
from collections.abc import Iterable, Sequence
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
from adrec.inference.explain.names import group_label
from adrec.inference.explain.overall import REMOVED_ROWS, Dependence, Importance, Removal, dependences, importances, removals
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
    removal: list[Removal]
    dependence: list[Dependence]
    output: str
    chinese: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {
            "methods": {
                "importance": "rise of the log loss when the input is shuffled (Breiman 2001), 95 % intervals over users",
                "removal": "what taking the input away does to the logit, row by row, as in single explanations",
                "dependence": "mean score when every row has this value (Friedman 2001)",
            },
            "rows": self.rows,
            "importance": self._labelled(self.importance),
            "removal": self._labelled(self.removal),
            "dependence": self._labelled(self.dependence),
            "output": self.output,
        }

    def render(self) -> Iterable[RenderableType]:
        """The most important inputs."""
        table = Table(title=f"What the model loses without each input, {self.rows:,} rows", title_justify="left")
        table.add_column("input", overflow="fold")
        for name in ("log loss", "95 % interval", "AUC lost"):
            table.add_column(name, justify="right")
        for feature in self.importance[:SHOWN]:
            interval = f"{feature.low:+.5f} to {feature.high:+.5f}"
            table.add_row(self._label(feature), f"{feature.increase:+.5f}", interval, f"{feature.auc_drop:+.4f}")
        yield table
        table = Table(title="What each adds to the log-odds, by taking it away", title_justify="left")
        table.add_column("input", overflow="fold")
        for name in ("rows", "speaks for", "against", "mean", "mean size"):
            table.add_column(name, justify="right")
        for two in self.removal[:SHOWN]:
            shares = f"{two.speaks_for:.0%}", f"{two.speaks_against:.0%}"
            table.add_row(self._label(two), f"{two.rows:,}", *shares, f"{two.mean:+.3f}", f"{two.mean_size:.3f}")
        yield table
        yield f"output: {self.output}/{FILE}; 'adrec evaluate --set importance={self.output}' draws it"

    def _label(self, item: Importance | Removal | Dependence) -> str:
        return group_label(item.kind, item.name, chinese=self.chinese)

    def _labelled(self, items: Sequence[Importance | Removal | Dependence]) -> list[dict[str, Any]]:
        return [{**asdict(item), "label": self._label(item)} for item in items]


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
    count = min(REMOVED_ROWS, len(rows))
    with terminal.progress("Taking inputs away", count, unit="rows") as advance:
        removed = removals(predictor, source.catalogs, examples, rows=count, seed=config.seed, advance=advance)
    with terminal.progress("Setting features", unit="features") as advance:
        found = []
        for one in dependences(predictor, source.catalogs, examples, raw, seed=config.seed):
            found.append(one)
            advance(1)
    result = OverallResult(len(rows), important, removed, found, str(config.output), config.language == "zh")
    with folder_aside(config.output, EXPLANATION) as folder:
        text = json.dumps(result.as_dict(), ensure_ascii=False, indent=1)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")
        save_config(config, folder / "config.yaml")
    return result
