"""Config of `adrec rank`: what is ranked, and the named policies by which it is ranked."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from adrec.config.base import Config, ConfigPath, Moment, OnDevice, OpensBundle, Seeded
from adrec.config.cluster import OnCluster
from adrec.config.data.own_tables import OnOwnTables, OwnTable
from adrec.config.training.features import known_zone
from adrec.errors import did_you_mean

NonNegative = Annotated[float, Field(ge=0)]


class Retrieval(Config):
    """How the candidates of a request are found in the catalogue."""

    candidates: int = Field(200, ge=1, le=10_000)
    """Ads per request that the full model scores."""
    channels: list[Literal["model", "text", "popular", "query"]] = Field(["model", "text", "popular"], min_length=1)
    """Where candidates come from, in turn. `model`: product of user and ad vectors. `text`: nearest to single clicks and to the
    mean of all, by text. `popular`: training clicks. `query`: words shared with the request's query."""
    shares: dict[Literal["model", "text", "popular", "query"], NonNegative] = {}
    """Channel -> its share of the candidates. Empty: what finetune found best, where it measured all these channels, else
    equal."""
    method: Literal["auto", "exact", "hnsw", "ivfpq"] = "auto"
    """`auto` is exact up to 2 million ads, then HNSW, then IVF-PQ above 5 million; the last two need the extra `ann`."""

    @model_validator(mode="after")
    def _shares_of_channels(self) -> "Retrieval":
        if self.shares and (set(self.shares) != set(self.channels) or not any(self.shares.values())):
            raise ValueError(f"shares: names each of the channels ({', '.join(self.channels)}), one of them above 0")
        return self


class Value(Config):
    """What an ad is worth to a request; the list is ordered by it."""

    kind: Literal["score", "revenue", "weighted"] = "score"
    """`score`: click probability. `revenue`: click probability x bid, priced by the generalised second-price auction.
    `weighted`: weighted sum of task outputs."""
    weights: dict[str, NonNegative] = {}
    """For `weighted`: task -> weight. `click` is the click probability; others are the score table's columns `score_<task>`."""
    reserve: float = Field(0.0, ge=0)
    """Least price of a click, in the currency of the bids. Ads that bid less do not take part."""
    minimum: float = Field(0.0, ge=0)
    """Least value for which an ad is shown at all."""

    @model_validator(mode="after")
    def _weights_where_used(self) -> "Value":
        if (self.kind == "weighted") != bool(self.weights):
            raise ValueError("weights are needed for kind 'weighted', and only there")
        return self


class Targeting(Config):
    """An ad is shown only to users whose value is in the ad's list; an ad without a list is shown to all."""

    ad_column: str
    """Column of the ads table: a string, or a list of strings."""
    user_column: str
    """Column of the users table: a string."""


class Rules(Config):
    """What may be shown to whom. An ad that breaks a rule does not take part."""

    active: bool = True
    """Only from an ad's `starts_at` until before its `ends_at`."""
    clicked: Literal["drop", "keep"] = "drop"
    """Whether ads the user has clicked before may be shown again."""
    categories: list[str] = []
    """Only these categories; empty: all. A vertical (jobs, cars, ...) is one such list."""
    blocked_categories: list[str] = []
    """Never these categories."""
    blocked_advertisers: list[str] = []
    """Never these advertisers."""
    query_match: Literal["ignore", "require"] = "ignore"
    """`require`: at least one word of the request's query is in the ad's text."""
    targeting: list[Targeting] = []
    """Pairs of columns that must agree, such as age bands or regions."""


class Limits(Config):
    """Counts within a list and over the batch. None is no limit."""

    per_advertiser: int | None = Field(None, ge=1)
    """Most ads of one advertiser in a list."""
    per_category: int | None = Field(None, ge=1)
    """Most ads of one category in a list."""
    campaign_column: str = "advertiser_id"
    """Column of the ads table that says which ads belong to one campaign."""
    user_ad: int | None = Field(None, ge=1)
    """Most times one ad is shown to one user."""
    user_campaign: int | None = Field(None, ge=1)
    """Most times ads of one campaign are shown to one user."""
    campaign: int | None = Field(None, ge=1)
    """Most impressions of one campaign."""
    user_lists: int | None = Field(None, ge=1)
    """Most lists one user is sent (e-mails)."""
    budget: bool = True
    """Reserve each ad's expected spend (price x click probability) and never exceed its `budget`."""
    budget_period: Literal["total", "day"] = "total"
    """What a `budget` is for: all time, or each day anew. All policies need the same one."""
    time_zone: str = "UTC"
    """Zone whose midnight begins a day. All policies need the same one."""
    pacing: Literal["none", "even"] = "none"
    """`even`: at most the share x of a budget may be spent after a share x of the batch's requests (daily: of the day's), in
    `serve` after a share x of the day, or else of the time from the ad's `starts_at` to `ends_at`."""

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        return known_zone(name)


