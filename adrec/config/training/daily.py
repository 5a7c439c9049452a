"""Configs of `adrec daily` and `adrec registry`: a bundle a day, judged before it takes over."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from adrec.config.base import Config, ConfigPath, OpensBundle, Seeded, StageConfig, TrustsKeys

GateMetric = Literal["auc", "auc_request", "auc_user", "log_loss"]


class GateSettings(Config):
    """When the new bundle takes over. Both bundles score the test part, whose rows are paired; every metric named must pass."""

    least: Annotated[dict[GateMetric, float], Field(min_length=1)] = {"auc": -0.002, "log_loss": -0.005}
    """Metric -> the least that the new bundle must gain on the old one (in log loss: save); below 0, what it may lose. Metrics
    that a log has not are passed over."""
    refuse: Literal["worse", "surely_worse", "unsure"] = "worse"
    """worse: where the gain itself is below `least`. surely_worse: where its whole 95 % interval is. unsure: unless the whole
    interval is above."""
    replicates: Annotated[int, Field(ge=10, le=100_000)] = 300
    """Draws of users behind the intervals."""


class Served(StageConfig):
    """Which servers load the champion anew."""

    reload: list[str] = []
    """Addresses of servers, such as http://10.0.0.7:8080, whose bundle is the registry's `champion`: each is told to load it
    anew. The key is read from ADREC_API_KEY."""
    reload_seconds: Annotated[float, Field(gt=0)] = 300.0
    """Longest wait for a server's answer."""

    @field_validator("reload")
    @classmethod
    def _addresses(cls, addresses: list[str]) -> list[str]:
        wrong = [address for address in addresses if not address.startswith(("http://", "https://"))]
        if wrong:
            raise ValueError(f"'{wrong[0]}' is no address. Write http://host:port")
        return addresses


class DailyConfig(Served, Seeded, TrustsKeys):
    """New files in, a better bundle out: preprocess, finetune from yesterday's bundle, judge, promote or refuse."""

    preprocess: ConfigPath
    """Config file of preprocess; its source is a pattern or folder that new files come into."""
    prepare: dict[str, Any] = {}
    """Settings of preprocess that differ here from its config, by dotted key: `{split: {method: rolling}, append: fast}`."""
    prepared: ConfigPath | None = None
    """Prepared folder; None: the `output` of the preprocess config."""
    finetune: ConfigPath
    """Config file of finetune. Its `prepared`, `output` and `start_from` are set by this command."""
    registry: ConfigPath
    """Folder of all bundles with their records; `champion` in it is the one to serve."""
    signing_key: ConfigPath | None = None
    """Secret key of `adrec sign`: every new bundle is signed with it."""
    onward: dict[str, Any] = {"replay": 0.1, "training.epochs": 1}
    """Settings of finetune that differ where training goes on from the champion, by dotted key."""
    from_nothing: bool = False
    """Do not go on from the champion today."""
    from_nothing_every: Annotated[int, Field(ge=1)] | None = None
    """Start from nothing after so many bundles that went on from another; None: never."""
    gate: GateSettings = GateSettings()
    """When the new bundle takes over."""
    report: bool = True
    """Write a report of the new bundle beside the champion."""
    keep: Annotated[int, Field(ge=2, le=100_000)] = 14
    """Newest bundles kept, beside the champion and those to roll back to. Records stay."""
    mlflow: str | None = None
    """Also register bundles in MLflow at this tracking address, under the model name `adrec`; the champion has the alias
    `champion`. Needs mlflow."""


class RegistryConfig(Served, OpensBundle):
    """Look at a registry, promote a bundle of it by hand, or go back to the champion before."""

    path: ConfigPath
    """Folder that `adrec daily` keeps."""
    promote: str | None = None
    """Name of a bundle to promote, whatever its gate said."""
    roll_back: bool = False
    """Make the champion before this one the champion again."""
