"""Declarations of fitted features, point-in-time counters and history. Sections of the preprocess config."""

from collections.abc import Collection, Iterator, Sequence
from fnmatch import filter as matching
from functools import cache
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from adrec.config.base import Config, ConfigPath
from adrec.specs import (
    CalendarSpec,
    CategorySpec,
    CounterSpec,
    FeatureSpec,
    HashedSpec,
    HistoryMeasure,
    HistorySpec,
    ListSpec,
    Measure,
    NumericSpec,
    Transform,
    VectorSpec,
    is_pattern,
    spec_of,
    usual_counters,
)


def _column_shorthand(value: Any) -> Any:
    """`price` is short for `{column: price}`."""
    return {"column": value} if isinstance(value, str) else value


Positive = Annotated[float, Field(gt=0)]


class NumericFeature(Config):
    """One numeric input, fitted on training rows."""

    column: str
    """A numeric column, or a pattern such as `counter_*` that stands for every matching column."""
    transform: Transform = "standard"
    """standard: (x - mean) / population std. log1p: sign(x) log(1 + |x|), then standard. quantile: rank in [0, 1].
    normal: the normal score of that rank. none: as it is."""
    missing_indicator: bool = False
    """Add a 0/1 input `<column>_missing`. Missing values themselves become 0 (the mean), 0.5 for `quantile`."""


class CategoricalFeature(Config):
    """A vocabulary of the values seen at least `min_count` times in training rows; all others share bucket 0."""

    column: str
    """Strings, integers or booleans."""
    min_count: Annotated[int, Field(ge=1)] = 2
    """Rarer values go to the unknown bucket."""


class HashedFeature(Config):
    """A category without a vocabulary: a stable hash into `buckets`; bucket 0 is for missing values."""

    column: str
    """Strings, integers or booleans."""
    buckets: Annotated[int, Field(ge=2, le=2**30)] = 1 << 16
    """Number of buckets, without bucket 0."""


class ListFeature(Config):
    """A column of lists (interests, tags): codes of a vocabulary, or hashed codes where `buckets` is given."""

    column: str
    """A list column of strings or integers; or of strings that `separator` splits. `segmented`: the words of the text."""
    separator: str | list[str] | None = None
    """What stands between the items of a string, such as `|`, or any of several: `[",", "，"]` makes phrases of a title.
    `segmented` is split at spaces by itself."""
    min_count: Annotated[int, Field(ge=1)] = 2
    """Rarer values go to the unknown bucket 0."""
    buckets: Annotated[int, Field(ge=2, le=2**30)] | None = None
    """Hash instead of keeping a vocabulary."""
    max_items: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Longer lists keep their first items."""
    paths: Annotated[int, Field(ge=0, le=2)] = 0
    """Of ads: the values are what the ad is linked to, at most so many links away, as `relation=entity`; preprocess makes them
    of the tables `links` and `ad_links`, and models know their relations (docs/data/graph.md). 0: a plain list."""

    @field_validator("separator")
    @classmethod
    def _separates(cls, separator: str | list[str] | None) -> str | list[str] | None:
        if separator is not None and (not separator or "" in list(separator)):
            raise ValueError("is empty; name what stands between the items, or leave it out for a column of lists")
        return separator


@cache  # the list of zones is read from the disk each time, 15 ms, and a bundle is full of calendars
def known_zone(name: str) -> str:
    """The name of a time zone. Raises ValueError where there is none of that name."""
    if name not in available_timezones():
        raise ValueError("not an IANA time zone, such as Asia/Shanghai or America/New_York")
    ZoneInfo(name)
    return name


class CalendarFeature(Config):
    """Hour of day, day of week and weekend, in the audience's time zone."""

    column: str = "shown_at"
    """A timestamp column."""
    time_zone: str = "UTC"
    """IANA name, such as Asia/Shanghai."""

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        return known_zone(name)


