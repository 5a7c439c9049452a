"""Rows → explanations in the user's terms: one ordered list of what speaks for and against an ad, which adds up to its logit.

Each part is something that can be taken away: a word, a past click, the interests, the query, a feature. Its contribution is a
Shapley value on the whole bundle's logit (network, trees and all), and beside it stands the score of the row without it alone.
Interests, query and clicks are reached from a row with none, so their parts are how they match this ad; where interests or a
query do the same to most ads, that is said. A part is listed as
speaking for or against only where taking it away confirms that; what Shapley gives to others is what several say together
(two like clicks, of which neither is missed), one entry of its own.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.arrays import combined
from adrec.data.examples import Examples
from adrec.inference.catalogs import Catalogs
from adrec.inference.explain.counterfactual import Change, changes
from adrec.inference.explain.occlusion import Occluder, Occlusion
from adrec.inference.explain.shapley import shapley
from adrec.inference.explain.variants import Input, Variants
from adrec.inference.explain.words import Word
from adrec.inference.lists.evidence import interest_words, reads_chinese
from adrec.inference.predictor import Predictor
from adrec.inference.rows import shown_titles
from adrec.prepare.text.clean import language

ROWS_AT_MOST = 3000
"""Variants of a row that are scored for its contributions: the more inputs, the fewer orders."""
MOST_PAIRS = 8
OTHER_ADS = 16
"""Ads drawn to tell a match from what interests or a query do to any ad."""
LEAST_EFFECT = 1e-6
"""Log-odds below which taking something away is rounding."""


@dataclass(frozen=True)
class Part:
    """One contribution. `kind`: word, click, skipped, interests, query, feature, or together (what several say together)."""

    kind: str
    name: str
    value: str
    contribution: float
    """log-odds; above 0 speaks for the click"""
    without: float | None = None
    """the score where this alone is taken away"""
    deviation: float | None = None
    """of a number: how many deviations above the mean"""
    start: int | None = None
    """of a word: where it starts in the text"""
    for_others: float | None = None
    """of interests and query: what taking them away takes from other ads of the catalogue, on average; the rest is the match"""


@dataclass(frozen=True)
class Explanation:
    """Why one (user, ad) got its score. `baseline` + the contributions of all parts = `logit`."""

    user_id: str
    ad_id: str
    title: str
    language: str
    """of the ad: zh, en or other"""
    reader: str
    """the language that the user reads, zh or en"""
    text: str
    score: float
    logit: float
    baseline: float
    """logit of an ad and a user of whom nothing is known"""
    parts: list[Part]
    """largest effect first, words among them"""
    words: list[Word]
    """the words of `text` in order, to be lit"""
    changes: list[Change]
    """what the score would be without something, or with the ad in another category"""
    pictures: list[Occlusion] = field(default_factory=list)
    """what patches of the ad's picture take from the logit"""


