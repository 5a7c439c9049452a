"""What `adrec finetune` reports: the validation table of the model and every baseline, and a line on the run."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adrec.inference.worth import Worth
from adrec.ranking.recall import CandidateRecall
from adrec.stages.candidate_recall import KEY, as_json, recall_table
from adrec.stages.training.simple_check import SimpleCheck
from adrec.tables import best_marked

HEADLINE = ("auc", "auc_request", "mrr", "ndcg@5", "ndcg@10", "log_loss")


@dataclass(frozen=True)
class FinetuneResult:
    """What was trained, and how it and the baselines do on the validation rows."""

    output: str
    rows: int
    valid_rows: int
    seeds: list[int]
    best_seed: int
    epochs: float
    seconds: float
    rows_per_second: float
    models: dict[str, dict[str, float]]
    """name → validation metrics; `adrec` is the network, the others are baselines"""
    deviations: dict[str, float]
    """standard deviation over seeds of each of the network's metrics; empty with one seed"""
    calibration: str
    left_out: dict[str, str] = field(default_factory=dict)
    hybrid: str = "none"
    cross_fitted: dict[str, float] | None = None
    """of a hybrid: metrics where each request is scored by a fit on other requests, the better guess of new rows"""
    simple_check: SimpleCheck | None = None
    """the best baseline against the model; None where validation rows are too few to say"""
    candidate_recall: list[CandidateRecall] = field(default_factory=list)
    """of the bundle on validation requests; empty where it was not measured"""
    refit: dict[str, float] | None = None
    """`rows` and `steps` of the training on training and validation rows, at what `share` of the schedule it ended, and its
    `agreement` with the chosen network on the validation rows (rank correlation); None without"""

    modalities: list[Worth] = field(default_factory=list)
    """what the text and each column of vectors of the ads are worth; empty without vectors"""

    privacy: dict[str, Any] | None = None
    """the ledger of a private bundle"""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        worths = {found.name: asdict(found) for found in self.modalities}
        check = asdict(self.simple_check) if self.simple_check is not None else None
        return {**vars(self), "simple_check": check, KEY: as_json(self.candidate_recall), "modalities": worths}

    def render(self) -> Iterable[RenderableType]:
        """The validation table, and a line on the run."""
        measured = ", before they were learned too" if self.refit is not None else ""
        table = Table(title=f"Validation, {self.valid_rows:,} rows{measured}", title_justify="left")
        table.add_column("model")
        for name in HEADLINE:
            table.add_column(name, justify="right")
        best = {name: _best(name, self.models.values()) for name in HEADLINE}
        order = sorted(self.models, key=lambda model: -self.models[model].get(HEADLINE[0], -np.inf))
        for model in order:
            metrics = self.models[model]
            cells = [
                _cell(metrics.get(name), best[name], self.deviations.get(name) if model == "adrec" else None)
                for name in HEADLINE
            ]
            table.add_row(model, *cells)
            if model == "adrec" and self.cross_fitted is not None:
                table.add_row("  cross-fitted", *(_cell(self.cross_fitted.get(name), float("nan"), None) for name in HEADLINE))
        yield table
        if self.modalities:
            yield _worth_table(self.modalities)
        extra = {name: value for name, value in self.models["adrec"].items() if name not in HEADLINE}
        if extra:
            yield "Other tasks: " + ", ".join(f"{name} {value:.4f}" for name, value in extra.items())
        yield (
            f"{self.rows:,} training rows, {self.epochs:.1f} epochs in {self.seconds:.0f} s"
            f" ({self.rows_per_second:,.0f} rows/s); calibration: {self.calibration}; hybrid: {self.hybrid}"
        )
        if self.simple_check is not None:
            yield Text(self.simple_check.sentence(), style="yellow" if self.simple_check.is_better else "")
        elif len(self.models) > 1:
            yield "too few clicks in the validation rows to say whether a simple baseline is better than the model"
        if self.refit is not None:
            yield (
                f"trained again on {self.refit['rows']:,} rows, validation included, for {self.refit['steps']:,} steps;"
                f" rank correlation with the chosen network {self.refit['agreement']:.3f}"
            )
        yield from recall_table(self.candidate_recall)
        for name, reason in self.left_out.items():
            yield f"left out {name}: {reason}"
        if self.privacy is not None:
            yield (
                f"private: epsilon {self.privacy['spent']:.3g} at delta {self.privacy['delta']:g} for"
                f" {self.privacy['neighbours']}; the figures above are exact, and for your eyes"
            )
        yield f"bundle: {self.output}"


def _worth_table(modalities: list[Worth]) -> Table:
    title = f"What each modality is worth: AUC, {modalities[0].together:.4f} with all"
    table = Table(title=title, title_justify="left")
    table.add_column("modality")
    for name in ("rows with it", "without it", "alone"):
        table.add_column(name, justify="right")
    for found in modalities:
        table.add_row(found.name, f"{found.share:.0%}", f"{found.without:.4f}", f"{found.alone:.4f}")
    return table


def _best(name: str, rows: Iterable[dict[str, float]]) -> float:
    values = [row[name] for row in rows if name in row and np.isfinite(row[name])]
    return (min if name == "log_loss" else max)(values, default=float("nan"))


def _cell(value: float | None, best: float, deviation: float | None) -> Text:
    if value is None or not np.isfinite(value):
        return Text("– ")
    shown = f"{value:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")
    return best_marked(shown, value == best)
