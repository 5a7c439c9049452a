"""Config of `adrec serve`."""

from pathlib import Path

from pydantic import Field, model_validator

from adrec.config.base import Config, ConfigPath, Moment, OnDevice, OpensBundle, Seeded, StageConfig
from adrec.config.inference.access import Access, Connections, Tls
from adrec.config.inference.rank import Policy, Reranking


class Batching(Config):
    """How concurrent requests share one pass of the model."""

    max_items: int = Field(64, ge=1, le=4_096)
    """Most requests in one pass."""
    max_wait_ms: float = Field(2.0, ge=0, le=1_000)
    """Longest wait of the first request of a pass for others, in milliseconds."""
    max_queue: int = Field(512, ge=1, le=10_000_000)
    """Requests that may wait; beyond them the server answers 503 with Retry-After."""
    timeout_seconds: float = Field(10.0, gt=0)
    """After this a waiting request is answered 504."""


class Explaining(Config):
    """/v1/explain has a queue and a thread of its own, so that no score, list or event waits for it."""

    max_queue: int = Field(16, ge=1, le=1_000_000)
    """Explanations that may wait; beyond them the server answers 503 with Retry-After."""
    timeout_seconds: float = Field(30.0, gt=0)
    """After this a waiting explanation is answered 504."""


class Intake(Config):
    """What a request may carry."""

    max_body_bytes: int = Field(1_000_000, ge=1_000)
    """Larger bodies are answered 413."""
    max_rows: int = Field(1_000, ge=1, le=1_000_000_000)
    """Most rows of /v1/score."""
    max_requests: int = Field(64, ge=1, le=1_000_000)
    """Most users of one /v1/rank."""
    max_candidates: int = Field(1_000, ge=1, le=100_000_000)
    """Most candidates given with a request."""
    max_events: int = Field(10_000, ge=1, le=100_000_000)
    """Most events of one /v1/events."""


class Challenger(Config):
    """A second bundle beside the first: arm b of an A/B test."""

    bundle: ConfigPath
    """Bundle folder of `adrec finetune`."""
    share: float = Field(0.5, gt=0, lt=1)
    """Share of users that it serves; each user stays in one arm."""
    salt: str = "adrec"
    """Another salt draws the users anew, for the next test."""


class StoreConfig(StageConfig):
    """Where the server keeps what it must not forget."""

    store: ConfigPath = Path("adrec-store.sqlite")
    """SQLite file of events, caps and changed ads; made where it is missing."""
    redis: str | None = None
    """Keep events, caps and changed ads in this Redis instead, such as redis://host:6379/0: several servers can share it."""
    redis_prefix: str = "adrec"
    """Start of all keys in Redis, to keep several states apart."""
    store_timeout_seconds: float = Field(2.0, gt=0, le=600)
    """A store that does not answer for so long fails the request that needs it, with 503."""


class EventsConfig(StoreConfig):
    """Config of `adrec events`."""

    output: ConfigPath | None = None
    """SCORED Parquet to write."""
    keep_days: float | None = Field(None, gt=0)
    """Take away events of more than so many days ago. Caps and budgets still count them; histories and counters no more."""
    erase_user: str | None = None
    """Take away everything of this user. Servers over the store forget it within the time that counting takes."""
    pseudonymise: bool = False
    """Keep users, requests and events under the pseudonyms that ADREC_PRIVACY_KEY makes, and nothing under the names that came
    before the log was pseudonymised."""
    backup: ConfigPath | None = None
    """SQLite file to write with everything that the store holds, whichever kind it is."""
    restore: ConfigPath | None = None
    """Read such a file into the store, which must be empty."""

    @model_validator(mode="after")
    def _something(self) -> "EventsConfig":
        if not any((self.output, self.keep_days, self.erase_user, self.pseudonymise, self.backup, self.restore)):
            raise ValueError("give 'output', or one of 'keep_days', 'erase_user', 'pseudonymise', 'backup' and 'restore'")
        return self


class ServeConfig(StoreConfig, OpensBundle, OnDevice, Seeded):
    """Config of `adrec serve`."""

    bundle: ConfigPath
    """Bundle folder of `adrec finetune`."""
    challenger: Challenger | None = None
    """A second bundle that serves a share of the users (A/B)."""
    onnx: ConfigPath | None = None
    """Folder of `adrec export`: the first bundle's network and encoder run on onnxruntime."""
    onnx_int8: bool = False
    """Use its int8 encoder."""
    cache: ConfigPath | None = None
    """Folder of cached text vectors. Default: the user's."""
    keep_typed: bool = False
    """Also write vectors of queries and interests to the cache on disk. By default they are held in memory alone."""
    prepared: ConfigPath | None = None
    """Prepared folder: the catalogue, known users with their histories, and the counters of the past."""
    ads: ConfigPath | None = None
    """Catalogue in the canonical ADS layout. Default: the prepared folder's."""
    pictures: ConfigPath | None = None
    """Folder beneath which the `image` of an ad that is put may name a file; None: it brings its picture itself."""
    sounds: ConfigPath | None = None
    """Folder beneath which the `audio` of an ad that is put may name a file; None: it brings its sound itself."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8080, ge=0, le=65_535)
    """Port; 0 takes a free one."""
    clock_from: Moment | None = None
    """The server's clock starts here instead of now: to try logs whose ads have ended."""
    threads: int = Field(1, ge=1, le=4_096)
    """Processor threads of a pass of the model. One is fastest for the small steps of most bundles; the rest answer HTTP."""
    policies: dict[str, Policy] = {"default": Policy()}
    """Named policies, as for rank; a request takes the one named as its scenario, else `default`."""
    rerank: Reranking | None = None
    """Re-rank the first of each list, in both arms."""
    batching: Batching = Batching()
    """Micro-batching."""
    explaining: Explaining = Explaining()
    """Explanations."""
    intake: Intake = Intake()
    """Limits on what comes in."""
    connections: Connections = Connections()
    """Limits on connections."""
    access: Access = Access()
    """Who may ask what."""
    tls: Tls | None = None
    """Serve HTTPS with this certificate. Default: HTTP."""
    page: bool = True
    """Whether the page at `/` and the description of the calls at `/docs` are served."""
    cors_origins: list[str] = []
    """Origins that browsers may call from; empty: none but the server's own page."""
    drain_seconds: float = Field(20.0, ge=0)
    """After SIGTERM, the time for running requests to end."""

    @model_validator(mode="after")
    def _catalogue(self) -> "ServeConfig":
        if self.prepared is None and self.ads is None:
            raise ValueError("give 'prepared' or 'ads'")
        if "default" not in self.policies:
            raise ValueError("policies: one named 'default' is needed")
        return self
