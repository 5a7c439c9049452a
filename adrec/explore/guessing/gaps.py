"""What the files do not say: which of user, ad, label and time is missing, what goes without it, which column may be meant."""

import re
from collections.abc import Mapping

from adrec.explore.guessing.findings import Gap, Guess
from adrec.explore.guessing.names import is_code, is_of_people_or_places, owner, snake
from adrec.explore.guessing.ties import Rows
from adrec.explore.look import Column

_PEOPLE = re.compile(r"(^|_)(ip|device|cookie|session|phone|email|mac|imei|android|visitor|user|member)(_|$)")
_TIMES = re.compile(r"(^|_)(time|timestamp|date|day|hour|dt|ts)(_|$)|时间|日期")
_MOST = 4
_WITHOUT = {
    "user_id": "every row is a person of its own: no history, no features of users",
    "ad_id": "all rows are one ad, so that rank has nothing to choose from",
    "shown_at": "the split is at random, and there are no histories, no counters and no calendar",
    "click": "there is nothing to learn: preprocess runs, finetune does not",
    "title": "no language model is used",
}


def find_gaps(guess: Guess, rows: Rows, said: Mapping[str, str | list[str] | None]) -> None:
    """Note what was not found, each with columns that may be meant."""
    log = guess.names["impressions"]
    has_label = guess.shape != "unlabelled"
    wanted = ("ad_id", "shown_at") if guess.shape == "counts" else ("user_id", "ad_id", "shown_at")
    missing = [canonical for canonical in wanted if canonical not in log]
    missing += [] if has_label else ["click"]
    missing += [] if guess.has("title") else ["title"]
    free = [column for column in rows.table.columns.values() if column.name not in guess.used("impressions") and column.filled]
    for canonical in missing:
        if canonical in said and said[canonical] is None:
            continue
        candidates = tuple(column.name for column in _candidates(canonical, free, rows))
        guess.gaps.append(Gap(canonical, _WITHOUT[canonical], candidates[:_MOST]))


def _candidates(canonical: str, free: list[Column], rows: Rows) -> list[Column]:
    several = [column for column in free if column.distinct > 1 and not column.is_list]
    if canonical == "user_id":
        return [
            c for c in several if _PEOPLE.search(snake(c.name)) and c.distinct > 2 and not c.name.endswith(("type", "model"))
        ]
    if canonical == "ad_id":
        repeated = [
            c for c in several if 2 < c.distinct <= rows.table.rows / 2 and c.time is None and (not c.is_number or c.whole)
        ]
        fitting = [
            c
            for c in repeated
            if not _PEOPLE.search(snake(c.name)) and (owner(c.name) == "ads" or (owner(c.name) is None and is_code(c.name)))
        ]
        fitting = fitting or [
            c for c in repeated if re.search(r"(^|_)(app|channel|site|placement|product)(_|$)", snake(c.name))
        ]
        return sorted(fitting, key=lambda c: (owner(c.name) != "ads", -c.distinct))
    if canonical == "shown_at":
        return [c for c in several if c.time is not None or (_TIMES.search(snake(c.name)) and (not c.is_number or c.whole))]
    if canonical == "click":
        return [c for c in several if c.distinct == 2 or (c.is_number and c.whole and (c.high or 0) <= 10)]
    return [c for c in several if not c.is_number and c.time is None and c.words >= 1.2 and not is_of_people_or_places(c.name)]
