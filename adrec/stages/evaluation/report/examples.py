"""Requests that the model ordered best and worst, and lists that a policy made, with the words of their ads."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from adrec.metrics.ranking import RankedGroups
from adrec.stages.evaluation.judge import TaskResult
from adrec.stages.evaluation.off_policy.lists import ad_column
from adrec.stages.evaluation.reading.rows import Ints, Rows

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
        assert rows.requests is not None
        name = str(rows.requests.values[int(rows.requests.codes[first])])
        user = str(rows.table["user_id"][int(first)]) if "user_id" in rows else "nobody known"
        return Example(name, user, float(auc[request]), shown, len(inside) - len(kept))

    return [example(int(r)) for r in best[: min(count, len(best) - len(best) // 2)]], [example(int(r)) for r in worst]


def _shown(
    rows: Rows, titles: pa.Array | None, categories: pa.Array | None, row: int, rank: int, result: TaskResult, at: Ints
) -> Shown:
    return Shown(
        rank=rank,
        text=_word(titles, rows, row) or f"ad {rows.ads.values[int(rows.ads.codes[row])]}",
        category=_word(categories, rows, row),
        score=float(result.task.model.values[at]),
        clicked=bool(result.frame.labels[at] > 0),
    )


@dataclass(frozen=True)
class Listed:
    """One ad of a ranked list."""

    rank: int
    text: str
    category: str
    value: float
    reason: str


def first_lists(rows: Rows, ads: pa.Table | None, count: int) -> list[tuple[str, list[Listed]]]:
    """`count` ranked lists, evenly spread over the table: (request, ads by rank)."""
    if not rows.is_ranked or count == 0:
        return []
    titles, categories = (ad_column(rows, ads, column) for column in ("title", "category"))
    reasons = rows.table["reason"] if "reason" in rows else None
    chosen = np.unique(np.linspace(0, len(rows.group) - 1, count).astype(int))
    rank = rows.numbers("rank")
    value = rows.numbers("value" if "value" in rows else "score")
    found = []
    for group in chosen:
        inside = np.flatnonzero(rows.group.codes == group)
        inside = inside[np.argsort(rank[inside], kind="stable")][:MOST_ADS]
        listed = [
            Listed(
                rank=int(rank[row]),
                text=_word(titles, rows, int(row)) or f"ad {rows.ads.values[int(rows.ads.codes[row])]}",
                category=_word(categories, rows, int(row)),
                value=float(value[row]),
                reason="" if reasons is None else str(reasons[int(row)].as_py() or ""),
            )
            for row in inside
        ]
        found.append((str(rows.group.values[int(group)]), listed))
    return found


def _word(words: pa.Array | None, rows: Rows, row: int) -> str:
    """The ad's own word out of a column of one value an ad; empty where it has none."""
    return "" if words is None else str(words[int(rows.ads.codes[row])].as_py() or "")
