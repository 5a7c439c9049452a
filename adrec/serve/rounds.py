"""Which requests can share a pass of the model, and small conversions between messages, the store and the ledger."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import numpy as np

from adrec.errors import AdrecError, DataError
from adrec.ranking.auction import MICRO
from adrec.ranking.ledger import Ledger, Shown
from adrec.serve.live import Live
from adrec.serve.messages import ScoreRequest, UserIn

_MADE = {"user_id", "ad_id", "shown_at", "request_id", "user_index", "ad_index"} | {
    "history_index", "history_hours", "history_length",
}  # fmt: skip
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
    items: Sequence[Item], described: Callable[[Item], list[Any]], answer: Callable[[list[Item]], list[Answer]]
) -> list[Answer | Exception]:
    """Answer items together where no user is described twice; a failed round goes one by one, so that only the bad fail."""
    rounds: list[tuple[set[str], list[int]]] = []
    for place, item in enumerate(items):
        users = {user.user_id for user in described(item)}
        for names, places in rounds:
            if not names & users:
                names |= users
                places.append(place)
                break
        else:
            rounds.append((set(users), [place]))
    answers: list[Answer | Exception | None] = [None] * len(items)
    for _, places in rounds:
        try:
            for place, found in zip(places, answer([items[place] for place in places]), strict=True):
                answers[place] = found
        except AdrecError:
            for place in places:
                try:
                    answers[place] = answer([items[place]])[0]
                except AdrecError as error:
                    answers[place] = error
    return [found if found is not None else DataError("no answer") for found in answers]


def described_users(item: ScoreRequest) -> list[UserIn]:
    """Every user of the rows once, as described or by id alone."""
    users = {user.user_id: user for user in item.users}
    return [users.get(name, UserIn(user_id=name)) for name in dict.fromkeys(row.user_id for row in item.rows)]


def context_columns(context: dict[str, Any]) -> dict[str, Any]:
    """Columns of the impression beside those that the engine makes."""
    return {name: value for name, value in context.items() if name not in _MADE}


def micros(moment: datetime | None) -> int | None:
    """Microseconds since 1970."""
    return None if moment is None else int(moment.timestamp() * 1_000_000)
