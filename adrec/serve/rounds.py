"""Which requests can share a pass of the model, who fails where a pass fails, and what an event is to the ledger."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from adrec.ranking.auction import MICRO
from adrec.ranking.ledger import Ledger, Shown
from adrec.serve.live import Live
from adrec.serve.store import StoreError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def count_event(ledger: Ledger, live: Live, user: int, ad_id: str, kind: str, times: int, price: float) -> None:
    """Impressions count towards caps, prices of clicks against budgets."""
    row = live.row_of_ad.get(ad_id)
    if row is None:
        return
    if kind == "click":
        ledger.spent[row] += round(price * MICRO)
        return
    ad = np.full((times, 1), row)
    shown = Shown(ad, np.full((times, 1), live.ranker.campaign[row]), np.zeros((times, 1), np.int64))
    ledger.commit(np.full(times, user), shown)


def in_rounds(
    items: Sequence[Item],
    described: Callable[[Item], Mapping[str, object]],
    answer: Callable[[list[Item]], Sequence[Answer | Exception]],
) -> list[Answer | Exception]:
    """Answer items together where they say the same of a user; what fails in a round is the fault of the items that fail alone.

    A fault that was not foreseen is looked for by halves: a bad item among N costs the others about log2(N) passes more.
    """
    rounds: list[tuple[dict[str, object], list[int]]] = []
    for place, item in enumerate(items):
        users = described(item)
        for names, places in rounds:
            if all(names.get(name, users[name]) == users[name] for name in users):
                names.update(users)
                places.append(place)
                break
        else:
            rounds.append((dict(users), [place]))
    answers: dict[int, Answer | Exception] = {}
    for _, places in rounds:
        answers.update(zip(places, _by_halves([items[place] for place in places], answer), strict=True))
    return [answers[place] for place in range(len(items))]


def _by_halves(items: list[Item], answer: Callable[[list[Item]], Sequence[Answer | Exception]]) -> Sequence[Answer | Exception]:
    try:
        return answer(items)
    except StoreError as error:  # nobody's fault, and no better for the half
        return [error] * len(items)
    except Exception as error:  # the one that caused it gets it
        if len(items) == 1:
            return [error]
        half = len(items) // 2
        return [*_by_halves(items[:half], answer), *_by_halves(items[half:], answer)]
