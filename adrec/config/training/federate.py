"""Config of `adrec federate`: who the clients are, what they send, and how it is put together."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from adrec.config.base import ConfigPath, OnDevice, Seeded


class FederateConfig(OnDevice, Seeded):
    """Train a click model on logs that stay where they are: a simulation in one process, to see what it is worth.

    Each client trains on its own rows and sends a change of the weights; the server sees their sum. Reads a finetune config and
    its prepared folder, whose rows are dealt out to clients; writes the bundle `output`.
    """

    finetune: ConfigPath
    """Finetune config: prepared folder, encoder, model, loss, and `training` of a client. Its `output` is not written."""
    output: ConfigPath
    """Bundle folder to write."""
    clients: str = "user"
    """`user`: each user is a client. A column of impressions or ads (scenario, category): each value is a silo."""
    rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    """Rounds of training."""
    clients_per_round: Annotated[int, Field(ge=2, le=1_000)] = 20
    """Clients drawn for a round, and for a sum of statistics; all where there are fewer."""
    local_epochs: Annotated[int, Field(ge=1, le=1_000)] = 1
    """Passes of a client over its rows in a round."""
    algorithm: Literal["fedavg", "fedprox", "fedadam"] = "fedavg"
    """fedavg: the mean change, weighed by rows (McMahan et al. 2017). fedprox: clients are also held near the common weights
    (Li et al. 2020). fedadam: the mean change is a gradient to Adam on the server (Reddi et al. 2021)."""
    proximal: Annotated[float, Field(gt=0)] = 0.01
    """Of fedprox: weight of half the squared distance."""
    server_learning_rate: Annotated[float, Field(gt=0, le=1_000)] = 0.01
    """Of fedadam."""
    secure: bool = True
    """Sums under pairwise masks, so that the server sees no client's change (Bonawitz et al. 2017)."""
    threshold: Annotated[float, Field(gt=0.5, le=1)] = 0.6
    """Share of a round's clients that must stay to its end to undo the masks."""
    drop_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a round's clients that fall out after they were drawn, to see what it costs."""
    rule: Literal["mean", "clipped", "median", "trimmed_mean"] = "mean"
    """clipped: no client changes more than `clip`. median, trimmed_mean: of each weight over the clients, which withstand some
    that send anything (Yin et al. 2018); the server then must see each change, so `secure` is false."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Of clipped: largest norm of a client's change."""
    trim: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Of trimmed_mean: share left out at each end."""
    overrides: list[str] = []
    """`key=value` settings of the finetune config, as after `--set`."""

    @model_validator(mode="after")
    def _hidden_or_robust(self) -> "FederateConfig":
        if self.rule in {"median", "trimmed_mean"} and self.secure:
            raise ValueError(f"rule: {self.rule} needs to see each client's change; set `secure` to false, or rule to clipped")
        if self.drop_out >= 1 - self.threshold and self.drop_out > 0 and self.secure:
            raise ValueError("drop_out: more clients fall out than `threshold` allows; lower one of them")
        return self
