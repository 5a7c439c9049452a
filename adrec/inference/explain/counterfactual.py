"""What the score would be had the user not clicked that ad, not asked, or were the ad of another category.

Each change is scored by the whole bundle, trees and calibration included. Counters stay as they are: they are facts of the log.
"""

from dataclasses import dataclass, replace

import numpy as np

from adrec.data.examples import Examples
from adrec.inference.predictor import Catalogs, Predictor


@dataclass(frozen=True)
class Change:
    """One change to a row and the score it gives."""

    kind: str
    """click (taken away), query (taken away), or category (swapped)"""
    name: str
    """ad_id of the click, or the new category's code as text"""
    score: float
    logit: float


def changes(predictor: Predictor, catalogs: Catalogs, one: Examples, *, categories: int = 3) -> list[Change]:
    """Every past click taken away, the query taken away, and the candidate in each of the commonest other categories."""
    history = one.histories.take(one.history_of_row).values
    names = [("click", catalogs.ads.ids[int(ad)].as_py()) for ad in history]
    found: list[Change] = []
    if names:
        scores = predictor.score_examples(_without_each_click(one), catalogs, baselines=False)
        found += [
            Change(kind, name, float(score), float(logit))
            for (kind, name), score, logit in zip(names, scores.score, scores.logit, strict=True)
        ]
    if int(one.query[0]):
        asked = predictor.score_examples(replace(one, query=np.zeros(1, np.int32)), catalogs, baselines=False)
        found.append(Change("query", one.queries[int(one.query[0])], float(asked.score[0]), float(asked.logit[0])))
    return found + _other_categories(predictor, catalogs, one, categories)


def _without_each_click(one: Examples) -> Examples:
    """H copies of a row, the k-th without its k-th click."""
    values = one.histories.take(one.history_of_row).values
    start = int(one.history_offsets[one.history_of_row[0]])
    hours = one.history_hours[start : start + len(values)]
    count = len(values)
    kept = ~np.eye(count, dtype=bool)
    rows = np.zeros(count, np.int64)
    skipped = one.skipped.take(one.history_of_row).values
    return replace(
        one.take(rows),
        request=np.arange(count, dtype=np.int32),
        history_length=np.maximum(one.history_length[rows] - 1, 0).astype(np.int32),
        history_of_row=np.arange(count, dtype=np.int32),
        history_offsets=np.arange(count + 1, dtype=np.int64) * max(count - 1, 0),
        history_values=np.tile(values, (count, 1))[kept],
        history_hours=np.tile(hours, (count, 1))[kept],
        skipped_offsets=np.arange(count + 1, dtype=np.int64) * len(skipped),
        skipped_values=np.tile(skipped, count),
    )


def _other_categories(predictor: Predictor, catalogs: Catalogs, one: Examples, most: int) -> list[Change]:
    """The candidate in the commonest categories that are not its own; none where categories are not a feature."""
    fitted = predictor.packed.features["ads"]
    if "category" not in fitted.categorical_names:
        return []
    column, ad = fitted.categorical_names.index("category"), int(one.ad_index[0])
    coder, codes = fitted.categories[column], catalogs.ads.categorical[:, column]
    others, counts = np.unique(codes[(codes != codes[ad]) & (codes != 0)], return_counts=True)
    found = []
    for code in others[np.argsort(-counts, kind="stable")][:most]:
        changed = catalogs.ads.categorical.copy()
        changed[ad, column] = code
        scores = predictor.score_examples(
            one, replace(catalogs, ads=replace(catalogs.ads, categorical=changed)), baselines=False
        )
        found.append(Change("category", coder.value(int(code)), float(scores.score[0]), float(scores.logit[0])))
    return found
