"""The data contract: Arrow schemas of every table that passes between commands, in this one file.

Words: an *impression* is one ad shown once; a *request* groups the impressions shown together; *history* is the
user's earlier clicks, newest last.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")
STRINGS = pa.list_(pa.string())
INDICES = pa.list_(pa.int32())


Role = Literal["id", "person", "category", "text", "number", "moment", "flag", "ids"]
"""How a cell is read: `id` is kept letter for letter, `person` too unless it is pseudonymised, `category` is one of a few
values, `text` is written by people (contacts may be masked in it), `flag` is 0 or 1, `ids` is a list of ids."""


@dataclass(frozen=True)
class Column:
    """One column of a contract. `type` is the exact Arrow type after preprocessing."""

    name: str
    type: pa.DataType
    required: bool = False
    meaning: str = ""
    role: Role = "text"
    outcome: bool = False
    """whether it is known only after the ad was shown: a label, never a feature"""
    bounds: tuple[float, float] | None = None
    """least and greatest value of a number that a command writes"""
    filled: bool | None = None
    """whether no cell of it may be empty where the column is there; None: where it is required"""

    @property
    def needs_cells(self) -> bool:
        """`filled`, in effect."""
        return self.required if self.filled is None else self.filled


@dataclass(frozen=True)
class TextSpec:
    """How rows become texts: the template is a setting of the config, the texts join the corpus under `kind`."""

    template: str
    """name of a field of config.preprocess.TextSettings"""
    kind: str
    language: str
    """column that says the text's language"""


@dataclass(frozen=True)
class TableSpec:
    """A named table. Columns beyond these are allowed: declared features, the user's own.

    Of a table in `TABLES` everything else follows: it may be given as input, its rows are checked and typed, and
    preprocess writes it to `file` of the prepared folder, in the order of the source; finetune to `bundle_file` if `packed`.
    """

    name: str
    columns: tuple[Column, ...]
    key: str | None = None
    """column whose values are unique; None for tables without one"""
    meaning: str = ""
    prepared: "TableSpec | None" = None
    """what preprocess makes of it; None: the same columns"""
    text: TextSpec | None = None
    """where its rows are texts that encoders read"""
    packed: bool = False
    """whether models read it when they score: a bundle then holds it, so that it knows no other folder"""

    @property
    def stored(self) -> "TableSpec":
        """The table as it lies in the prepared folder."""
        return self.prepared or self

    @property
    def file(self) -> str:
        """Its name in the prepared folder. (The impressions are a folder of shards instead.)"""
        return f"{self.name}.parquet"

    @property
    def bundle_file(self) -> str:
        """Its name in a bundle, where it is `packed`."""
        return f"tables/{self.file}"

    @property
    def versions(self) -> str:
        """Name of the table, and the file, of what changes from one moment to the next."""
        return f"{(self.key or self.name).removesuffix('_id')}_versions"

    @property
    def as_of_prefix(self) -> str:
        """Columns of the impressions that hold a column of this table, as it was at their moment, begin so."""
        return f"{(self.key or self.name).removesuffix('_id')}@"

    @property
    def index(self) -> str:
        """The row number that other tables may hold of it."""
        return f"{(self.key or self.name).removesuffix('_id')}_index"

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(column.name == name for column in self.columns)

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the columns without which the table is refused."""
        return tuple(column.name for column in self.columns if column.required)

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Names of the columns that are known only after the ad was shown."""
        return tuple(column.name for column in self.columns if column.outcome)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all contract columns, in order."""
        return tuple(column.name for column in self.columns)


PROPENSITY = "propensity"
PROPENSITY_GIVEN_ABOVE = "propensity_given_above"
"""The two kinds of a logging policy's probability: of an ad in its slot, and of that given the ads in the slots above."""

# Columns of the raw tables, and what preprocess makes of each. Index columns are row numbers of ads.parquet and users.parquet.

KNOWN_FROM = "known_from"
_KNOWN_FROM = Column(
    KNOWN_FROM,
    TIMESTAMP,
    False,
    "since when the row holds (empty: always); with it a key may have several rows: see [versions](#versions)",
    "moment",
)