class Explainer:
    """Explains rows of one predictor over one set of catalogs. Changes neither, and keeps no vector of an altered text."""

    def __init__(
        self, predictor: Predictor, catalogs: Catalogs, titles: dict[str, str], occluder: Occluder | None = None
    ) -> None:
        self.predictor, self.catalogs, self.titles, self.occluder = predictor, catalogs, titles, occluder
        self.reader = predictor.reader.apart()

    def explain(self, examples: Examples, row: int, *, seed: int = 42) -> Explanation:
        """The explanation of one row of `examples` (over the explainer's catalogs)."""
        catalogs = self.catalogs
        example = examples.take(np.array([row]))
        scores = self.predictor.score_examples(example, catalogs, baselines=False)
        variants = Variants(self.predictor, catalogs, example, self.reader)
        logit, score = float(scores.logit[0]), float(scores.score[0])
        baseline, parts, words = self._parts(variants, logit, score, np.random.default_rng(seed))
        occluded = self.occluder.of(variants) if self.occluder is not None else None
        ad_id, text = catalogs.ads.ids[variants.ad].as_py(), variants.text
        return Explanation(
            user_id=catalogs.users.ids[variants.user].as_py(),
            ad_id=ad_id,
            title=self.titles.get(ad_id, text),
            language=str(language(pa.array([text]))[0]),
            reader="zh" if self._reads_chinese(example) else "en",
            text=text,
            score=score,
            logit=logit,
            baseline=baseline,
            parts=parts,
            words=words,
            changes=changes(variants, self.titles),
            pictures=[occluded] if occluded is not None else [],
        )

    def _parts(
        self, variants: Variants, logit: float, score: float, generator: np.random.Generator
    ) -> tuple[float, list[Part], list[Word]]:
        inputs = variants.inputs
        pairs = int(np.clip(ROWS_AT_MOST // (2 * max(len(inputs), 1)), 1, MOST_PAIRS))

        def value(present: NDArray[np.bool_]) -> NDArray[np.float64]:
            return variants.scores(present).logit.astype(np.float64)

        effects, baseline, _ = shapley(value, variants.groups, pairs=pairs, generator=generator)
        alone = variants.scores(np.concatenate([~np.eye(len(inputs), dtype=bool), np.ones((1, len(inputs)), bool)]))
        removal = float(alone.logit[-1]) - alone.logit[:-1].astype(np.float64)
        lowers = np.sign(float(alone.score[-1]) - alone.score[:-1])  # a calibrated score may lie flat where the logit moves
        confirmed = (np.sign(effects) == np.sign(removal)) & (np.sign(effects) == lowers) & (np.abs(removal) > LEAST_EFFECT)
        contributions = np.where(confirmed, effects, 0.0)
        others = self._for_others(variants, generator)
        parts = [
            self._part_of(variants, item, float(contribution), float(without), others.get(number))
            for number, (item, contribution, without) in enumerate(zip(inputs, contributions, alone.score, strict=False))
            if contribution
        ]
        together = logit - baseline - sum(part.contribution for part in parts)
        if abs(together) > LEAST_EFFECT:
            parts.append(Part("together", "together", "", together))
        words = [
            Word(item.name, *variants.spans[item.atoms[0][1]], float(contribution))
            for item, contribution in zip(inputs, contributions, strict=True)
            if item.kind == "word"
        ]
        return baseline, sorted(parts, key=lambda part: -abs(part.contribution)), words

    def _for_others(self, variants: Variants, generator: np.random.Generator) -> dict[int, float]:
        """Number of an input that any ad meets (interests, query) → what it adds to other ads on average."""
        numbers = [number for number, item in enumerate(variants.inputs) if item.kind in {"interests", "query"}]
        ads = np.setdiff1d(generator.choice(len(self.catalogs.ads), OTHER_ADS), [variants.ad])
        if not numbers or not len(ads):
            return {}
        present = np.ones((len(numbers) + 1, len(variants.inputs)), bool)
        present[np.arange(len(numbers)), numbers] = False
        scores = variants.scores_of_others(np.repeat(present, len(ads), axis=0), np.tile(ads, len(present)))
        mean = scores.logit.reshape(len(present), len(ads)).mean(axis=1)
        return {number: float(mean[-1] - without) for number, without in zip(numbers, mean, strict=False)}

    def _part_of(self, variants: Variants, item: Input, contribution: float, without: float, for_others: float | None) -> Part:
        value = self.titles.get(item.name, "") if item.kind in {"click", "skipped"} else item.value
        start = variants.spans[item.atoms[0][1]][0] if item.kind == "word" else None
        return Part(item.kind, item.name, value, contribution, without, item.deviation, start, for_others)

    def _reads_chinese(self, example: Examples) -> bool:
        """By the rule of the lists' reasons."""
        ads = self.catalogs.ads
        used = example.ads_used()
        chinese = np.zeros(len(ads), bool)
        chinese[used] = pc.equal(language(ads.texts.take(pa.array(used))), "zh").to_numpy(zero_copy_only=False)
        queries, interests = (
            pa.array([example.queries[int(example.query[0])]]),
            interest_words(self.catalogs.user_table, example.user_index),
        )
        return bool(reads_chinese(chinese, queries, interests, example, np.zeros(1, np.int64), example.ad_index)[0])


def titles_of(ads: pa.Table) -> dict[str, str]:
    """ad_id → title, or what else is shown of it."""
    ids, titles = combined(ads["ad_id"]).cast(pa.string()), shown_titles(ads)
    columns = (np.asarray(column.to_numpy(zero_copy_only=False)) for column in (ids, titles))
    return dict(zip(*columns, strict=True))
