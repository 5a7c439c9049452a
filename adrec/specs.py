"""What a feature, a counter and a history are, as plain values: a config's sections make them, features and as-of read them.

Rooms that compute take these and no config, so that each can be called from three lines of Python. They trust what they are
given; a config checks what people write. Stored beside what was fitted with them (features.json, state.json).
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

Pooling = Literal["mean", "cls", "last", "attention"]
"""How token vectors become one. Named here alone: Python keeps but one order of a Literal's values."""
RecordedPooling = Literal["mean", "cls", "last", "attention", "max", "mean_sqrt_len", "weighted_mean"]
"""And how those of other people's encoders do, which are read and not pretrained."""
Transform = Literal["standard", "log1p", "quantile", "normal", "none"]
Measure = Literal["impressions", "clicks", "rate", "conversions", "conversion_rate", "hours_since_first"]
HistoryMeasure = Literal["history_share", "history_count"]

WORDS = "segmented"
"""The column of words that preprocess itself makes of ads and users."""
CALENDAR_PARTS = ["hour", "weekday", "weekend", "cycle"]
"""What is read of a moment; stored calendars once named some of them."""
SpecT = TypeVar("SpecT")


@dataclass(frozen=True)
class NumericSpec:
    """A number, or a pattern such as `counter_*` that stands for every matching column."""

    column: str
    transform: Transform = "standard"
    missing_indicator: bool = False


@dataclass(frozen=True)
class CategorySpec:
    """A category with a vocabulary of the values seen at least `min_count` times."""

    column: str
    min_count: int = 2


@dataclass(frozen=True)
class HashedSpec:
    """A category by hash."""

    column: str
    buckets: int = 1 << 16


@dataclass(frozen=True)
class ListSpec:
    """A list of categories, or strings that `separator` splits; hashed where `buckets` is given."""

    column: str
    separator: str | tuple[str, ...] | None = None
    min_count: int = 2
    buckets: int | None = None
    max_items: int = 50
    paths: int = 0
    """links from the ad that its values are at most away, in the graph of entities (`adrec.data.graph`); 0: a plain list"""

    @property
    def splits_at(self) -> tuple[str, ...]:
        """The separators in effect; none: the column holds lists."""
        if self.separator is None:
            return (" ",) if self.column == WORDS else ()
        return (self.separator,) if isinstance(self.separator, str) else tuple(self.separator)


@dataclass(frozen=True)
class CalendarSpec:
    """Hour of day, day of week and weekend of a moment, in the audience's IANA time zone."""

    column: str = "shown_at"
    time_zone: str = "UTC"


@dataclass(frozen=True)
class VectorSpec:
    """Vectors that another model made of an ad or a user, all of one width, which preprocess measures where none is named."""

    column: str
    width: int | None = None
    space: str | None = None
    precision: Literal["float32", "float16"] = "float32"
    reduced_to: int = 16

    @property
    def shared_space(self) -> str:
        """The name of the space in effect."""
        return self.space or self.column