class VectorFeature(Config):
    """A column of vectors that another model made (of a picture, a sound, a graph): a modality of its ad or user.

    Missing ones are neither a fault nor a zero: each model has a value for them. Of ads and users alone.
    """

    column: str
    """Lists of numbers, all of one width: lists of Parquet, JSON arrays, or text such as `0.1 0.2 0.3`."""
    width: Annotated[int, Field(ge=1, le=16_384)] | None = None
    """Numbers in each; None takes what most of the first rows have. A cell of another width is set aside like any bad cell."""
    space: str | None = None
    """Vectors of ads and users that share a space are compared with each other; None: the column's name."""
    precision: Literal["float32", "float16"] = "float32"
    """How the prepared folder keeps them."""
    reduced_to: Annotated[int, Field(ge=1, le=256)] = 16
    """Principal components that trees and linear baselines read in place of the whole vector."""
    entities: ConfigPath | None = None
    """Of ads: preprocess makes the vector itself, the mean of the vectors of the entities that the ad is linked to directly.
    A folder made by `adrec pretrain-graph`, or a file such as MIND's entity_embedding.vec (docs/data/graph.md)."""


class TableFeatures(Config):
    """Inputs of one table. A column may be named by itself or with options: `[price, {column: age, transform: none}]`."""

    numeric: list[Annotated[NumericFeature, BeforeValidator(_column_shorthand)]] = []
    """Numeric inputs."""
    categorical: list[Annotated[CategoricalFeature, BeforeValidator(_column_shorthand)]] = []
    """Categories with a vocabulary."""
    hashed: list[Annotated[HashedFeature, BeforeValidator(_column_shorthand)]] = []
    """Categories by hash."""
    lists: list[Annotated[ListFeature, BeforeValidator(_column_shorthand)]] = []
    """Lists of categories."""
    vectors: list[Annotated[VectorFeature, BeforeValidator(_column_shorthand)]] = []
    """Vectors of ads or users, each column a modality by itself (docs/how-to/vectors.md)."""
    calendar: CalendarFeature | None = None
    """Calendar inputs from a timestamp."""

    @property
    def spec(self) -> FeatureSpec:
        """The plain values, which features are fitted by."""
        return FeatureSpec(
            numeric=tuple(spec_of(NumericSpec, dict(item)) for item in self.numeric),
            categorical=tuple(spec_of(CategorySpec, dict(item)) for item in self.categorical),
            hashed=tuple(spec_of(HashedSpec, dict(item)) for item in self.hashed),
            lists=tuple(spec_of(ListSpec, dict(item)) for item in self.lists),
            calendar=None if self.calendar is None else spec_of(CalendarSpec, dict(self.calendar)),
            vectors=tuple(spec_of(VectorSpec, dict(item)) for item in self.vectors),
        )

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Every declared column or pattern, with the key that declares it."""
        groups: dict[str, list[Any]] = {
            "numeric": self.numeric,
            "categorical": self.categorical,
            "hashed": self.hashed,
            "lists": self.lists,
            "vectors": self.vectors,
        }
        named = [(key, item.column) for key, items in groups.items() for item in items]
        return named + ([("calendar", self.calendar.column)] if self.calendar is not None else [])

    def refused(self, outcomes: Collection[str]) -> Iterator[str]:
        """A line for each declaration that would read one of `outcomes`."""
        for key, column in self.columns:
            if column in outcomes:
                yield f"{key}: '{column}' {NOT_A_FEATURE}"
            elif key == "numeric" and is_pattern(column) and (taken := matching(sorted(outcomes), column)):
                yield (
                    f"{key}: the pattern '{column}' would take {', '.join(taken)}, known only after the ad was shown or naming "
                    "a row; write a narrower one, such as counter_*"
                )

    @model_validator(mode="after")
    def _one_graph(self) -> "TableFeatures":
        paths = [item for item in self.lists if item.paths]
        if len(paths) > 1:
            raise ValueError(f"lists: '{paths[0].column}' and '{paths[1].column}' both have paths; keep one list of them")
        if paths and paths[0].buckets is not None:
            raise ValueError(f"lists: '{paths[0].column}' has paths, whose relations must be known; leave buckets out")
        made = [item.column for item in self.vectors if item.entities is not None]
        if made and not paths:
            raise ValueError(f"vectors: '{made[0]}' is made of what ads are linked to; give lists a column with paths too")
        return self

    @model_validator(mode="after")
    def _no_oracle(self) -> "TableFeatures":
        from adrec.schema import TRUE_PROBABILITY  # a slow import, which the help of a command does without

        if TRUE_PROBABILITY in {column for _, column in self.columns}:
            raise ValueError(f"{TRUE_PROBABILITY} is the sample's oracle and may not be a feature")
        return self

    @model_validator(mode="after")
    def _one_role_a_vector(self) -> "TableFeatures":
        vectors = [item.column for item in self.vectors]
        for column in vectors:
            if is_pattern(column):
                raise ValueError(f"vectors: '{column}' is a pattern; name each column of vectors")
            if vectors.count(column) > 1 or column in {other for key, other in self.columns if key != "vectors"}:
                raise ValueError(f"vectors: '{column}' is named twice; a column is vectors or another feature")
        return self


NOT_A_FEATURE = (
    "is known only after the ad was shown, or names a row: it may not be a feature. Leave it out; if your column means "
    "something else, give it another name with `columns` in the source"
)


class CounterSettings(Config):
    """Counts of what happened strictly before the first moment of a row's request, among rows that agree on `by`."""

    by: list[str] = []
    """`user`, `ad`, `advertiser`, `category`, or any column of impressions, ads or users; empty: all rows together."""
    measures: Annotated[list[Literal[Measure, HistoryMeasure]], Field(min_length=1)] = ["impressions", "clicks", "rate"]
    """impressions, clicks, conversions: counts. rate, conversion_rate: smoothed towards the overall rate so far.
    hours_since_first: hours since the first such impression (0 before it).
    history_count, history_share: clicks (share of clicks) in the user's attached history whose ad agrees on `by`."""
    half_lives_hours: Annotated[list[Positive | None], Field(min_length=1)] = [None]
    """Each counted value fades by half in so many hours; null counts all time alike."""
    prior_strength: Annotated[float, Field(gt=0)] = 20.0
    """How many impressions at the overall rate are added before a rate is taken."""
    log1p: bool = False
    """Write log(1 + x) of counts and hours."""

    @property
    def spec(self) -> CounterSpec:
        """The plain values, which the as-of room counts by."""
        return spec_of(CounterSpec, dict(self))

    @model_validator(mode="after")
    def _sensible(self) -> "CounterSettings":
        if len(set(self.by)) != len(self.by):
            raise ValueError("by names a column twice")
        wants_history = any(measure.startswith("history_") for measure in self.measures)
        if wants_history and (len(self.by) != 1 or self.by[0] == "user"):
            raise ValueError("history_share and history_count need exactly one ad column in by")
        return self


