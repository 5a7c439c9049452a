"""What the score would be without one click, all clicks, the interests, the query or the slot, or in another category.

Each change is scored by the whole bundle, trees and calibration included. Counters stay as they are: they are facts of the log.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from adrec.inference.explain.variants import Variants

WITHOUT = ("click", "skipped", "interests", "query")


@dataclass(frozen=True)
class Change:
    """One change to a row and the score it gives."""

    kind: str
    """click, skipped, clicks (all of them), interests, query or slot: taken away; category: swapped"""
    name: str
    """ad_id of the click, else what is taken away, or the new category"""
    value: str
    """title of the clicked ad, text of the interests or the query"""
    score: float
    logit: float


def changes(variants: Variants, titles: dict[str, str], *, categories: int = 3) -> list[Change]:
    """All that can be taken away of what is known of the user, and the candidate in each of the commonest other categories."""
    inputs = variants.inputs
    taken = [(item.kind, item.name, item.value, [number]) for number, item in enumerate(inputs) if item.kind in WITHOUT]
    clicks = [number for number, item in enumerate(inputs) if item.kind == "click"]
    if len(clicks) > 1:
        taken.append(("clicks", "clicks", str(len(clicks)), clicks))
    made: list[Change] = []
    if taken:
        present = np.ones((len(taken), len(inputs)), bool)
        for row, (*_, numbers) in enumerate(taken):
            present[row, numbers] = False
        scores = variants.scores(present)
        made = [
            Change(kind, name, titles.get(name, "") if kind in {"click", "skipped"} else value, float(score), float(logit))
            for (kind, name, value, _), score, logit in zip(taken, scores.score, scores.logit, strict=True)
        ]
    return made + list(_any_slot(variants)) + list(_other_categories(variants, categories))


def _any_slot(variants: Variants) -> Iterator[Change]:
    """The row without its slot, where the bundle knows what slots do: the logit is the same, of no slot in particular."""
    scores = variants.scores(np.ones((1, len(variants.inputs)), bool))
    position = int(variants.row.position[0])
    if scores.any_slot is not None and position > 0:
        yield Change("slot", "slot", str(position), float(scores.any_slot[0]), float(scores.logit[0]))


def _other_categories(variants: Variants, most: int) -> Iterator[Change]:
    """The candidate in the commonest categories that are not its own; none where categories are not a feature."""
    catalogs, predictor = variants.catalogs, variants.predictor
    fitted = predictor.packed.features["ads"]
    if "category" not in fitted.categorical_names:
        return
    column = fitted.categorical_names.index("category")
    coder, codes = fitted.categories[column], catalogs.ads.categorical[:, column]
    others, counts = np.unique(codes[(codes != codes[variants.ad]) & (codes != 0)], return_counts=True)
    for code in others[np.argsort(-counts, kind="stable")][:most]:
        changed = catalogs.ads.categorical.copy()
        changed[variants.ad, column] = code
        altered = replace(catalogs, ads=replace(catalogs.ads, categorical=changed))
        scores = predictor.score_examples(variants.row, altered, baselines=False)
        name = coder.value(int(code))
        yield Change("category", name, name, float(scores.score[0]), float(scores.logit[0]))