@dataclass(frozen=True)
class FeatureSpec:
    """Inputs of one table."""

    numeric: tuple[NumericSpec, ...] = ()
    categorical: tuple[CategorySpec, ...] = ()
    hashed: tuple[HashedSpec, ...] = ()
    lists: tuple[ListSpec, ...] = ()
    calendar: CalendarSpec | None = None
    vectors: tuple[VectorSpec, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Every declared column or pattern."""
        groups = (self.numeric, self.categorical, self.hashed, self.lists, self.vectors)
        declared = [item.column for group in groups for item in group]
        return declared + ([self.calendar.column] if self.calendar is not None else [])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "FeatureSpec":
        """What `to_json` wrote, today or when there were more keys. Raises ValueError where such a key still matters."""
        calendar = stored.get("calendar")
        if calendar is not None and calendar.get("parts", CALENDAR_PARTS) != CALENDAR_PARTS:
            raise ValueError(f"calendar.parts is {calendar['parts']}, and all of {CALENDAR_PARTS} are read")
        kinds = {"numeric": NumericSpec, "categorical": CategorySpec, "hashed": HashedSpec, "lists": ListSpec}
        groups: dict[str, Any] = {name: tuple(spec_of(kind, item) for item in stored[name]) for name, kind in kinds.items()}
        vectors = tuple(spec_of(VectorSpec, item) for item in stored.get("vectors", ()))
        return cls(**groups, calendar=None if calendar is None else spec_of(CalendarSpec, calendar), vectors=vectors)


@dataclass(frozen=True)
class CounterSpec:
    """Counts of what happened strictly before the first moment of a row's request, among rows that agree on `by`."""

    by: tuple[str, ...] = ()
    measures: tuple[Measure | HistoryMeasure, ...] = ("impressions", "clicks", "rate")
    half_lives_hours: tuple[float | None, ...] = (None,)
    prior_strength: float = 20.0
    log1p: bool = False


@dataclass(frozen=True)
class HistorySpec:
    """Which earlier clicks, and ads shown and not clicked, a user model sees; and where their moments stand."""

    max_clicks: int = 50
    max_skipped: int = 0
    source: Literal["auto", "given", "clicks"] = "auto"
    clicked_at: str | None = None
    converted_at: str | None = None


def spec_of(kind: type[SpecT], values: Mapping[str, Any]) -> SpecT:
    """A spec of those `values` that it still has; lists become tuples."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name in known})


def is_pattern(column: str) -> bool:
    """Whether a declared column stands for every matching one."""
    return any(sign in column for sign in "*?[")


def usual_counters(columns: Collection[str], lacking: Collection[str] = ()) -> list[CounterSpec]:
    """The counters that help almost everywhere, as far as their columns exist (names of all three tables together).

    `lacking`: what the log does not name, of `user`, `ad`, `time`. None without moments, none by what the log does not name.
    Where rows were drawn (column `drawn`) the log holds clicks alone: those that need to know what was shown are left out.
    """
    from adrec.schema import DRAWN  # a slow import, which the help of a command does without

    if "time" in lacking:
        return []
    wanted = _of_clicks() if DRAWN in columns else _of_impressions()
    known = ({"user", "ad", *columns} | ({"advertiser"} if "advertiser_id" in columns else set())) - {*lacking}
    return [spec for spec in wanted if set(spec.by) <= known]


def _of_impressions() -> list[CounterSpec]:
    return [
        CounterSpec(("ad",), ("impressions", "clicks"), (None, 1.0, 24.0), log1p=True),
        CounterSpec(("ad",), ("rate",), (None, 1.0, 24.0)),
        CounterSpec(("ad",), ("hours_since_first",), log1p=True),
        CounterSpec(("user",), ("impressions", "clicks"), log1p=True),
        CounterSpec(("user",), ("rate",)),
        CounterSpec(("user", "ad"), ("impressions",), log1p=True),
        CounterSpec(("category",), ("rate",), (None, 24.0), prior_strength=100.0),
        CounterSpec(("category",), ("history_share",)),
        CounterSpec(("user", "category"), ("rate",)),
        CounterSpec(("advertiser",), ("rate",), prior_strength=100.0),
        CounterSpec(("advertiser",), ("history_share",)),
        CounterSpec(("user", "advertiser"), ("rate",)),
        CounterSpec(("scenario",), ("rate",)),
    ]


def _of_clicks() -> list[CounterSpec]:
    grouped: list[tuple[tuple[str, ...], tuple[float | None, ...]]] = [
        (("ad",), (None, 24.0, 168.0)),
        (("user",), (None,)),
        (("user", "ad"), (None,)),
        (("category",), (None, 168.0)),
        (("user", "category"), (None,)),
        (("user", "advertiser"), (None,)),
    ]
    clicks = [CounterSpec(by, ("clicks",), half_lives, log1p=True) for by, half_lives in grouped]
    since = CounterSpec(("ad",), ("hours_since_first",), log1p=True)
    return [*clicks, since, *(CounterSpec((by,), ("history_share",)) for by in ("category", "advertiser"))]