class HistoryConfig(Config):
    """Which earlier clicks a user model sees."""

    max_clicks: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Keep the newest so many clicks."""
    max_skipped: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Keep the newest so many ads shown and not clicked; 0 writes none."""
    source: Literal["auto", "given", "clicks"] = "auto"
    """given: the `history` column. clicks: from the log itself. auto: given where the column exists."""
    clicked_at: str | None = None
    """Column with the moment of the click, where it is later than shown_at: the click counts from then on."""
    converted_at: str | None = None
    """Column with the moment of the conversion: it counts from then on. Without it conversions count from shown_at."""

    @property
    def spec(self) -> HistorySpec:
        """The plain values, which the as-of room reads."""
        return spec_of(HistorySpec, dict(self))


CounterItem = Annotated[
    Annotated[CounterSettings, Tag("spec")] | Annotated[Literal["usual"], Tag("word")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "spec"),
]
Counters = Annotated[list[CounterItem], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""`usual` stands for `usual_counters` of the tables at hand; `counters: usual` is short for a list of that word."""


def resolve_counters(
    declared: Sequence[CounterSettings | Literal["usual"]], columns: Collection[str], lacking: Collection[str] = ()
) -> list[CounterSpec]:
    """The counters that `declared` stands for where the tables have these `columns` (names of all three together).

    `lacking`: what the log does not name, of `user`, `ad`, `time`.
    """
    resolved: list[CounterSpec] = []
    for item in declared:
        resolved += usual_counters(columns, lacking) if item == "usual" else [item.spec]
    return resolved
