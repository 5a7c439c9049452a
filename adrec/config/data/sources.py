"""Where raw logs are and how to read them: the `source` section of the preprocess config, a class a format."""

import codecs
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from adrec import schema
from adrec.config.base import Config, ConfigPath, ConfigPattern
from adrec.config.data.spans import Span
from adrec.config.faults import describe
from adrec.errors import ConfigError
from adrec.plugins import SourceFormat, check_name, installed, load


def _moment_as_text(value: Any) -> Any:
    """YAML reads an unquoted date as one."""
    return value.isoformat() if isinstance(value, date) else value


def _is_delimiter(value: str) -> str:
    if not 1 <= len(value.encode()) <= 4 or any(mark in value for mark in '"\r\n') or value == "\\t":
        raise ValueError('is no delimiter: 1 to 4 bytes, and no quote or line end (a tab is written "\\t", in double quotes)')
    return value


def _names_differ(header: list[str]) -> list[str]:
    lowered = [column.strip().lower() for column in header]
    twice = sorted({column for column in lowered if not column or lowered.count(column) > 1})
    if twice:
        raise ValueError(f"names {twice[0]!r} twice" if twice[0] else "has an empty name")
    return [column.strip() for column in header]


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except (LookupError, UnicodeError):
        raise ValueError("not a text encoding; utf-8, gbk, utf-16, latin-1, cp1252 and shift_jis are some") from None
    return codecs.lookup(name).name


def _is_mark(value: str) -> str:
    if value and (len(value.encode()) != 1 or value in "\r\n\0"):
        raise ValueError("must be one ASCII character that is no line end, or '' for none")
    return value


Mark = Annotated[str, AfterValidator(_is_mark)]
Scalar = Annotated[str | int | float | bool, BeforeValidator(_moment_as_text)]
Flag = Literal["click", "conversion"]
"""Columns that are 0 or 1."""


