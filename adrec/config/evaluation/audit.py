"""Config of `adrec audit`: which training is attacked, and by how many models."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from adrec.config.base import Config, ConfigPath, OnDevice, Seeded


class CanarySettings(Config):
    """Secrets planted in texts, which a language model should not know afterwards."""

    pretrain: ConfigPath
    """The pretrain config that is attacked; its `output` is not written."""
    count: Annotated[int, Field(ge=1, le=1_000)] = 4
    """Secrets of each number of repeats."""
    repeats: Annotated[list[Annotated[int, Field(ge=1, le=100_000)]], Field(min_length=1)] = [1, 8, 64]
    """How often a secret stands in the texts."""
    candidates: Annotated[int, Field(ge=10, le=1_000_000)] = 500
    """Other secrets of the same form, among which it is looked for."""
    overrides: list[str] = []
    """`key=value` settings of the pretrain config, as after `--set`."""


class AuditConfig(OnDevice, Seeded):
    """Attack a training as an outsider would. Reads its configs and prepared folder; writes `output`.

    Membership: the whole training is run `models` times, each on a random half of the users (or rows), and each model is asked
    whom it has seen. The first model's counts of clicks are taken apart too, to get back the clicks of single users. Canaries:
    secrets are planted in the texts of a pretraining, and looked for.
    """

    finetune: ConfigPath | None = None
    """The finetune config that is attacked; its `output` is not written."""
    output: ConfigPath
    """JSON file of the findings."""
    models: Annotated[int, Field(ge=2, le=1_000)] = 4
    """Trainings; with four or more LiRA knows each unit as a member and as none."""
    unit: Literal["auto", "user", "row"] = "auto"
    """Who is looked for; auto: what the config's `privacy` protects, else users."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the lower bound on epsilon."""
    attributes: list[str] = []
    """Columns of users (age_band, region) that are guessed from their clicks by the first model."""
    overrides: list[str] = []
    """`key=value` settings of the finetune config, as after `--set`."""
    canaries: CanarySettings | None = None
    """Also, or instead, plant secrets in a pretraining."""

    @model_validator(mode="after")
    def _attacks(self) -> "AuditConfig":
        if self.finetune is None and self.canaries is None:
            raise ValueError("name the `finetune` config to attack, or a `canaries.pretrain` config")
        return self
