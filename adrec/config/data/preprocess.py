"""Config of `adrec preprocess`: where the logs are, how to read and clean them, how to split them."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from adrec.config.base import Config, ConfigPath, EncoderReference, Moment, Seeded
from adrec.config.cluster import OnCluster
from adrec.config.data.media import AudioSettings, ImageSettings
from adrec.config.data.sources import Source, TablesSource
from adrec.config.data.spans import Span
from adrec.config.training.features import NOT_A_FEATURE, Counters, HistoryConfig, TableFeatures


class ValidationSettings(Config):
    """How strict to be with broken rows."""

    max_rejected_fraction: float = Field(0.0, ge=0, le=1)
    """Share of rows that may be set aside in rejected.parquet; one row more stops the run. 0 allows none."""
    nan_is_missing: bool = False
    """Read NaN in a numeric column as a missing value rather than as a fault."""


class TextSettings(Config):
    """What text an encoder sees, and how it is cleaned."""

    ad_template: str = "{title} [SEP] {description} [SEP] {category}"
    """Text of an ad from its columns; a part whose columns are all empty is left out with its [SEP]."""
    user_template: str = "{interests}"
    """Text of a user from the users table's columns."""
    stop_words: bool = True
    """Leave stop words (stopwords-iso, Chinese and English) out of the segmented rendering."""
    extra_stop_words: ConfigPath | None = None
    """The user's own stop words, a line each."""
    user_dictionary: ConfigPath | None = None
    """jieba user dictionary: `word frequency tag`, a line each."""


class TokenizerSettings(Config):
    """The subword tokenizer that is trained on the texts, or an existing one that is taken over."""

    kind: Literal["wordpiece", "bpe", "unigram", "existing", "none"] = "wordpiece"
    """`existing` copies the tokenizer of `reference`; `none` leaves the folder out."""
    reference: EncoderReference | None = None
    """Local folder, `package:module/path` or hub name of the existing tokenizer."""
    vocab_size: int = Field(16_000, ge=100, le=10_000_000)
    """Most entries, special tokens included."""
    lowercase: bool = True
    """Tokenise in lower case."""

    @model_validator(mode="after")
    def _reference_fits(self) -> "TokenizerSettings":
        if (self.kind == "existing") != (self.reference is not None):
            raise ValueError("`reference` is needed with kind 'existing' and only there")
        return self


class TimeSplit(Config):
    """By time: later requests are for testing."""

    method: Literal["time"] = "time"
    valid_from: Moment | None = None
    """First moment of validation; needs test_from."""
    test_from: Moment | None = None
    """First moment of the test part."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of rows for validation where no moments are given."""
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of rows for the test where no moments are given."""

    @model_validator(mode="after")
    def _both(self) -> "TimeSplit":
        if self.valid_from is not None and self.test_from is None:
            raise ValueError("`valid_from` needs `test_from`")
        if self.valid_from is not None and self.test_from is not None and self.valid_from >= self.test_from:
            raise ValueError("`valid_from` must lie before `test_from`")
        return self


class RollingSplit(Config):
    """The end of the log is for testing, and moves with it: an append moves rows from test to validation to training."""

    method: Literal["rolling"]
    test_last: Span = "1 day"
    """Span of the test part. It ends with the last request's day (hour, minute) in UTC where it counts days (hours, minutes):
    where days end at another hour, write `24 hours`."""
    valid_last: Span | None = "1 day"
    """Span of the validation part before it."""


class RandomSplit(Config):
    """At random, as scikit-learn's train_test_split draws. Future rows then lie in training: not for time series."""

    method: Literal["random"]
    test_fraction: float = Field(0.2, ge=0, lt=1)
    """Share for the test: train_test_split(test_size=...) of the rows in source order."""
    valid_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the whole for validation, drawn by a second train_test_split from what is left."""
    unit: Literal["row", "request"] = "row"
    """What is drawn. `request` keeps the candidates of a request together."""


class LeaveLastOutSplit(Config):
    """Each user's last request is for testing, the one before it for validation; users need three to have any."""

    method: Literal["leave_last_out"]


class UserSplit(Config):
    """By user: nobody is in two parts. A keyed hash of the user id decides, so new days keep old users' parts."""

    method: Literal["user"]
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of users."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of users."""


