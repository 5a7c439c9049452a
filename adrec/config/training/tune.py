"""Config of `adrec tune`: which keys of a finetune config to search, where, and for how long."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from adrec.config.base import Config, ConfigPath, OnDevice, Paged, Seeded, TrustsKeys
from adrec.config.cluster import OnCluster


class Dimension(Config):
    """Values one key may take: a list of `choices`, or a range from `low` to `high`."""

    choices: Annotated[list[Any], Field(min_length=1)] | None = None
    """Values as the finetune config writes them; lists and sections are allowed."""
    low: float | None = None
    """Lower end, included."""
    high: float | None = None
    """Upper end, included."""
    log: bool = False
    """Search the logarithm (for rates)."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Distance between the values tried; not with `log`."""
    integer: bool = False
    """Whole numbers only."""

    def holds(self, value: Any) -> bool:
        """Whether `value` is one of the choices, or within the range."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None and self.high is not None
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    @model_validator(mode="after")
    def _one_form(self) -> "Dimension":
        if (self.choices is not None) == (self.low is not None or self.high is not None):
            raise ValueError("give either `choices`, or `low` and `high`")
        if self.choices is not None:
            return self
        if self.low is None or self.high is None or self.low > self.high:
            raise ValueError("`low` and `high` are both needed, and `low` may not be above `high`")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("`log` needs a `low` above 0 and no `step`")
        if self.integer and not (self.low.is_integer() and self.high.is_integer() and (self.step or 1.0).is_integer()):
            raise ValueError("`integer` needs whole numbers in `low`, `high` and `step`")
        return self


class TuneConfig(OnDevice, Seeded, Paged, TrustsKeys, OnCluster):
    """Search for better finetune settings by validation metric. Reads `base`; writes the folder `output`."""

    base: ConfigPath
    """The finetune config whose keys are varied; its `output` is not written."""
    output: ConfigPath
    """Folder for the trials, the best config and the plot."""
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    """Dotted finetune key → its values, such as `training.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}`."""
    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """Finished trials to reach, pruned ones included; a later run with more goes on from there."""
    timeout_minutes: Annotated[float, Field(gt=0)] | None = None
    """Start no trial after so many minutes of this run."""
    sampler: Literal["tpe", "random"] = "tpe"
    """tpe: tree-structured Parzen estimator (Bergstra et al. 2011). random: independent draws."""
    pruner: Literal["median", "halving", "none"] = "median"
    """median: stop a trial below the median of earlier ones at the same step. halving: successive halving (Li et al. 2020)."""

    @field_validator("space")
    @classmethod
    def _searchable(cls, space: dict[str, Dimension]) -> dict[str, Dimension]:
        fixed = {"prepared", "output", "seed", "device", "seeds", "start_from", "trusted_keys"} & {
            key.split(".")[0] for key in space
        }
        if fixed:
            raise ValueError(f"`{min(fixed)}` cannot be searched: it is the same for all trials")
        return space