class TableInput(Config):
    """One table: which files, in which format, and which of their columns is which."""

    files: ConfigPattern | Annotated[list[ConfigPattern], Field(min_length=1)]
    """A file, a folder (also partitioned by `key=value` folders), a glob, or a list of these."""
    format: Literal["auto", "csv", "tsv", "jsonl", "json", "parquet", "xlsx"] = "auto"
    """`auto` goes by the ending: .csv .tsv .jsonl .ndjson .json (an array of objects, or a line each) .parquet .xlsx .xls .ods,
    text also with .gz, .bz2, .xz or .zst behind it, or in a .zip whose files are parts of this table."""
    delimiter: Annotated[str, AfterValidator(_is_delimiter)] | None = None
    """Field separator of CSV and TSV, such as `;` or `::`; None takes the comma for csv and the tab for tsv."""
    header: Annotated[list[str], Field(min_length=1), AfterValidator(_names_differ)] | None = None
    """Names of the columns, in order, where the files have no line of names."""
    skip_lines: Annotated[int, Field(ge=0, le=1000)] = 0
    """Lines above the header (of a report: its title, its dates) that are passed over, in each file."""
    sheet: str | None = None
    """Sheet of a workbook (xlsx); None takes the first that holds anything."""
    leave_out: dict[str, Annotated[list[Scalar], Field(min_length=1)]] = {}
    """Column in the file -> values whose rows are no rows of the table, such as a line of totals (`day: [Total]`)."""
    quote: Mark | None = None
    """What encloses a cell of CSV and TSV; '' for files without quotes. None takes `"`, and refuses a file whose lone quotes
    would join lines that are rows by themselves."""
    escape: Mark | None = None
    """What makes a quote inside a quoted cell a plain character; None takes the quote itself, written twice."""
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8"
    """Encoding of text files: utf-8, gbk, utf-16, latin-1, ... Other than utf-8, files are decoded into the work folder."""
    columns: dict[str, str | Annotated[list[str], Field(min_length=2)]] = {}
    """Canonical name -> name in the file, for columns that are called otherwise there. A path reaches into structs and JSON
    objects (`user.id`) and into lists of key and value records (`event_params.page`). Several names are joined: those of a
    moment by a space (`shown_at: [date, time]`), others by `|` (`ad_id: [C14, C17]`), without the empty ones."""
    types: dict[str, Literal["string", "integer", "number", "boolean", "timestamp", "list"]] = {}
    """Types of extra columns, where not their role: a column of `features.*.numeric` holds numbers, one of `lists` lists, a
    moment of `history` or `calendar` moments; all others stay text, or what a Parquet file stores."""
    first_of: dict[str, str] = {}
    """Canonical name -> list column in the file whose first item it is (`category: genres`)."""
    defaults: dict[str, Scalar] = {}
    """Canonical name -> value where the column is missing or its value empty."""
    null_values: list[str] | None = None
    """Words that mean a missing cell, beside the empty one; [] for none. None takes `\\N` everywhere; NULL, null, NaN, nan too
    but in free text; None, NA, N/A, #N/A, <NA>, NaT too in ids, moments, numbers and flags (there, NaN is a fault or missing as
    validation.nan_is_missing says)."""
    decimal: Literal[".", ","] = "."
    """Decimal mark of numbers that are text."""
    thousands: Literal["", ",", ".", " ", "'"] = ""
    """What groups the digits of numbers that are text (`1,000`); '' for nothing."""
    time_format: str | Annotated[list[str], Field(min_length=1)] | None = None
    """strptime format of timestamps in text, also of digits alone (`%m/%d/%Y %I:%M:%S %p`, `%Y%m%d%H`), or several, tried in
    this order, of which `iso` is ISO 8601; None reads ISO 8601."""
    time_unit: Literal["seconds", "milliseconds", "microseconds", "nanoseconds", "excel"] = "seconds"
    """Unit of timestamps that are numbers (since 1970; `excel` counts days as spreadsheets do, from 30 December 1899)."""
    time_zone: str = "UTC"
    """Zone of timestamps that name none."""
    list_separator: Annotated[str, Field(min_length=1)] = "|"
    """Separates the items of list columns that are text (a JSON array is one by itself)."""
    positive: dict[Flag, Annotated[list[Scalar], Field(min_length=1)]] = {}
    """Flag -> the words that mean 1, in any case: every other filled cell is 0 (`click: [Clicked, 2]`, `click: [1]` where 0 is
    written -1). Without it flags read 0 and 1, true and false, t and f, yes and no, y and n."""
    at_least: dict[Flag, Annotated[dict[str, float], Field(min_length=1, max_length=1)]] = {}
    """Flag -> the column of numbers and the least of them that means 1 (`click: {rating: 4}`). A column of the contract is kept
    beside it. Empty where the number is."""
    first_position: Literal[0, 1] = 1
    """The number of the first slot in the file: `position` of logs that count from 0 is moved to count from 1."""

    @model_validator(mode="after")
    def _one_way_to_a_flag(self) -> "TableInput":
        for flag in self.at_least:
            if flag in self.positive or flag in self.columns:
                other = "positive" if flag in self.positive else "columns"
                raise ValueError(f"at_least.{flag} makes the column that {other}.{flag} reads; leave one out")
        return self

    @model_validator(mode="after")
    def _marks_differ(self) -> "TableInput":
        if self.thousands == self.decimal:
            raise ValueError("thousands and decimal are the same mark; set both")
        if self.quote is not None and self.quote == self.delimiter:
            raise ValueError("quote and delimiter are the same mark")
        return self


class EventsInput(TableInput):
    """What came of impressions (clicks, conversions), a row each, in files of their own."""

    on: Annotated[list[str], Field(min_length=1)]
    """Columns that the impressions have too, by their canonical names: what identifies an impression ([request_id, ad_id],
    [impression_id]), or with `within` who and what it was ([user_id, ad_id])."""
    within: Span | None = None
    """With a moment (`clicked_at`, `converted_at`): an event belongs to the latest such impression at or before it, unless that
    was longer ago. None joins by the columns alone."""


class TablesSource(Config):
    """Plain tables: impressions, and ads and users where they are tables of their own."""

    format: Literal["tables"] = "tables"
    impressions: TableInput
    """One row an impression. Without `ads` it carries the ad columns too (one wide table)."""
    ads: TableInput | None = None
    """One row an ad; None takes the ads from the impressions."""
    users: TableInput | None = None
    """One row a user; None takes the users from the impressions."""
    clicks: EventsInput | None = None
    """One row a click, where clicks are files of their own: they give the impressions `click` and, with `clicked_at`, its
    moment."""
    conversions: EventsInput | None = None
    """One row a conversion, likewise: `conversion` and `converted_at`."""
    tables: dict[str, TableInput] = {}
    """Further tables of the data contract, by name (docs/data/contract.md)."""

    @field_validator("tables")
    @classmethod
    def _in_the_contract(cls, tables: dict[str, TableInput]) -> dict[str, TableInput]:
        further = [spec.name for spec in schema.TABLES if spec.name not in cls.model_fields]
        for name in tables:
            if name not in further:
                raise ValueError(f"{name!r} is no further table of the data contract: {', '.join(further) or 'there is none'}")
        return tables


