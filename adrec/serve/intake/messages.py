"""What goes over the wire: request and answer models of the HTTP interface, with their limits and examples."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from adrec.serve.intake.fields import MOST_ITEMS, Id, Moment, Values, Vector, Word


class Message(BaseModel):
    """Unknown keys are refused, NaN and infinity too."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Note(Message):
    """What was left out of an answer, and why."""

    where: str
    what: str


class UserIn(Message):
    """A user known to the server, or described here; what is given here wins."""

    user_id: Id | None = None
    """null: nobody known. Needed, if only as null, where the bundle's log names users."""
    history: list[Id] | None = Field(default=None, max_length=10_000)
    """Ads clicked before, newest last; default: what the server knows."""
    interests: list[Word] | None = Field(default=None, max_length=MOST_ITEMS)
    """Declared interests."""
    features: Values = {}
    """Columns of the users table, such as age_band."""


class ScoreRow(Message):
    """One (user, ad) to score."""

    user_id: Id | None = None
    """null: nobody known. Needed, if only as null, where the bundle's log names users."""
    ad_id: Id | None = None
    """Needed where the bundle's log names ads."""
    shown_at: Moment | None = None
    """Default: now."""
    scenario: str | None = Field(default=None, max_length=100)
    query: str | None = Field(default=None, max_length=1_000)
    context: Values = {}
    """Further columns of the impression that the model reads."""


class ScoreRequest(Message):
    """Rows to score."""

    rows: list[ScoreRow] = Field(min_length=1)
    users: list[UserIn] = Field(default=[], max_length=1_000)
    """Users described here; rows of others take what the server knows."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"rows": [{"user_id": "u1", "ad_id": "a1"}]}]})


class ScoreOut(Message):
    """One scored row, in the order asked."""

    user_id: str | None
    ad_id: str | None
    logit: float
    score: float
    score_conversion: float | None
    """Probability that the impression leads to a conversion; null where the bundle has not learned it."""
    cold_ad: bool
    """No impression of the ad was seen in training."""
    cold_user: bool
    arm: str
    """Which bundle answered: a, or b in an A/B test."""


class ScoreAnswer(Message):
    """All rows."""

    rows: list[ScoreOut]
    bundles: dict[str, str]
    """Arm → fingerprint of its bundle."""
    notes: list[Note] = []
    """What was asked and is not known: it counts as not said."""


class RankUser(UserIn):
    """One request for a list."""

    scenario: str | None = Field(default=None, max_length=100)
    """Names the policy; default: `default`."""
    query: str | None = Field(default=None, max_length=1_000)
    shown_at: Moment | None = None
    """Default: now."""
    top_n: int | None = Field(default=None, ge=1, le=1_000)
    """At most the policy's own length."""
    candidates: list[Any] | None = Field(default=None, min_length=1)
    """Identifiers of the ads to choose among; default: the whole catalogue. One that is none is left out, and noted."""
    context: Values = {}
    """Further columns of the impression that the model reads."""


class RankRequest(Message):
    """Lists for one or many users."""

    requests: list[RankUser] = Field(min_length=1)

    model_config = ConfigDict(json_schema_extra={"examples": [{"requests": [{"user_id": "u1", "top_n": 5}]}]})


class RankedAd(Message):
    """One place of a list."""

    ad_id: str
    title: str
    rank: int
    score: float
    score_conversion: float | None
    """Probability that the impression leads to a conversion; null where the bundle has not learned it."""
    value: float
    bid: float | None
    price: float | None
    propensity_given_above: float
    """Probability with which the list shows this ad here, given the ads above it."""
    reason: str


class RankedList(Message):
    """One user's list."""

    user_id: str | None
    request_id: str
    """Send it with the events that this list leads to."""
    policy: str
    arm: str
    """Which bundle ranked: a, or b in an A/B test."""
    arm_share: float
    """Share of users in this arm: the propensity of the arm."""
    ads: list[RankedAd]


class RankAnswer(Message):
    """Lists in the order asked."""

    lists: list[RankedList]
    bundles: dict[str, str]
    """Arm → fingerprint of its bundle."""
    notes: list[Note] = []
    """Candidates that were left out, and what else was asked and is not known."""


class Trial(Message):
    """What an ad would be like; what is not said stays as it is."""

    title: str | None = Field(default=None, min_length=1, max_length=2_000)
    description: str | None = Field(default=None, max_length=10_000)
    category: str | None = Field(default=None, max_length=200)
    bid: float | None = Field(default=None, ge=0, le=1e9)


class TryRequest(Message):
    """A list as it would be if ads were otherwise; nothing is changed."""

    request: RankUser
    trials: list[Annotated[dict[Id, Trial], Field(min_length=1, max_length=20)]] = Field(min_length=1, max_length=4)
    """Each: ads of the catalogue, and what is tried on them."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"request": {"user_id": "u1"}, "trials": [{"a1": {"title": "Another headline"}}]}]}
    )


class TryAnswer(RankAnswer):
    """The list as it is, then one for each trial."""


class ExplainRequest(Message):
    """One (user, ad) to explain."""

    user: UserIn
    ad_id: Id | None = None
    shown_at: Moment | None = None
    """Default: now."""
    scenario: str | None = Field(default=None, max_length=100)
    query: str | None = Field(default=None, max_length=1_000)
    context: Values = {}
    """Further columns of the impression that the model reads."""
    language: Literal["en", "zh"] | None = None
    """Of the sentence and the labels. Default: what the user reads, as in the lists' reasons."""