_ADS = (
    Column("ad_id", pa.string(), True, "identifier, unique", "id"),
    Column("title", pa.string(), False, "headline; ads without any text are known by their id and features"),
    Column("description", pa.string(), False, "body copy"),
    Column("category", pa.string(), False, "topic or product class", "category"),
    Column("advertiser_id", pa.string(), False, "who pays", "id"),
    Column("starts_at", TIMESTAMP, False, "first moment it may be shown", "moment"),
    Column("ends_at", TIMESTAMP, False, "first moment it may no longer be shown", "moment"),
    Column("bid", pa.float64(), False, "price offered for a click, in the account's currency, 0 or more", "number"),
    Column("budget", pa.float64(), False, "most that may be spent, 0 or more", "number"),
    Column("image", pa.string(), False, "path or address of the creative", "id"),
    Column("audio", pa.string(), False, "path or address of its sound", "id"),
)
PREPARED_ADS = TableSpec(
    "ads",
    (
        *_ADS,
        Column("text", pa.string(), True, "the ad's text by the template, gently cleaned, for subword encoders"),
        Column("segmented", pa.string(), True, "words joined by a space, lower case, no stop words or punctuation"),
        Column("language", pa.string(), True, "zh, en or other", "category"),
    ),
    key="ad_id",
)

USER_LANGUAGE = "user_language"
"""Not `language`, which is the ad's: a counter by both has to tell them apart."""

_USERS = (
    Column("user_id", pa.string(), True, "identifier, unique", "person"),
    Column("interests", STRINGS, False, "declared interests, words or phrases"),
)
PREPARED_USERS = TableSpec(
    "users",
    (
        *_USERS,
        Column("text", pa.string(), True, "interests as text, empty where none"),
        Column("segmented", pa.string(), True, "interests as words joined by a space"),
        Column(USER_LANGUAGE, pa.string(), False, "language of the interests: zh, en, other; null without any", "category"),
    ),
    key="user_id",
)

_IMPRESSIONS = (
    Column(
        "user_id",
        pa.string(),
        False,
        "who saw it; empty: somebody unknown, each such row somebody else",
        "person",
        filled=False,
    ),
    Column("ad_id", pa.string(), False, "what was shown, an ad of the ads table", "id", filled=True),
    Column("shown_at", TIMESTAMP, False, "when: see [moments](#moments)", "moment", filled=True),
    Column(
        "request_id",
        pa.string(),
        False,
        "groups the impressions shown together, of one user; without it rows of one user at one moment are one request, and "
        "a row without user or moment is one by itself",
        "person",
    ),
    Column(
        "click",
        pa.int8(),
        False,
        "empty where unknown: such rows count as shown, not as tried",
        "flag",
        outcome=True,
    ),
    Column("position", pa.int32(), False, "slot, 1 is the first", "number"),
    Column(
        PROPENSITY,
        pa.float64(),
        False,
        "probability with which the logging policy showed it in its slot, whatever stood above (marginal), in (0, 1]",
        "number",
    ),
    Column(
        PROPENSITY_GIVEN_ABOVE,
        pa.float64(),
        False,
        "the same given the ads of the slots above, as `rank` and `serve` tell it; a list's is the product, in (0, 1]",
        "number",
    ),
    Column("conversion", pa.int8(), False, "what followed the click", "flag", outcome=True),
    Column("rating", pa.float64(), False, "explicit rating", "number", outcome=True),
    Column("dwell_seconds", pa.float64(), False, "time spent after the click, 0 or more", "number", outcome=True),
    Column(
        "impressions",
        pa.int64(),
        False,
        "how often it was shown, where a row is counts: see [counts](#counts); 0 rows are left out",
        "number",
        outcome=True,
    ),
    Column("clicks", pa.int64(), False, "of these impressions", "number", outcome=True),
    Column("conversions", pa.int64(), False, "of these impressions", "number", outcome=True),
    Column("spend", pa.float64(), False, "what it cost", "number", outcome=True),
    Column("scenario", pa.string(), False, "social, search, email, ...", "category"),
    Column("query", pa.string(), False, "what the user searched for"),
    Column(
        "history",
        STRINGS,
        False,
        "ads clicked before, newest last; ids of no ad are dropped and counted",
        "ids",
    ),
)
COUNTS = ("impressions", "clicks", "conversions")
"""Columns of a row that stands for many impressions: preprocess makes a row for each outcome of them, with a `weight`."""

WEIGHT = "weight"
"""How many impressions a prepared or scored row stands for. Logs without counts have no such column: each row is one."""

