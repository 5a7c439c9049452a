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
from adrec.config.data.sources import TablesSource
from adrec.config.inference.explain import ExplainConfig
from adrec.data.disk.outputs import EXPLANATION
from adrec.data.disk.writing import folder_aside
from adrec.data.prepared import open_prepared
from adrec.errors import DataError
from adrec.inference.explain.counterfactual import Change
from adrec.inference.explain.explainer import Explainer, Explanation, Part, titles_of
from adrec.inference.explain.occlusion import Occluder, picture_reader
from adrec.inference.explain.sentence import change_label, part_label, sentence
from adrec.inference.predictor import Predictor
from adrec.inference.score_source import Source, open_source
from adrec.pages.page import rendered
from adrec.prepare.sources.files import find_files
from adrec.prepare.text.clean import SEPARATOR
from adrec.stages.inference.explain_overall import OverallResult, explain_overall
from adrec.terminal import Terminal

COUNTERFACTUALS = 5  # clicks and categories shown a row, largest effect first: what a reader looks at

PAGE = Path(__file__).with_name("explain.html.j2")
SHOWN_ROWS, SHOWN_PARTS, PAGE_PARTS = 3, 8, 16
BASELINE = ("an ad and a user of whom nothing is known", "对广告和用户一无所知时")


@dataclass(frozen=True)
class Worded:
    """An explanation in the words of a language."""

    explanation: Explanation
    chinese: bool

    @property
    def sentence(self) -> str:
        """Why, in one sentence."""
        return sentence(self.explanation, "zh" if self.chinese else "en")

    @property
    def changes(self) -> list[Change]:
        """Without interests, search and all clicks; then the clicks and categories that would change most."""
        score = self.explanation.score
        whole = [change for change in self.explanation.changes if change.kind in {"interests", "query", "clicks", "slot"}]
        others = [change for change in self.explanation.changes if change not in whole]
        return whole + sorted(others, key=lambda change: -abs(change.score - score))[:COUNTERFACTUALS]

    def label(self, line: Part | Change) -> str:
        """A line of a table."""
        say: Any = part_label if isinstance(line, Part) else change_label
        return str(say(line, chinese=self.chinese))

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        plain = asdict(self.explanation)
        plain["pictures"] = [{name: value for name, value in item.items() if name != "shown"} for item in plain["pictures"]]
        parts = [{**asdict(part), "label": self.label(part)} for part in self.explanation.parts]
        changed = [{**asdict(change), "label": self.label(change)} for change in self.explanation.changes]
        plain |= {"parts": parts, "counterfactuals": changed, "sentence": self.sentence}
        return {name: value for name, value in plain.items() if name != "changes"}


@dataclass(frozen=True)
class ExplainResult:
    """The explained rows, in order."""

    rows: list[Worded]
    output: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {
            "unit": "log-odds; baseline + contributions of the parts = logit",
            "methods": {
                "contribution": "sampled Shapley values (Castro et al. 2009) of the bundle's logit, in groups (Owen 1977)",
                "without": "score of the row without this part alone, which confirms the sign of the contribution",
                "pictures": "logit less what it is with a grey patch over that part (Zeiler and Fergus 2014); from above",
            },
            "rows": [told.as_dict() for told in self.rows],
            "output": self.output,
        }

    def render(self) -> Iterable[RenderableType]:
        """The first few rows: lit words, largest contributions, changes."""
        for told in self.rows[:SHOWN_ROWS]:
            yield _drawn(told)
        if len(self.rows) > SHOWN_ROWS:
            yield f"{len(self.rows)} rows explained; all of them in {self.output}"
        else:
            yield f"output: {self.output}"


def run(config: ExplainConfig, terminal: Terminal) -> ExplainResult | OverallResult:
    """Explain the first rows that fit, or the model over many. Raises DataError where none does."""
    if config.overall:
        return explain_overall(config, terminal)
    device = "cpu" if config.device == "auto" else config.device
    result = explained(config, Predictor.load(config.bundle, device=device, cache=config.cache), terminal)
    with folder_aside(config.output, EXPLANATION) as folder:
        (folder / "explanations.json").write_text(json.dumps(result.as_dict(), ensure_ascii=False, indent=1), encoding="utf-8")
        (folder / "explanations.html").write_text(_page(result), encoding="utf-8")
        save_config(config, folder / "config.yaml")
    return result


def explained(config: ExplainConfig, predictor: Predictor, terminal: Terminal) -> ExplainResult:
    """The first rows that fit, explained; nothing is written. Raises DataError where none does."""
    source = open_source(config, predictor)
    occluder = _occluder(config, predictor, source)
    explainer = Explainer(predictor, source.catalogs, titles_of(source.ads), occluder)
    rows = []
    with terminal.progress("Explaining", config.rows, unit="rows") as advance:
        for one in _wanted(config, source):
            explanation = explainer.explain(one, 0, seed=config.seed)
            language = explanation.reader if config.language == "auto" else config.language
            rows.append(Worded(explanation, language == "zh"))
            advance(1)
    if not rows:
        raise DataError(f"no row of user_id={config.user_id or 'any'} and ad_id={config.ad_id or 'any'} among the rows given.")
    if occluder is not None and occluder.unread:
        ad_id, reason = next(iter(occluder.unread.items()))
        terminal.warn(
            f"{len(occluder.unread)} pictures cannot be drawn, such as that of ad {ad_id}, which {reason}. Set `pictures` to "
            "the folder that their names start from, or `occlusion` to 0."
        )
    return ExplainResult(rows, str(config.output))