class ExplainAnswer(Message):
    """Contributions in log-odds: those of the parts add up to logit - baseline."""

    sentence: str
    language: str
    """of the sentence and the labels"""
    score: float
    """as /v1/score and the lists have it"""
    logit: float
    baseline: float
    """logit of an ad and a user of whom nothing is known"""
    text: str
    """what the model reads of the ad"""
    words: list[dict[str, Any]]
    """its words in order, to be lit; their contributions stand among the parts"""
    parts: list[dict[str, Any]]
    """words, matches and features, largest first; `without` is the score where a part alone is taken away"""
    counterfactuals: list[dict[str, Any]]
    """without the interests, the search, each click, all clicks; in other categories"""


class EventIn(Message):
    """Something that happened."""

    user_id: Id | None = None
    """null: somebody unknown."""
    ad_id: Id
    kind: Literal["impression", "click", "conversion"]
    at: Moment | None = None
    """Default: now."""
    price: float | None = Field(default=None, ge=0, le=1e9)
    """What it cost the advertiser: of an impression, a click or a conversion, whatever is paid for. The ad's budget pays it."""
    value: float | None = Field(default=None, ge=0, le=1e12)
    """What a conversion was worth."""
    event_id: Id | None = None
    """Repeated ones count once."""
    scenario: str | None = Field(default=None, max_length=100)
    """As the request said; counters by scenario count it there."""
    context: Values = {}
    """Further columns of the impression by which counters are kept."""
    request_id: Id | None = None
    """Of the list that led to it; this and what follows as the list said, so that `adrec events` can judge the lists."""
    position: int | None = Field(default=None, ge=1, le=1_000_000)
    """The ad's rank in the list."""
    score: float | None = Field(default=None, ge=0, le=1)
    score_conversion: float | None = Field(default=None, ge=0, le=1)
    """What the list promised of conversions, where it did."""
    propensity_given_above: float | None = Field(
        default=None, gt=0, le=1, validation_alias=AliasChoices("propensity_given_above", "propensity")
    )
    arm: Literal["a", "b"] | None = None


class EventsRequest(Message):
    """Events, acknowledged when they are on disk."""

    events: list[EventIn] = Field(min_length=1)

    model_config = ConfigDict(json_schema_extra={"examples": [{"events": [{"user_id": "u1", "ad_id": "a1", "kind": "click"}]}]})


class EventsAnswer(Message):
    """What became of the events. All are kept; late and unmatched ones are told, for they may be a mistake of the sender's."""

    recorded: int
    """New ones."""
    repeated: int
    """Their event_id was there."""
    late: int = 0
    """Their moment lies within the log that the server stands on, which has them: they count towards limits alone."""
    unmatched: int = 0
    """Clicks of ads that the server does not know to have been shown to the user, conversions of ads not clicked."""


class AdIn(Message):
    """A new or changed ad."""

    title: str | None = Field(default=None, min_length=1, max_length=2_000)
    """Needed where the bundle's log has texts."""
    description: str | None = Field(default=None, max_length=10_000)
    category: str | None = Field(default=None, max_length=200)
    advertiser_id: str | None = Field(default=None, max_length=200)
    bid: float | None = Field(default=None, ge=0, le=1e9)
    budget: float | None = Field(default=None, ge=0, le=1e12)
    starts_at: Moment | None = None
    ends_at: Moment | None = None
    image: str | None = Field(default=None, max_length=50_000_000)
    """Its picture, where the bundle reads pictures: `data:image/png;base64,...` (PNG, JPEG, WebP, BMP, GIF), or the name of a
    file beneath the folder that the server's `pictures` names."""
    audio: str | None = Field(default=None, max_length=50_000_000)
    """Its sound, where the bundle reads sounds: `data:audio/wav;base64,...` (WAV, FLAC, Ogg, MP3, AIFF), or the name of a file
    beneath the folder that the server's `sounds` names."""
    vectors: Annotated[dict[Id, Vector], Field(max_length=20)] = {}
    """What other models made of it, such as its picture's vector, by the column of the log: those that the bundle reads."""
    links: Annotated[list[Annotated[str, Field(pattern=r"^[^=]+=.+$", max_length=1_000)]], Field(max_length=999)] | None = None
    """What it is linked to, where the bundle reads links, such as `made_by=Acme`. Without it what the bundle knows of an ad of
    this name."""

    @model_validator(mode="after")
    def _ends_after_it_starts(self) -> "AdIn":
        if self.starts_at is not None and self.ends_at is not None and self.ends_at <= self.starts_at:
            raise ValueError("'ends_at' must lie after 'starts_at'")
        return self


class AdOut(Message):
    """An ad as the catalogue has it, which may be more than `PUT` takes."""

    title: str | None = None
    description: str | None = None
    category: str | None = None
    advertiser_id: str | None = None
    bid: float | None = None
    budget: float | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    vectors: dict[str, list[float]] = {}
    links: list[str] = []


class Done(Message):
    """It is done."""

    done: bool = True
    detail: str = ""
