"""Requests that were read and can be answered → answers in plain values: one pass of the model for many of them."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from adrec.ranking.ledger import Ledger
from adrec.schema import CONVERSION_SCORE, NOBODY
from adrec.serve.intake.checking import Asked, Place, RefusedError, Row
from adrec.serve.intake.messages import UserIn
from adrec.serve.lists import Answer, given_ads, lists_of
from adrec.serve.rounds import in_rounds
from adrec.serve.state.live import Live
from adrec.serve.state.tally import user_numbers

Item = TypeVar("Item")
_NOT_FINITE = "the bundle gives no finite score here"


class Call(NamedTuple):
    """A row, and the call and the place in it that it comes from."""

    item: int
    place: int
    row: Row


def answers(
    items: Sequence[Item],
    read: Callable[[Item], Asked],
    described_in: Callable[[Asked], Mapping[str, object]],
    answer: Callable[[list[Asked]], list[Answer | Exception]],
) -> list[Answer | Exception]:
    """An answer, or what is wrong, for each item: those that cannot be answered are told so before the others share a pass."""
    answers_: list[Answer | Exception | None] = []
    asked: list[Asked] = []
    for item in items:
        try:
            asked.append(read(item))
            answers_.append(None)
        except Exception as error:  # its own, foreseen or not
            answers_.append(error)
    answered = iter(in_rounds(asked, described_in, answer))
    return [next(answered) if fault is None else fault for fault in answers_]


def described(row: Row) -> tuple[Any, ...]:
    """What a row says of its user, beside the history, which is the row's own."""
    return row.user.interests, row.user.features


def row_of(row: Row, now: int) -> dict[str, Any]:
    """As a row of a table that `Live.examples` reads."""
    return {
        "user_id": row.user_id, "ad_id": row.ad_id, "shown_at": now if row.shown_at is None else row.shown_at,
        "scenario": row.scenario, "query": row.query, "context": row.context,
    }  # fmt: skip


def scored(lives: dict[str, Live], items: list[Asked], now: int) -> list[Answer | Exception]:
    """Scores of the rows of all items. `now`: microseconds since 1970."""
    found: dict[tuple[int, int], Answer] = {}
    faults: dict[int, list[Place]] = {}
    for arm, live in lives.items():
        calls = _calls(items, arm)
        if not calls:
            continue
        users, user = _distinct(calls)
        _, catalogs = live.catalogs(users)
        rows = [row_of(call.row, now) for call in calls]
        examples = live.examples(rows, users, user, catalogs)
        scores = live.predictor.score_examples(examples, catalogs, baselines=False)
        is_finite = np.isfinite(scores.logit) & np.isfinite(scores.score)
        cold_ad, cold_user = live.ranker.catalogs.cold_ad[examples.ad_index], catalogs.cold_user[user]
        conversion = scores.columns.get(live.predictor.packed.conversion_column or "")
        if conversion is None:
            conversion = np.full(len(calls), np.nan)
        columns = (scores.logit, scores.score, conversion, np.isfinite(conversion), cold_ad, cold_user, is_finite)
        for call, logit, score, converts, is_known, ad_is_cold, user_is_cold, fine in zip(
            calls, *(column.tolist() for column in columns), strict=True
        ):
            found[call.item, call.place] = {
                "user_id": call.row.called, "ad_id": call.row.ad_id or None, "logit": logit, "score": score,
                CONVERSION_SCORE: converts if is_known else None, "cold_ad": ad_is_cold, "cold_user": user_is_cold, "arm": arm,
            }  # fmt: skip
            if not fine:
                faults.setdefault(call.item, []).append(Place(f"rows.{call.place}", _NOT_FINITE))
    return [
        RefusedError(faults[item])
        if item in faults
        else {"rows": [found[item, place] for place in range(len(asked.rows))], **_beside(lives, asked)}
        for item, asked in enumerate(items)
    ]


def ranked(
    lives: dict[str, Live],
    ledger: Ledger,
    items: list[Asked],
    now: int,
) -> list[Answer | Exception]:
    """Lists of the requests of all items. `ledger`: what was shown and spent; it is not changed."""
    lists: dict[tuple[int, int], Answer] = {}
    notes: dict[int, list[Place]] = {}
    for arm, live in lives.items():
        calls = _calls(items, arm)
        if not calls:
            continue
        if not live.predictor.packed.has.ad:
            fault = RefusedError([Place("requests", "the bundle's log names no ads: there is nothing to choose from")], 400)
            return [fault] * len(items)
        users, user = _distinct(calls)
        table, catalogs = live.catalogs(users)
        rows = [{**row_of(call.row, now), "user_index": place} for call, place in zip(calls, user.tolist(), strict=True)]
        requests = live.table(rows, [call.row.user for call in calls]).drop_columns(["ad_id"])
        ranker = live.ranker.for_users(table, catalogs)
        # Requests that name their candidates are ranked apart: their candidates are of another width.
        for names_candidates in (False, True):
            chosen = [at for at, call in enumerate(calls) if (call.row.candidates is not None) == names_candidates]
            if not chosen:
                continue
            mine = [calls[at] for at in chosen]
            names = [call.row.user_id for call in mine]
            nobody = np.array([name == NOBODY for name in names])  # each request of nobody is somebody else's
            block = ranker.rank(
                requests.take(pa.array(chosen)),
                first=int(np.random.default_rng().integers(2**40)),  # exploration draws anew for each request
                given=given_ads([list(call.row.candidates or ()) for call in mine]) if names_candidates else None,
                user=np.where(nobody, -1 - np.array(chosen), user_numbers(pa.array(names, pa.string()))),
                ledger=ledger.copy(),
                released=None,
                now=now,
            )
            for call, policy, ads in zip(mine, block.policy.tolist(), lists_of(ranker, block), strict=True):
                lists[call.item, call.place] = {
                    "user_id": call.row.called, "request_id": uuid.uuid4().hex[:16], "policy": ranker.names[policy],
                    "arm": arm, "arm_share": call.row.arm.share, "ads": ads[: call.row.top_n],
                }  # fmt: skip
            for at, ad in zip(*(values.tolist() for values in block.unscored), strict=True):
                place_of = mine[at].row.candidates or {}
                if ad in place_of:
                    where = f"requests.{mine[at].place}.candidates.{place_of[ad]}"
                    notes.setdefault(mine[at].item, []).append(Place(where, f"left out: {_NOT_FINITE}"))
    return [
        {"lists": [lists[item, place] for place in range(len(asked.rows))], **_beside(lives, asked, notes.get(item, []))}
        for item, asked in enumerate(items)
    ]


def _calls(items: Sequence[Asked], arm: str) -> list[Call]:
    """The rows of an arm."""
    return [
        Call(item, place, row)
        for item, asked in enumerate(items)
        for place, row in enumerate(asked.rows)
        if row.arm.name == arm
    ]


def _distinct(calls: Sequence[Call]) -> tuple[list[UserIn], np.ndarray]:
    """Every user once, and which of them each row has (N,)."""
    users = {call.row.user_id: call.row.user for call in calls}
    place = {name: at for at, name in enumerate(users)}
    return list(users.values()), np.array([place[call.row.user_id] for call in calls], np.int64)


def _beside(lives: dict[str, Live], asked: Asked, notes: Sequence[Place] = ()) -> Answer:
    return {
        "bundles": {arm: live.fingerprint for arm, live in lives.items()},
        "notes": [note._asdict() for note in (*asked.notes, *notes)],
    }
