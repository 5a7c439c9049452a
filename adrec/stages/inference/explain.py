"""`adrec explain`: why rows got their scores, as a table, JSON, and a page with the words lit."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adrec.config.base import save_config
from adrec.config.inference.explain import ExplainConfig
from adrec.data.disk.outputs import EXPLANATION
from adrec.data.disk.writing import folder_aside
from adrec.errors import DataError
from adrec.inference.explain.counterfactual import Change, changes
from adrec.inference.explain.explainer import Explainer, Explanation, titles_of
from adrec.inference.explain.sentence import sentence
from adrec.inference.predictor import Predictor
from adrec.inference.score_source import Source, open_source
from adrec.stages.inference.explain_overall import OverallResult, explain_overall
from adrec.terminal import Terminal

COUNTERFACTUALS = 5  # changes shown a row, largest first: what a reader looks at

PAGE = Path(__file__).with_name("explain.html.j2")
SHOWN_ROWS, SHOWN_PARTS = 3, 8


@dataclass(frozen=True)
class ExplainResult:
    """The explained rows, in order."""

    explanations: list[Explanation]
    sentences: list[str]
    changes: list[list[Change]]
    output: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        rows = zip(self.explanations, self.sentences, self.changes, strict=True)
        return {
            "unit": "log-odds; baseline + contributions + missing = logit",
            "methods": {
                "words, clicks, numbers": "integrated gradients (Sundararajan et al. 2017)",
                "categories, lists, identities": "sampled Shapley values (Castro et al. 2009)",
            },
            "rows": [
                {**asdict(explanation), "sentence": text, "counterfactuals": [asdict(change) for change in changed]}
                for explanation, text, changed in rows
            ],
            "output": self.output,
        }

    def render(self) -> Iterable[RenderableType]:
        """The first few rows: lit words, largest contributions, changes."""
        for row in range(min(SHOWN_ROWS, len(self.explanations))):
            yield from _drawn(self.explanations[row], self.sentences[row], self.changes[row])
        if len(self.explanations) > SHOWN_ROWS:
            yield f"{len(self.explanations)} rows explained; all of them in {self.output}"
        else:
            yield f"output: {self.output}"


def run(config: ExplainConfig, terminal: Terminal) -> ExplainResult | OverallResult:
    """Explain the first rows that fit, or the model over many. Raises DataError where none does."""
    if config.overall:
        return explain_overall(config, terminal)
    device = "cpu" if config.device == "auto" else config.device
    predictor = Predictor.load(config.bundle, device=device, cache=config.cache)
    source = open_source(config, predictor)
    explainer = Explainer(predictor, source.catalogs, titles_of(source.ads))
    explanations, changed = [], []
    with terminal.progress("Explaining", config.rows, unit="rows") as advance:
        for one in _wanted(config, source):
            explanations.append(explainer.explain(one, 0, seed=config.seed))
            found = changes(predictor, source.catalogs, one)
            score = explanations[-1].score
            changed.append(sorted(found, key=lambda change: -abs(change.score - score))[:COUNTERFACTUALS])
            advance(1)
    if not explanations:
        raise DataError(f"no row of user_id={config.user_id or 'any'} and ad_id={config.ad_id or 'any'} among the rows given.")
    result = ExplainResult(explanations, [sentence(item) for item in explanations], changed, str(config.output))
    with folder_aside(config.output, EXPLANATION) as folder:
        (folder / "explanations.json").write_text(json.dumps(result.as_dict(), ensure_ascii=False, indent=1), encoding="utf-8")
        (folder / "explanations.html").write_text(_page(result), encoding="utf-8")
        save_config(config, folder / "config.yaml")
    return result


def _wanted(config: ExplainConfig, source: Source) -> Iterable[Any]:
    """Examples of one row each."""
    left = config.rows
    for chunk in source.chunks(0):
        fits = np.ones(len(chunk.examples), bool)
        for column, wanted in (("user_id", config.user_id), ("ad_id", config.ad_id)):
            if wanted is not None:
                if column not in chunk.table.column_names:
                    raise DataError(f"explain: these rows have no '{column}'. Leave {column} out.")
                fits &= np.asarray(chunk.table[column].to_numpy()) == wanted
        for row in np.flatnonzero(fits)[:left]:
            yield chunk.examples.take(np.array([row]))
            left -= 1
        if left <= 0:
            return


def _drawn(explanation: Explanation, text: str, changed: list[Change]) -> Iterable[RenderableType]:
    strongest = max((abs(word.contribution) for word in explanation.words), default=0.0) or 1.0
    lit = Text()
    for word in explanation.words:
        share = word.contribution / strongest
        style = "bold green" if share > 0.5 else "green" if share > 0.1 else "red" if share < -0.1 else ""
        lit.append(word.text, style)
        lit.append("" if explanation.language == "zh" else " ")
    table = Table(
        title=" · ".join(filter(None, (explanation.user_id, explanation.ad_id))),
        title_justify="left",
        caption=text,
        caption_justify="left",
    )
    table.add_column("what")
    table.add_column("value", overflow="fold", max_width=60)
    table.add_column("log-odds", justify="right")
    table.add_row("baseline", "masked words, average clicks, unknown categories", f"{explanation.baseline:+.3f}")
    table.add_row("text", lit, f"{sum(word.contribution for word in explanation.words):+.3f}")
    for part in explanation.parts[:SHOWN_PARTS]:
        table.add_row(f"{part.kind} {part.name}", part.value, f"{part.contribution:+.3f}")
    rest = sum(part.contribution for part in explanation.parts[SHOWN_PARTS:])
    if len(explanation.parts) > SHOWN_PARTS:
        table.add_row(f"{len(explanation.parts) - SHOWN_PARTS} more", "", f"{rest:+.3f}")
    table.add_row("missing", f"of the integral, {explanation.steps} steps", f"{explanation.missing:+.5f}")
    table.add_section()
    table.add_row("logit", f"score {explanation.score:.4f}", f"{explanation.logit:+.3f}")
    for change in changed:
        verb = "as" if change.kind == "category" else "without"
        table.add_row(f"{verb} {change.kind} {change.name}", f"score {change.score:.4f}", f"{change.logit:+.3f}")
    yield table


def _page(result: ExplainResult) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(PAGE.read_text(encoding="utf-8"))
    return template.render(rows=list(zip(result.explanations, result.sentences, result.changes, strict=True)))