DRAWN = "drawn"
PREPARED_IMPRESSIONS = TableSpec(
    "impressions",
    (
        Column("row_id", pa.int64(), True, "number of the row over the whole prepared folder, in time order", "number"),
        *(column for column in _IMPRESSIONS if column.name not in {"history", "request_id", *COUNTS}),
        Column("request_id", pa.string(), True, "as given, or one per (user, moment), else one per row", "person"),
        Column("ad_index", pa.int32(), True, "row of the ad in ads.parquet", "number"),
        Column("user_index", pa.int32(), True, "row of the user in users.parquet", "number"),
        Column("history_index", INDICES, True, "rows of ads clicked before, newest last, `history.max_clicks` at most", "ids"),
        Column("history_hours", pa.list_(pa.float32()), False, "age of each of those clicks at shown_at, in hours", "number"),
        Column(
            "skipped_index",
            INDICES,
            False,
            "rows of ads shown before and not clicked (`history.max_skipped`)",
            "ids",
        ),
        Column("history_length", pa.int32(), True, "clicks the user had before, not cut", "number"),
        Column(
            DRAWN,
            pa.bool_(),
            False,
            "whether preprocess drew the row from the catalogue (`negatives`): nobody was shown it, no counter counts it",
            "flag",
        ),
        Column(WEIGHT, pa.float64(), False, "impressions that the row stands for, in a log of counts only", "number"),
    ),
)

ADS = TableSpec(
    "ads",
    (*_ADS, _KNOWN_FROM),
    key="ad_id",
    meaning="One row an ad that may be shown.",
    prepared=PREPARED_ADS,
    text=TextSpec(template="ad_template", kind="ad", language="language"),
)
USERS = TableSpec(
    "users",
    (*_USERS, _KNOWN_FROM),
    key="user_id",
    meaning="One row a user, where more is known of users than their clicks.",
    prepared=PREPARED_USERS,
    text=TextSpec(template="user_template", kind="interests", language=USER_LANGUAGE),
)
NOBODY = ""
"""Identifier, in the prepared folder and in every command, of the user of rows that name none, and of the ad where a log names
no ads. No file has it: an empty cell is a missing one. It has no history, no counters and no place in a vocabulary."""

IMPRESSIONS = TableSpec("impressions", _IMPRESSIONS, meaning="One row an ad shown once.", prepared=PREPARED_IMPRESSIONS)

ENTITIES = TableSpec(
    "entities",
    (
        Column("entity_id", pa.string(), True, "identifier, unique", "id"),
        Column("name", pa.string(), False, "what people call it; reasons for an ad do"),
        Column("kind", pa.string(), False, "company, place, genre, ...", "category"),
    ),
    key="entity_id",
    meaning="One row an entity that ads are linked to, directly or through others; where its name is known.",
    packed=True,
)
LINKS = TableSpec(
    "links",
    (
        Column("head", pa.string(), True, "an entity; without `ad_links`, what an ad is called and no entity is that ad", "id"),
        Column("relation", pa.string(), False, "what the head has to do with the tail: made_by, genre, ...", "category"),
        Column("tail", pa.string(), True, "an entity, likewise", "id"),
    ),
    meaning="One row a link of the graph of entities.",
    packed=True,
)
AD_LINKS = TableSpec(
    "ad_links",
    (
        Column("ad_id", pa.string(), True, "an ad; links of ads that are not in the ads table say nothing", "id"),
        Column("relation", pa.string(), False, "what the ad has to do with the entity: made_by, mentions, is, ...", "category"),
        Column("entity_id", pa.string(), True, "an entity", "id"),
    ),
    meaning="One row a link from an ad to an entity.",
    packed=True,
)
GRAPH: tuple[TableSpec, ...] = (ENTITIES, LINKS, AD_LINKS)
"""Of the graph of entities: see docs/data/graph.md."""

TABLES: tuple[TableSpec, ...] = (ADS, USERS, IMPRESSIONS, *GRAPH)
"""Every table that a source may give, in the order in which they are read. A new one is a line here: docs/data/contract.md."""


def as_of_column(column: str) -> tuple[TableSpec, str] | None:
    """The table, and its column, whose value as of the row a column of the impressions holds; None for others."""
    for spec in (ADS, USERS):
        if column.startswith(spec.as_of_prefix):
            return spec, column.removeprefix(spec.as_of_prefix)
    return None


def entity_tables() -> tuple[TableSpec, ...]:
    """The tables beside the impressions: each is one file of the prepared folder."""
    return tuple(spec for spec in TABLES if spec.name != IMPRESSIONS.name)


