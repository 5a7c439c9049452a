"""Values of a request → columns, each typed by its role in the bundle alone: no request's value can change another's.

A value of another type than its column is a fault of the request that brought it. Costs a Python call a value.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from math import isfinite
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from adrec.data.features import FeatureSet
from adrec.inference.click_model import ClickModel
from adrec.schema import STRINGS, TIMESTAMP, as_of_column
from adrec.serve.intake.fields import Moment, micros

_MOMENT: TypeAdapter[datetime] = TypeAdapter(Moment)
_LARGEST_POSITION = 2**31 - 1
_OWN_FIELDS = {"query", "scenario", "user_id", "ad_id", "shown_at", "request_id", "history", "interests"}
_MADE = {"user_index", "ad_index", "history_index", "history_hours", "history_length", "skipped_index", "row_id"}


class Columns:
    """What type each column that a request may fill has."""

    def __init__(self, types: Mapping[str, pa.DataType]) -> None:
        self.types = dict(types)

    @classmethod
    def of_context(cls, packed: ClickModel, counted_by: Iterable[str]) -> "Columns":
        """Columns of the impressions that the model reads, or by which counters are kept."""
        types = dict.fromkeys(counted_by, pa.string()) | _types(packed.features["impressions"])
        types = {name: kind for name, kind in types.items() if as_of_column(name) is None}
        types["position"] = pa.int32()
        return cls({name: kind for name, kind in types.items() if name not in _OWN_FIELDS})

    @classmethod
    def of_users(cls, packed: ClickModel, users: pa.Table) -> "Columns":
        """Columns of the users table, and those that the model reads of users whom no table describes."""
        types = _types(packed.features["users"]) | {field.name: _plain(field.type) for field in users.schema}
        types |= vector_types(packed.features["users"])
        made = {"text", "segmented", *_OWN_FIELDS}
        return cls({name: kind for name, kind in types.items() if name not in made})

    def cell(self, name: str, value: Any) -> Any:
        """A value as its column holds it; None is missing. Raises ValueError saying what was expected."""
        if value is None:
            return None
        kind = self.types[name]
        if pa.types.is_fixed_size_list(kind):
            return vector_of(value, kind.list_size)
        if pa.types.is_list(kind):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError("a list of texts is expected")
            return value
        if isinstance(value, list):
            raise ValueError("one value is expected, not a list")
        if pa.types.is_string(kind):
            return text_of(value)
        if pa.types.is_timestamp(kind):
            return _moment(value)
        number = _number(value)
        if pa.types.is_integer(kind):
            least, most = (1, _LARGEST_POSITION) if name == "position" else (-(2**53), 2**53)
            if number != int(number) or not least <= number <= most:
                raise ValueError(f"a whole number from {least} to {most} is expected")
            return int(number)
        return number

    def array(self, name: str, cells: Sequence[Any]) -> pa.Array:
        """A column of what `cell` gave."""
        return pa.array(cells, self.types[name])


def vector_types(features: FeatureSet) -> dict[str, pa.DataType]:
    """The columns of vectors that a model reads, by name."""
    return {fitted.name: pa.list_(pa.float32(), fitted.width) for fitted in features.vectors}


def vector_of(value: Any, width: int) -> list[float]:
    """A list of so many numbers. Raises ValueError for anything else."""
    if not isinstance(value, list) or not all(isinstance(item, int | float) for item in value):
        raise ValueError(f"a list of {width} numbers is expected")
    if len(value) != width:
        raise ValueError(f"a list of {width} numbers is expected, this one has {len(value)}")
    return value


def refused_name(name: str) -> str | None:
    """Why no context and no features can have a value of this name; None where they can."""
    if name in _OWN_FIELDS:
        return f"'{name}' is a field of its own"
    if name in _MADE:
        return "the server makes this column"
    if as_of_column(name) is not None:
        return "what an ad or a user is like comes from the catalogue and from what is said of the user"
    return None


def text_of(value: Any) -> str:
    """A value as a category: whole numbers without a point, as files and counters have them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value == int(value) and abs(value) < 2.0**53:
        return str(int(value))
    return str(value)


def _types(features: FeatureSet) -> dict[str, pa.DataType]:
    types: dict[str, pa.DataType] = {coder.name: pa.string() for coder in features.categories}
    for declared in features.spec.lists:
        types[declared.column] = pa.string() if declared.splits_at else STRINGS
    if features.spec.calendar is not None:
        types[features.spec.calendar.column] = TIMESTAMP
    return types | {item.name: pa.float64() for item in features.numerics}  # a number is one even where it is a category too


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type by which cells of a table's column are made."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return STRINGS
    if pa.types.is_timestamp(kind):
        return TIMESTAMP
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return pa.int64()
    return pa.float64() if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else pa.string()


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("a number is expected") from None
    if not isfinite(number):
        raise ValueError("a finite number is expected")
    return number


def _moment(value: Any) -> int:
    try:
        moment = micros(_MOMENT.validate_python(value))
    except ValidationError:
        raise ValueError("a moment is expected, such as 2026-01-31T12:00:00Z") from None
    assert moment is not None
    return moment
