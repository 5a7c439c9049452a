"""Events as messages → events as the store keeps them: under the names used inside, texts masked where the log's were."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from adrec.prepare.own_files import LogForm
from adrec.schema import NOBODY
from adrec.serve.intake.fields import micros
from adrec.serve.intake.messages import EventIn
from adrec.serve.store import Event


def as_kept(events: Sequence[EventIn], now: int, inside: Callable[[str], str], form: LogForm) -> list[Event]:
    """N events. now: microseconds, the moment of those that name none; inside: the name of a user or a request inside."""
    return [
        Event(
            inside(event.user_id) if event.user_id else NOBODY, event.ad_id, event.kind, moment_of(event, now), event.price,
            inside(event.event_id) if event.event_id else None, inside(event.request_id) if event.request_id else None,
            event.position, event.score, event.propensity_given_above, event.arm, event.scenario,
            json.dumps(_masked(event.context, form)) if event.context else None, event.value,
        )
        for event in events
    ]  # fmt: skip


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