TRUE_PROBABILITY = "true_probability"
"""The sample generator's click probability. Kept beside the data for measuring; no model or feature may read it."""

ROW_NAMES = ("row_id", "source_row", "source_order", "request_id")
"""Columns that name a row or a request: they say nothing about the next one, and may give its place in the log away."""

OUTCOMES = (
    *IMPRESSIONS.outcomes,
    *("clicked_at", "converted_at"),
    *ROW_NAMES,
    TRUE_PROBABILITY,
)
"""Columns of the impressions that no feature, calendar or counter's `by` may read: what happened after the ad was shown, by
its usual names (also the counts of a log of counts), and names of rows."""

SPLITS = ("train", "valid", "test")

COUNTER_PREFIX = "counter_"
"""Point-in-time counters are float32 columns of the prepared impressions named `counter_<what>`."""

LABEL_OF_SCORE = b"adrec.label"
"""Metadata of a SCORED file's schema: the label that `score` predicts, where it is not the click."""
ANY_SLOT = "score_any_slot"
SCORE_PREFIX = "score_"
"""Before the name of a further task, in SCORED and RANKED."""
CONVERSION_SCORE = f"{SCORE_PREFIX}conversion"
"""Probability that the impression leads to a conversion: what a list promises of it."""
_ANY_SLOT = Column(
    ANY_SLOT, pa.float32(), False, "the same where the slot is not known; where the bundle knows what slots do", "number",
    bounds=(0, 1),
)  # fmt: skip

CATALOGUE_RANK, CATALOGUE_SIZE = "catalogue_rank", "catalogue_size"

# What score and rank add. SCORED keeps the user's own columns beside these.
SCORED = TableSpec(
    "scored",
    (
        Column("user_id", pa.string(), False, "who", "person"),
        Column("ad_id", pa.string(), False, "what", "id"),
        Column("logit", pa.float32(), True, "raw output of the model", "number"),
        Column(
            "score",
            pa.float32(),
            True,
            "calibrated click probability, in [0, 1], in the row's slot where `position` says it; of a log of clicks alone a "
            "preference",
            "number",
            bounds=(0, 1),
        ),
        _ANY_SLOT,
        Column("cold_ad", pa.bool_(), False, "the ad had no impression in training", "flag"),
        Column("cold_user", pa.bool_(), False, "the user had no impression in training; empty where nobody is named", "flag"),
        Column("history_length", pa.int32(), False, "clicks known before shown_at", "number", bounds=(0, inf)),
        Column(
            CATALOGUE_RANK,
            pa.float64(),
            False,
            "of a held-out click in a log of clicks alone: its place among the ads available then, 1 the first, ties in the "
            "middle; `catalogue_rank_<name>` that of a baseline",
            "number",
            bounds=(1, inf),
        ),
        Column(CATALOGUE_SIZE, pa.int32(), False, "among how many ads", "number", bounds=(1, inf)),
    ),
)
BASELINE_PREFIX = "baseline_"
"""Scores of the simple baselines are float32 columns of SCORED named `baseline_<name>`; evaluate prints them all."""

RANKED = TableSpec(
    "ranked",
    (
        Column("user_id", pa.string(), False, "for whom; empty where nobody is named", "person"),
        Column("request_id", pa.string(), True, "for which request (the user id where users are ranked)", "person"),
        Column("ad_id", pa.string(), True, "what to show", "id"),
        Column("rank", pa.int32(), True, "1-based within the request", "number", bounds=(1, inf)),
        Column("score", pa.float32(), True, "calibrated click probability in its slot, in [0, 1]", "number", bounds=(0, 1)),
        _ANY_SLOT,
        Column(
            CONVERSION_SCORE,
            pa.float32(),
            False,
            "probability of a conversion; `score_<task>` of every further task",
            "number",
            bounds=(0, 1),
        ),
        Column(
            "value", pa.float64(), True, "what the ranking orders by: score, score x bid, or a weighted sum of tasks", "number"
        ),
        Column("price", pa.float64(), False, "second price per click", "number"),
        Column(
            PROPENSITY_GIVEN_ABOVE,
            pa.float64(),
            False,
            "probability with which the policy showed it here, given the ads above",
            "number",
            bounds=(0, 1),
        ),
        Column("reason", pa.string(), True, "one plain sentence"),
    ),
)
