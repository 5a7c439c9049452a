"""What goes over the wire: request and answer models of the HTTP interface, with their limits and examples."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field

Id = Annotated[str, Field(min_length=1, max_length=200)]
Plain = str | float | int | bool | list[str] | None


def _utc(moment: datetime) -> datetime:
    """In UTC, and within the years that a timestamp in microseconds and pandas-free code can tell."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    if not 1970 <= moment.year <= 2200:
        raise ValueError("the moment must lie between 1970 and 2200")
    return moment


Moment = Annotated[datetime, AfterValidator(_utc)]


class Message(BaseModel):
    """Unknown keys are refused, NaN and infinity too."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class UserIn(Message):
    """A user known to the server, or described here; what is given here wins."""

    user_id: Id
    history: list[Id] | None = Field(default=None, max_length=10_000)
    """Ads clicked before, newest last; default: what the server knows."""
    interests: list[str] | None = Field(default=None, max_length=1_000)
    """Declared interests."""
    features: dict[str, Plain] = Field(default={}, max_length=200)
    """Columns of the users table, such as age_band."""


class ScoreRow(Message):
    """One (user, ad) to score."""

    user_id: Id
    ad_id: Id
    shown_at: Moment | None = None
    """Default: now."""
    scenario: str | None = Field(default=None, max_length=100)
    query: str | None = Field(default=None, max_length=1_000)
    context: dict[str, Plain] = Field(default={}, max_length=200)
    """Further columns of the impression that the model reads."""


class ScoreRequest(Message):
    """Rows to score."""

    rows: list[ScoreRow] = Field(min_length=1)
    users: list[UserIn] = Field(default=[], max_length=1_000)
    """Users described here; rows of others take what the server knows."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"rows": [{"user_id": "u1", "ad_id": "a1"}]}]})


class ScoreOut(Message):
    """One scored row, in the order asked."""

    user_id: str
    ad_id: str
    logit: float
    score: float
    cold_ad: bool
    cold_user: bool
    arm: str
    """Which bundle answered: a, or b in an A/B test."""


class ScoreAnswer(Message):
    """All rows."""

    rows: list[ScoreOut]
    bundles: dict[str, str]
    """Arm → fingerprint of its bundle."""


class RankUser(UserIn):
    """One request for a list."""

    scenario: str | None = Field(default=None, max_length=100)
    """Names the policy; default: `default`."""
    query: str | None = Field(default=None, max_length=1_000)
    shown_at: Moment | None = None
    """Default: now."""
    top_n: int | None = Field(default=None, ge=1, le=1_000)
    """At most the policy's own length."""
    candidates: list[Id] | None = Field(default=None, min_length=1)
    """Choose among these; default: the whole catalogue."""


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
    value: float
    bid: float | None
    price: float | None
    propensity_given_above: float
    """Probability with which the list shows this ad here, given the ads above it."""
    reason: str


class RankedList(Message):
    """One user's list."""

    user_id: str
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


class ExplainRequest(Message):
    """One (user, ad) to explain."""

    user: UserIn
    ad_id: Id
    shown_at: Moment | None = None
    """Default: now."""
    scenario: str | None = Field(default=None, max_length=100)
    query: str | None = Field(default=None, max_length=1_000)
    context: dict[str, Plain] = Field(default={}, max_length=200)
    """Further columns of the impression that the model reads."""


class ExplainAnswer(Message):
    """Contributions in log-odds; they add up to logit - baseline."""

    sentence: str
    score: float
    logit: float
    baseline: float
    words: list[dict[str, Any]]
    parts: list[dict[str, Any]]


class EventIn(Message):
    """Something that happened."""

    user_id: Id
    ad_id: Id
    kind: Literal["impression", "click"]
    at: Moment | None = None
    """Default: now."""
    price: float | None = Field(default=None, ge=0, le=1e9)
    """What the click cost; it counts against the ad's budget."""
    event_id: Id | None = None
    """Repeated ones count once."""
    scenario: str | None = Field(default=None, max_length=100)
    """As the request said; counters by scenario count it there."""
    context: dict[str, Plain] = Field(default={}, max_length=200)
    """Further columns of the impression by which counters are kept."""
    request_id: Id | None = None
    """Of the list that led to it; this and what follows as the list said, so that `adrec events` can judge the lists."""
    position: int | None = Field(default=None, ge=1, le=1_000_000)
    """The ad's rank in the list."""
    score: float | None = Field(default=None, ge=0, le=1)
    propensity_given_above: float | None = Field(
        default=None, gt=0, le=1, validation_alias=AliasChoices("propensity_given_above", "propensity")
    )
    arm: Literal["a", "b"] | None = None


class EventsRequest(Message):
    """Events, acknowledged when they are on disk."""

    events: list[EventIn] = Field(min_length=1)

    model_config = ConfigDict(json_schema_extra={"examples": [{"events": [{"user_id": "u1", "ad_id": "a1", "kind": "click"}]}]})


class EventsAnswer(Message):
    """How many were new."""

    recorded: int
    repeated: int


class AdIn(Message):
    """A new or changed ad."""

    title: str = Field(min_length=1, max_length=2_000)
    description: str | None = Field(default=None, max_length=10_000)
    category: str | None = Field(default=None, max_length=200)
    advertiser_id: str | None = Field(default=None, max_length=200)
    bid: float | None = Field(default=None, ge=0, le=1e9)
    budget: float | None = Field(default=None, ge=0, le=1e12)
    starts_at: Moment | None = None
    ends_at: Moment | None = None


class Done(Message):
    """It is done."""

    done: bool = True
    detail: str = ""
