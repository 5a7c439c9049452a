"""Spans of time in words: `30 minutes`, `1 day`."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator

_UNITS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}


def _is_span(text: str) -> str:
    if not re.fullmatch(rf"[1-9][0-9]{{0,4}} ({'|'.join(_UNITS)})s?", text):
        raise ValueError(f"{text!r} is no span of time. Write `1 day`, `36 hours` or `2 weeks`")
    return text


Span = Annotated[str, AfterValidator(_is_span)]
"""A number of minutes, hours, days or weeks."""


def span_of(text: str) -> tuple[timedelta, timedelta]:
    """A Span, and its unit."""
    count, unit = text.removesuffix("s").split(" ")
    return int(count) * _UNITS[unit], _UNITS[unit]
