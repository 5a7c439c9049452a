"""Why an ad did or did not reach a user: the step that dropped it, or who outranked it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table as RichTable

from adrec.data.arrays import combined
from adrec.errors import DataError
from adrec.inference.lists.candidates import query_words
from adrec.inference.lists.ranker import Block, Ranker
from adrec.ranking.auction import auction_order
from adrec.ranking.pacing import RequestShares


@dataclass(frozen=True)
class AdFate:
    """The fate of one ad in one request."""

    user: str
    ad: str
    request: str
    policy: str
    shown: bool
    verdict: str
    """one sentence"""
    steps: list[tuple[str, str]]
    """what happened at each step, in order"""
    shown_list: list[tuple[int, str, str, float, float]]
    """rank, ad id, title, score and value of what was shown"""

    def as_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        names = ("rank", "ad_id", "title", "score", "value")
        return {
            **{name: value for name, value in vars(self).items() if name not in {"steps", "shown_list"}},
            "steps": [{"step": step, "what": what} for step, what in self.steps],
            "list": [dict(zip(names, row, strict=True)) for row in self.shown_list],
        }

    def render(self) -> Iterable[RichTable]:
        """The steps, then the list."""
        steps = RichTable(title=f"{self.ad} for {self.user}: {self.verdict}", show_header=False)
        for step, what in self.steps:
            steps.add_row(step, what)
        yield steps
        shown = RichTable(title=f"What request {self.request} was shown")
        for name in ("rank", "ad", "title", "score", "value"):
            shown.add_column(name)
        for rank, ad, title, score, value in self.shown_list:
            shown.add_row(str(rank), ad, title, f"{score:.4f}", f"{value:.4f}")
        yield shown


def tell(ranker: Ranker, blocks: Iterator[pa.Table], user: str, ad: str, pace: RequestShares) -> AdFate:
    """Rank until the user's first request (what came before may have used up budgets and caps) and tell the ad's fate.

    Raises DataError where the ad or the user is not there.
    """
    place = pc.index(ranker.ads.ids, ad).as_py()
    if place < 0:
        raise DataError(f"--why: ad '{ad}' is not in the catalogue.")
    done = 0
    for requests in blocks:
        count = len(requests)
        block = ranker.rank(requests, first=done, released=pace.released(done, count))
        found = pc.index(combined(requests["user_id"]).cast(pa.string()), user).as_py()
        if found >= 0:
            return _fate(ranker, block, int(found), int(place))
        done += count
    raise DataError(f"--why: user '{user}' has no request here.")


def _fate(ranker: Ranker, block: Block, row: int, ad: int) -> AdFate:
    steps: list[tuple[str, str]] = []
    shown, verdict = _follow(ranker, block, row, ad, steps)
    columns = block.ranked.column[row]
    listed = [
        (
            rank,
            str(ranker.ads.ids[int(block.candidates.ad[row, column])]),
            str(ranker.ads.titles[int(block.candidates.ad[row, column])]),
            float(block.ranked.score[row, rank - 1]),
            float(block.candidates.value[row, column]),
        )
        for rank, column in enumerate(columns[columns >= 0], start=1)
    ]
    return AdFate(
        user=str(block.requests["user_id"][row]),
        ad=str(ranker.ads.ids[ad]),
        request=str(block.requests["request_id"][row]),
        policy=ranker.names[int(block.policy[row])],
        shown=shown,
        verdict=verdict,
        steps=steps,
        shown_list=listed,
    )


def _follow(ranker: Ranker, block: Block, row: int, ad: int, steps: list[tuple[str, str]]) -> tuple[bool, str]:
    """Follow the ad from step to step until one drops it."""
    index = int(block.policy[row])
    policy, (rules, _) = ranker.policies[index], ranker.finder.rules[index]
    words = query_words(block.requests).slice(row, 1)
    against = rules.why_not(ranker.finder.asking(index, block.examples, np.array([row]), words), 0, ad)
    if against:
        steps.append(("rules", "; ".join(against)))
        return False, f"dropped by the rules: {against[0]}."
    steps.append(("rules", "passed"))
    candidates, ranked = block.candidates, block.ranked
    places = np.flatnonzero(candidates.ad[row] == ad)
    if len(places) == 0:
        vector = ranker.predictor.user_vectors(block.examples.take(np.array([row])), ranker.catalogs)[0]
        nearer = int((ranker.ad_vectors @ vector > ranker.ad_vectors[ad] @ vector).sum())
        channels = ", ".join(policy.retrieval.channels)
        steps.append(
            ("retrieval", f"not among the {policy.retrieval.candidates} candidates ({channels}); {nearer:,} ads are nearer")
        )
        return False, "not retrieved: too far from what the user reads."
    column = int(places[0])
    score, value = float(candidates.score[row, column]), float(candidates.value[row, column])
    steps.append(("retrieval", f"candidate {column + 1} of {int((candidates.ad[row] >= 0).sum())}"))
    steps.append(("score", f"click probability {score:.4f}, value {value:.4f}"))
    if not ranked.available[row, column]:
        steps.append(("limits", "its budget or a cap is used up"))
        return False, "dropped: its budget, or a cap on it for this user, is used up."
    if value < policy.value.minimum:
        steps.append(("value", f"below the minimum of {policy.value.minimum}"))
        return False, "dropped: its value is below the policy's minimum."
    order = auction_order(candidates.value[row : row + 1], candidates.ad[row : row + 1], ranked.available[row : row + 1])[0]
    position = int(np.flatnonzero(order == column)[0]) + 1
    steps.append(("value", f"number {position} by value"))
    slots = np.flatnonzero(ranked.column[row] == column)
    if len(slots):
        slot = int(slots[0])
        price = ranked.price[row, slot]
        steps.append(("list", f"shown at rank {slot + 1}, propensity given the slots above {ranked.propensity[row, slot]:.4f}"))
        if not np.isnan(price):
            steps.append(("price", f"{price:.4f} a click"))
        return True, f"shown at rank {slot + 1}."
    last = ranked.column[row][ranked.column[row] >= 0]
    if position > len(last):
        weakest = int(last[np.argmin(candidates.value[row, last])]) if len(last) else column
        above = str(ranker.ads.ids[int(candidates.ad[row, weakest])])
        steps.append(("list", f"outranked: the list's last by value is {above} ({candidates.value[row, weakest]:.4f})"))
        return False, f"outranked: number {position} by value, and the list has {len(last)} places."
    steps.append(("list", "passed over for variety, for a limit within the list, or by exploration"))
    return False, f"number {position} by value, but passed over for the list's variety or limits."