def _occluder(config: ExplainConfig, predictor: Predictor, source: Source) -> Occluder | None:
    reader = picture_reader(predictor.packed.media.values())
    if reader is None or not config.occlusion:
        return None
    root = config.pictures
    prepared = open_prepared(config.prepared) if root is None and config.prepared is not None else None
    if prepared is not None and prepared.config is not None and prepared.config.image is not None:
        root = prepared.config.image.root or _folder_of_ads(prepared.config.source)
    return Occluder(reader, source.ads, root, config.occlusion)


def _folder_of_ads(source: object) -> Path | None:
    """Where preprocess read the ads from; None where it is not here any more, or not known."""
    if not isinstance(source, TablesSource):
        return None
    try:
        return find_files((source.ads or source.impressions).files)[0].parent
    except DataError:
        return None


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


def _drawn(worded: Worded) -> RenderableType:
    explanation, chinese = worded.explanation, worded.chinese
    strongest = max((abs(word.contribution) for word in explanation.words), default=0.0) or 1.0
    lit = Text(explanation.text)
    for word in explanation.words:
        share = word.contribution / strongest
        style = "bold green" if share > 0.5 else "green" if share > 0.1 else "red" if share < -0.1 else ""
        lit.stylize(style, word.start, word.end)
    table = Table(
        title=" · ".join(filter(None, (explanation.user_id, explanation.ad_id))),
        title_justify="left",
        caption=worded.sentence,
        caption_justify="left",
    )
    table.add_column("内容" if chinese else "what", overflow="fold")
    table.add_column("对数几率" if chinese else "log-odds", justify="right")
    table.add_column("没有它时的得分" if chinese else "score without it", justify="right")
    table.add_row(lit, "", "")
    table.add_row(BASELINE[chinese], f"{explanation.baseline:+.3f}", "")
    for part in explanation.parts[:SHOWN_PARTS]:
        without = f"{part.without:.4f}" if part.without is not None else ""
        table.add_row(worded.label(part), f"{part.contribution:+.3f}", without)
    rest = explanation.parts[SHOWN_PARTS:]
    if rest:
        more = f"其余 {len(rest)} 项" if chinese else f"{len(rest)} more"
        table.add_row(more, f"{sum(part.contribution for part in rest):+.3f}", "")
    table.add_section()
    table.add_row(f"{'得分' if chinese else 'score'} {explanation.score:.4f}", f"{explanation.logit:+.3f}", "")
    for change in worded.changes:
        table.add_row(worded.label(change), f"{change.logit:+.3f}", f"{change.score:.4f}")
    return table


def _page(result: ExplainResult) -> str:
    chinese = all(told.chinese for told in result.rows)
    return rendered(
        PAGE,
        "zh" if chinese else "en",
        rows=result.rows,
        baseline=BASELINE,
        lit=_lit,
        shown=PAGE_PARTS,
        verdict=_verdict(result.rows),
        contents=[(f"row-{number}", f"Row {number}") for number in range(1, len(result.rows) + 1)][:_MOST_NAMED],
    )


def _verdict(rows: list[Worded]) -> list[str]:
    """What moves these rows most, over all of them."""
    kinds: dict[str, float] = {}
    for told in rows:
        for part in told.explanation.parts:
            kinds[part.kind] = kinds.get(part.kind, 0.0) + abs(part.contribution)
    scores = [told.explanation.score for told in rows]
    said = [f"The scores lie between {min(scores):.4f} and {max(scores):.4f}."]
    if kinds:
        most = max(kinds, key=lambda kind: kinds[kind])
        said.append(
            f"What moves them most: {_KINDS.get(most, most)} ({kinds[most] / sum(kinds.values()):.0%} of all movement)."
        )
    return said


_MOST_NAMED = 12
_KINDS = {
    "word": "words of the ad",
    "click": "earlier clicks",
    "skipped": "ads seen and not clicked",
    "interests": "interests",
    "query": "the search",
    "feature": "features of the row",
    "together": "what several say together",
}


def _lit(explanation: Explanation) -> Iterable[tuple[str, float]]:
    """The ad's text in pieces, with what each adds; 0 between words. The template's separator is shown as a dot."""
    end = 0
    for word in explanation.words:
        yield explanation.text[end : word.start].replace(SEPARATOR, "·"), 0.0
        yield explanation.text[word.start : word.end], word.contribution
        end = word.end
    yield explanation.text[end:], 0.0
