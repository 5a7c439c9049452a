"""Values that come over the wire, with the limits that are held before anything reckons with them."""

from datetime import UTC, datetime, timedelta
from math import inf, isfinite
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, StringConstraints

Id = Annotated[str, StringConstraints(min_length=1, max_length=200)]
"""Constrained texts are Unicode too: half of a surrogate pair is refused."""
Word = Annotated[str, StringConstraints(max_length=200)]
_LONGEST = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_ITEMS = 1_000
MOST_NUMBERS = 16_384
_LARGEST = 3.4e38


def _plain(value: Any) -> Any:
    """What a column can hold, before anything reckons with it."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a whole number must lie within 64 bits")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError("the number must be finite")
    if isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        return _numbers(value)
    if isinstance(value, list):
        if len(value) > MOST_ITEMS:
            raise ValueError(f"at most {MOST_ITEMS:,} items")
        return [_word(item) for item in value]
    if isinstance(value, str):
        return _word(value, _LONGEST)
    if value is not None and not isinstance(value, int | float):
        raise ValueError("text, a number, true, false, null or a list of texts or numbers is expected")
    return value


def _numbers(value: Any) -> list[float]:
    """A vector: finite numbers, of which a float32 holds each."""
    if not isinstance(value, list) or not value:
        raise ValueError("a list of numbers is expected")
    if len(value) > MOST_NUMBERS:
        raise ValueError(f"at most {MOST_NUMBERS:,} numbers")
    if any(isinstance(item, bool) or not isinstance(item, int | float) for item in value):
        raise ValueError("the items of a list are all texts or all numbers")
    try:
        numbers = [float(item) for item in value]
    except OverflowError:
        numbers = [inf]
    if not all(abs(item) <= _LARGEST for item in numbers):
        raise ValueError("the numbers of a vector must be finite, and within the range of a float32")
    return numbers


def _word(value: Any, longest: int = 200) -> str:
    if not isinstance(value, str):
        raise ValueError("the items of a list are texts")
    if len(value) > longest:
        raise ValueError(f"at most {longest:,} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("the text is no Unicode: it holds half of a surrogate pair") from None
    return value


Vector = Annotated[list[float], Field(min_length=1), BeforeValidator(_numbers)]
"""What another model made of an ad or a user."""
_Plain = str | float | int | bool | list[str] | list[float] | None
Plain = Annotated[_Plain, PlainValidator(_plain, json_schema_input_type=_Plain)]
Values = Annotated[dict[Id, Plain], Field(max_length=200)]
"""Columns and their values."""


def _utc(moment: datetime) -> datetime:
    """In UTC, and within the years that a timestamp in microseconds and pandas-free code can tell."""
    try:
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the moment must lie between 1970 and 2200") from None
    if not 1970 <= moment.year <= 2200:
        raise ValueError("the moment must lie between 1970 and 2200")
    return moment


Moment = Annotated[datetime, AfterValidator(_utc)]


def micros(moment: datetime | None) -> int | None:
    """Microseconds since 1970."""
    return None if moment is None else (moment - _EPOCH) // timedelta(microseconds=1)