class MindSource(Config):
    """Microsoft's MIND in its official files."""

    format: Literal["mind"]
    behaviors: ConfigPattern | Annotated[list[ConfigPattern], Field(min_length=1)]
    """behaviors.tsv, one or several."""
    news: ConfigPattern
    """news.tsv: the official 8 columns."""
    translation: ConfigPath | None = None
    """A TSV with header `nid title abstract` whose texts replace those of news.tsv; news without one are left out."""
    entities: bool = False
    """Read the entities of titles and abstracts as the tables `entities` and `ad_links` (docs/data/graph.md)."""


class RecboleSource(Config):
    """RecBole's atomic files (.inter, .item, .user), in which MovieLens and many other sets are given."""

    format: Literal["recbole"]
    folder: ConfigPath
    """Folder with <name>.inter and, where they exist, <name>.item, <name>.user, and a graph's <name>.link and <name>.kg."""
    columns: dict[str, str] = {}
    """Canonical name -> field, where the guess is wrong (`title: movie_title`)."""
    positive_rating: float = 4.0
    """Where there is no `label` field: a rating of at least this is a click."""


class OpenBanditSource(Config):
    """The Open Bandit Dataset: one campaign folder with its log and its item_context.csv."""

    format: Literal["open_bandit"]
    folder: ConfigPath
    """Folder with <campaign>.csv (all.csv, men.csv, women.csv) and item_context.csv."""


class CriteoSource(Config):
    """Criteo's display advertising logs: label, 13 integers, 26 hashed categories, tab separated, no header."""

    format: Literal["criteo"]
    files: ConfigPattern | Annotated[list[ConfigPattern], Field(min_length=1)]
    """train.txt, day_0.gz, ..."""
    ad_column: str = "C3"
    """Which hashed column stands for the ad, since the set names none."""
    user_column: str = "C4"
    """Which hashed column stands for the user, since the set names none."""
    seconds_per_row: float = Field(0.002, gt=0)
    """The rows are in time order but carry no time: shown_at advances by this much a row."""


_BuiltIn = Annotated[TablesSource | MindSource | RecboleSource | OpenBanditSource | CriteoSource, Field(discriminator="format")]
FORMATS = ("tables", "mind", "recbole", "open_bandit", "criteo")


class SourceConfig(Config):
    """Base of the config of another package's source: its keys stand beside `format`."""

    format: str
    """Name of the entry point."""


class AbsentSource(SourceConfig):
    """How a folder was made that came from elsewhere: its source's package is not installed here."""

    model_config = ConfigDict(extra="allow")


def _of_a_package(value: Any, info: ValidationInfo) -> SourceConfig:
    """Checked by the model that the package brings; its faults are told like ours."""
    if isinstance(value, SourceConfig):
        return value
    if (info.context or {}).get("of_an_output") and value["format"] not in installed("adrec.sources"):
        return AbsentSource.model_validate(value)
    try:
        check_name(value["format"], "adrec.sources", FORMATS, "source")
        model = load(value["format"], "adrec.sources", SourceFormat, "source").config
    except (ConfigError, ValueError) as error:
        raise _faults([f"format: {str(error).removesuffix('.')}."]) from None
    try:
        checked: SourceConfig = model.model_validate(value, context=info.context)
    except ValidationError as error:
        raise _faults(describe(error, model, value)) from None
    return checked


def _faults(lines: list[str]) -> PydanticCustomError:
    return PydanticCustomError("faults_below", "{text}", {"lines": lines, "text": "; ".join(lines)})


def _branch(value: Any) -> str:
    named = value.get("format") if isinstance(value, dict) else None
    is_other = isinstance(value, SourceConfig) or (isinstance(named, str) and named not in FORMATS)
    return "package" if is_other else "adrec"


Source = Annotated[
    Annotated[_BuiltIn, Tag("adrec")] | Annotated[SerializeAsAny[SourceConfig], BeforeValidator(_of_a_package), Tag("package")],
    Discriminator(_branch),
]