class Diversity(Config):
    """How a list trades value for variety."""

    method: Literal["none", "mmr", "calibrated"] = "none"
    """`mmr`: maximal marginal relevance on ad vectors. `calibrated`: category shares like the user's history (Steck 2018)."""
    strength: float = Field(0.3, ge=0, le=1)
    """0: value alone; 1: variety alone."""


class Exploration(Config):
    """How much a list tries out."""

    method: Literal["none", "epsilon", "thompson"] = "none"
    """`epsilon`: each slot is, with probability `epsilon`, filled at random. `thompson`: each slot takes the largest of values
    drawn from the scores' uncertainty."""
    epsilon: float = Field(0.05, ge=0, le=1)
    """Share of slots filled at random among the ads that may stand there."""


class Policy(Config):
    """One way of ranking, for one scenario."""

    top_n: int = Field(10, ge=1, le=1_000)
    """Length of a list."""
    retrieval: Retrieval = Retrieval()
    """How candidates are found."""
    value: Value = Value()
    """What the list is ordered by."""
    rules: Rules = Rules()
    """What may be shown to whom."""
    limits: Limits = Limits()
    """Counts and budgets."""
    diversity: Diversity = Diversity()
    """Variety within a list."""
    exploration: Exploration = Exploration()
    """Trying out, with the propensity of each choice."""

    @model_validator(mode="after")
    def _list_fits(self) -> "Policy":
        if self.top_n > self.retrieval.candidates:
            raise ValueError(f"top_n is {self.top_n}, more than retrieval.candidates ({self.retrieval.candidates})")
        return self


class Reranking(Config):
    """A language model that reads history and ad together scores the first of each list once more. It costs much."""

    reference: ConfigPath
    """Folder of `adrec train-reranker`."""
    top: int = Field(20, ge=1, le=10_000)
    """Candidates of a request that it reads: those of the highest scores."""


class Why(Config):
    """The one (user, ad) whose fate is told instead of writing a table."""

    user: str
    """User id."""
    ad: str
    """Ad id."""


class RankConfig(OnOwnTables, OpensBundle, OnDevice, Seeded, OnCluster):
    """Config of `adrec rank`."""

    bundle: ConfigPath
    """Bundle folder of `adrec finetune`."""
    prepared: ConfigPath | None = None
    """Prepared folder: ads, users and histories. Give it, or `ads` with `requests`."""
    ads: OwnTable | None = None
    """Files of the catalogue. Default: the prepared folder's."""
    users: OwnTable | None = None
    """Files of the users. Default: the prepared folder's."""
    requests: OwnTable | None = None
    """Files with `user_id` and, optionally, `request_id`, `shown_at`, `scenario`, `query`, `history`, context columns, in these
    names or those of the bundle's log; `-` for standard input. Default: the requests of the prepared folder's `split`."""
    history: OwnTable | None = None
    """With `requests`: a log of clicks (`user_id`, `ad_id`, `shown_at`) for requests that bring no history of their own."""
    split: Literal["train", "valid", "test", "users"] = "test"
    """Without `requests`: rank the requests of this split, or every user once (`users`)."""
    at: Moment | None = None
    """With `split: users`, the moment of the ranking; histories hold clicks before it. Default: the end of the data."""
    output: ConfigPath
    """File of lists to write: CSV, TSV or lines of JSON by its ending, else Parquet; `-` is CSV on standard output."""
    top_n: int | None = Field(None, ge=1, le=1_000)
    """Overrides the list length of every policy."""
    policies: dict[str, Policy] = {"default": Policy()}
    """Named policies. A request takes the one named as its scenario, else `default`."""
    policy: str | None = None
    """Rank every request by this policy, whatever its scenario."""
    rerank: Reranking | None = None
    """Re-rank the first of each list."""
    recall_requests: int = Field(200, ge=0, le=1_000_000)
    """Requests that are scored against all ads, to tell how many of the best retrieval finds; fewer where ads are many.
    0: none."""
    why: Why | None = None
    """Tell what happened to one ad for one user."""

    @field_validator("policies")
    @classmethod
    def _has_policies(cls, value: dict[str, Policy]) -> dict[str, Policy]:
        if not value:
            raise ValueError("at least one policy is needed")
        return value

    @model_validator(mode="after")
    def _sources(self) -> "RankConfig":
        if self.prepared is None and (self.ads is None or self.requests is None):
            raise ValueError("give 'prepared', or both 'ads' and 'requests'")
        if self.policy is not None and self.policy not in self.policies:
            near = did_you_mean(self.policy, list(self.policies))
            raise ValueError(f"policy '{self.policy}' is not among policies: {', '.join(self.policies)}.{near}")
        if self.policy is None and "default" not in self.policies:
            raise ValueError("policies: a policy named 'default' is needed for requests of other scenarios")
        return self
