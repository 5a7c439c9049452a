"""Requests that the model ordered best and worst, with the words of their ads."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from adrec.metrics.ranking import RankedGroups
from adrec.stages.evaluation.judge import TaskResult
from adrec.stages.evaluation.lists import ad_column
from adrec.stages.evaluation.rows import Ints, Rows

MOST_ADS = 8
MOST_CLICKED = 4


@dataclass(frozen=True)
class Shown:
    """One ad of a request."""

    rank: int
    text: str
    category: str
    score: float
    clicked: bool


@dataclass(frozen=True)
class Example:
    """A request, its ads by falling score: the first few, and the clicked ones wherever they stand."""

    request: str
    user: str
    auc: float
    ads: tuple[Shown, ...]
    hidden: int


def best_and_worst(result: TaskResult, rows: Rows, ads: pa.Table | None, count: int) -> tuple[list[Example], list[Example]]:
    """`count` requests with the highest and the lowest AUC inside; among equals the longest, then the first."""
    frame, task = result.frame, result.task
    if frame.requests is None or not frame.has_lists or count == 0:
        return [], []
    ranked = RankedGroups(frame.labels, task.model.values, frame.requests)
    auc = ranked.auc()
    known = np.flatnonzero(~np.isnan(auc))
    order = known[np.lexsort((known, -ranked.sizes[known], auc[known]))]
    best = known[np.lexsort((known, -ranked.sizes[known], -auc[known]))]
    worst = order[: min(count, len(order) // 2)]
    by_request = np.argsort(frame.requests, kind="stable")
    bounds = np.searchsorted(frame.requests[by_request], np.arange(ranked.count + 1))
    titles, categories = (ad_column(rows, ads, column) for column in ("title", "category"))

    def example(request: int) -> Example:
        inside = by_request[bounds[request] : bounds[request + 1]]
        inside = inside[np.argsort(-task.model.values[inside], kind="stable")]
        clicked = frame.labels[inside] > 0
        place = np.arange(len(inside))
        kept = np.flatnonzero((place < MOST_ADS) | (clicked & (np.cumsum(clicked) <= MOST_CLICKED)))
        shown = tuple(_shown(rows, titles, categories, task.rows[inside[i]], int(i) + 1, result, inside[i]) for i in kept)
        first = task.rows[inside[0]]
        name = str(rows.table["request_id"][int(first)])
        return Example(name, str(rows.table["user_id"][int(first)]), float(auc[request]), shown, len(inside) - len(kept))

    return [example(int(r)) for r in best[: min(count, len(best) - len(best) // 2)]], [example(int(r)) for r in worst]


def _shown(
    rows: Rows, titles: pa.Array | None, categories: pa.Array | None, row: int, rank: int, result: TaskResult, at: Ints
) -> Shown:
    ad = int(rows.ads.codes[row])
    text = titles[ad].as_py() if titles is not None else None
    category = categories[ad].as_py() if categories is not None else None
    return Shown(
        rank=rank,
        text=text or f"ad {rows.ads.values[ad]}",
        category=category or "",
        score=float(result.task.model.values[at]),
        clicked=bool(result.frame.labels[at] > 0),
    )