class ColumnSplit(Config):
    """A given column of the impressions says the part."""

    method: Literal["column"]
    column: str = "split"
    """Name of the column; `source_file` is the name of the file that a row came from."""
    train: list[str] = Field(["train"], min_length=1)
    """Its values that mean training."""
    valid: list[str] = ["valid", "validation", "dev"]
    """Its values that mean validation."""
    test: list[str] = Field(["test"], min_length=1)
    """Its values that mean test."""
    in_time_order: bool = True
    """Refuse a split whose training rows lie after its test rows."""


class ColdSplit(Config):
    """Ads (or users) of the test part never occur in training, nor those of the validation part."""

    method: Literal["cold_ad", "cold_user"]
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of ads or users held out for the test."""
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    """Share held out for validation."""


Split = Annotated[
    TimeSplit | RollingSplit | RandomSplit | LeaveLastOutSplit | UserSplit | ColumnSplit | ColdSplit,
    Field(discriminator="method"),
]


class Quasi(Config):
    """k-anonymity of the users table (Samarati and Sweeney 1998): every combination occurs at least k times."""

    columns: list[str] = Field(min_length=1)
    """Quasi-identifiers of the users table, most useful first."""
    k: int = Field(5, ge=2)
    """Smallest group allowed."""
    enforce: Literal["measure", "generalise", "suppress"] = "generalise"
    """`generalise` empties, last column first, values of groups that are too small; `suppress` empties all of
    them; `measure` only reports."""
    sensitive: list[str] = []
    """Columns of users that nobody should learn from the others: reported is l, the fewest different values in a group
    (Machanavajjhala et al. 2007), and t, the farthest that a group's shares lie from everybody's (Li et al. 2007; values as
    categories). Nothing is changed for them."""


class PrivacySettings(Config):
    """What of a person may reach the output."""

    pseudonymise: bool = False
    """Replace user and request ids by a keyed HMAC-SHA256 (hex)."""
    key_file: ConfigPath | None = None
    """File with the key, instead of the variable."""
    mask_contacts: bool = False
    """Replace e-mail addresses and phone numbers in all free text by [EMAIL] and [PHONE]; a text that has one is cleaned."""
    phone_regions: list[Annotated[str, Field(pattern="^[A-Z]{2}$")]] = ["CN", "US", "GB"]
    """Countries whose phone numbers are known when they are written without a country code, as two letters of ISO 3166."""
    drop_before: Moment | None = None
    """Retention: rows shown before this moment are left out."""
    forgotten: ConfigPath | None = None
    """File that `adrec forget` keeps: the users whose digests it holds are left out of every table."""
    k_anonymity: Quasi | None = None
    """Quasi-identifiers to protect."""


class Negatives(Config):
    """A log of clicks (purchases, plays) alone: what was not clicked is drawn from the ads available at that moment."""

    per_click: int = Field(4, ge=1, le=10_000)
    """Ads drawn beside each click; fewer where the catalogue has not so many. None is clicked in that request."""
    draw: Literal["uniform", "popularity"] = "uniform"
    """uniform: each available ad alike. popularity: in proportion to (clicks before that moment + 1)^alpha. The losses of
    finetune take that advantage back (logQ); trees do not, so that the hybrid needs uniform."""
    alpha: float = Field(0.75, gt=0, le=1)
    """Exponent of `popularity`."""


_NEED_SHOWN = ("impressions", "rate", "conversion_rate")
"""Measures of counters that mean nothing where nobody knows what was shown."""


class Features(Config):
    """Fitted inputs of the models, by table. Columns named here are carried along without being declared elsewhere."""

    impressions: TableFeatures = TableFeatures()
    """Columns of the impressions, `counter_*` among them."""
    ads: TableFeatures = TableFeatures()
    """Columns of the ads."""
    users: TableFeatures = TableFeatures()
    """Columns of the users."""


class PreprocessConfig(Seeded, OnCluster):
    """Raw logs and ad copy -> prepared folder."""

    output: ConfigPath
    """Folder to write."""
    source: Source
    """What to read."""
    keep: list[str] = []
    """Extra columns of the impressions to carry beside the contract's; all others are dropped."""
    ad_columns: list[str] = []
    """Extra columns of the ads to carry."""
    user_columns: list[str] = []
    """Extra columns of the users to carry."""
    validation: ValidationSettings = ValidationSettings()
    text: TextSettings = TextSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    history: HistoryConfig = HistoryConfig()
    negatives: Negatives | None = None
    """For logs that hold nothing but clicks (docs/data/implicit.md). Every row is a click then; rows of a `click` column that
    are not 1 are left out."""
    counters: Counters = []
    """Point-in-time counters; `usual`, alone or in the list, stands for the customary ones as far as their columns exist."""
    features: Features = Features()
    image: ImageSettings | None = None
    """Encode pictures of ads."""
    audio: AudioSettings | None = None
    """Encode sounds of ads."""
    split: Split = TimeSplit()
    append: Literal["exact", "fast", "never"] = "exact"
    """What a run does with new files of impressions beside an earlier output. `exact`: append where that gives what a rebuild
    gives, else rebuild. `fast`: append wherever the new rows are later, and say what stays as it was
    (docs/data/preprocess.md)."""
    append_fitted: Literal["keep", "refit"] = "keep"
    """Whether a fast append keeps the tokenizer, vocabularies and scalers of before, as models trained on them need, or fits
    them again."""
    privacy: PrivacySettings = PrivacySettings()
    memory_limit_gb: float | None = Field(None, gt=0.1, le=1_000_000)
    """Memory of the run. Joins and sorts take six tenths of it, at least 0.4, and spill beyond that to disk beside the output.
    None: a quarter of what the machine, or the container, has, and at least 0.4."""
    threads: int = Field(0, ge=0, le=4_096)
    """Threads of the joins; 0 takes all cores."""

    # Fields are checked in their order: what these read stands above.
    @field_validator("ad_columns", "user_columns")
    @classmethod
    def _describes_the_ad(cls, columns: list[str], info: ValidationInfo) -> list[str]:
        table = str(info.field_name).removesuffix("_columns") + "s"
        found = sorted(set(columns) & _outcomes(info, moments=False)) if _from_impressions(info, table) else []
        if found:
            raise ValueError(f"'{found[0]}' {NOT_A_FEATURE}")
        return columns

    @field_validator("counters")
    @classmethod
    def _counts_by_what_is_known(cls, counters: Counters, info: ValidationInfo) -> Counters:
        outcomes = _outcomes(info)
        for number, spec in enumerate(counters):
            found = [column for column in spec.by if column in outcomes] if spec != "usual" else []
            if found:
                raise ValueError(f"counter {number + 1}, by: '{found[0]}' {NOT_A_FEATURE}")
            shown = [name for name in spec.measures if name in _NEED_SHOWN] if spec != "usual" else []
            if shown and info.data.get("negatives") is not None:
                raise ValueError(
                    f"counter {number + 1}, measures: '{shown[0]}' needs to know what was shown, and with `negatives` the log "
                    "holds clicks alone. Use clicks"
                )
        return counters

    @field_validator("features")
    @classmethod
    def _known_when_shown(cls, features: Features, info: ValidationInfo) -> Features:
        from adrec.schema import WEIGHT

        outcomes = _outcomes(info)
        if features.impressions.vectors:
            column = features.impressions.vectors[0].column
            raise ValueError(
                f"impressions.vectors: '{column}': vectors are of ads or users. Declare it in features.ads.vectors"
            )
        for table, others in (("impressions", features.impressions), ("users", features.users)):
            if paths := [item.column for item in others.lists if item.paths]:
                raise ValueError(f"{table}.lists: '{paths[0]}': paths are of ads. Declare it in features.ads.lists")
        tables = {"impressions": features.impressions, "ads": features.ads, "users": features.users}
        faults = [
            f"{table}.{fault}"
            for table, spec in tables.items()
            if table == "impressions" or _from_impressions(info, table)
            for fault in spec.refused(outcomes | {WEIGHT} if table == "impressions" else outcomes)
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return features


def _outcomes(info: ValidationInfo, *, moments: bool = True) -> set[str]:
    """OUTCOMES, and the columns that hold the `moments` of outcomes in this log."""
    from adrec.schema import OUTCOMES  # a slow import, which the help of a command does without

    if not moments:
        return set(OUTCOMES)
    history = info.data.get("history") or HistoryConfig()
    return {*OUTCOMES, *(column for column in (history.clicked_at, history.converted_at) if column is not None)}


def _from_impressions(info: ValidationInfo, table: str) -> bool:
    """Whether `ads` or `users` are taken from the impressions, so that an outcome could get into them."""
    source = info.data.get("source")
    return isinstance(source, TablesSource) and getattr(source, table) is None
