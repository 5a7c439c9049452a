"""Events as messages → events as the store keeps them: under the names used inside, texts masked where the log's were."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adrec.prepare.own_files import LogForm
from adrec.schema import NOBODY
from adrec.serve.arms import FIRST
from adrec.serve.intake.fields import micros
from adrec.serve.intake.messages import EventIn
from adrec.serve.store import Event


def as_kept(
    events: Sequence[EventIn], now: int, inside: Callable[[str], str], form: LogForm, score_of: Mapping[str, str]
) -> list[Event]:
    """N events. now: microseconds, the moment of those that name none; inside: the name of a user or a request inside.

    score_of: arm → the label that `score` of its lists is about.
    """
    kept = []
    for event in events:
        click, conversion = _promised(event, score_of.get(event.arm or FIRST, score_of[FIRST]))
        kept.append(
            Event(
                inside(event.user_id) if event.user_id else NOBODY, event.ad_id, event.kind, moment_of(event, now), event.price,
                inside(event.event_id) if event.event_id else None, inside(event.request_id) if event.request_id else None,
                event.position, click, event.propensity_given_above, event.arm, event.scenario,
                json.dumps(_masked(event.context, form)) if event.context else None, event.value, conversion,
            )
        )  # fmt: skip
    return kept


def _promised(event: EventIn, score_of: str) -> tuple[float | None, float | None]:
    """What the list promised of a click and of a conversion: a score is about clicks only where the first task is."""
    if score_of == "click":
        return event.score, event.score_conversion
    conversion = event.score if score_of == "conversion" and event.score_conversion is None else event.score_conversion
    return None, conversion


def moment_of(event: EventIn, now: int) -> int:
    """When it happened, microseconds."""
    at = micros(event.at)
    return now if at is None else at


def _masked(context: dict[str, Any], form: LogForm) -> dict[str, Any]:
    """Its texts as the log's."""
    return {
        name: form.masked([value])[0] if isinstance(value, str)
        else form.masked(value) if isinstance(value, list) else value
        for name, value in context.items()
    }  # fmt: skip
