"""Config of `adrec federate`: who the clients are, what they send, and how it is put together."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from adrec.config.base import Config, ConfigPath, OnDevice, Seeded

_SEEN = {"zeno", "median", "trimmed_mean"}
"""Rules by which the server looks at each change."""


class Listening(Config):
    """Of role server: where it listens, and to whom."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8443, ge=1, le=65_535)
    """Port to listen on."""
    certificate: ConfigPath | None = None
    """PEM file of the server's certificate and its chain. Without one it listens on this machine alone."""
    key: ConfigPath | None = None
    """PEM file of its private key."""
    clients: ConfigPath | None = None
    """YAML file of the clients' names and keys, as `serve` reads it (docs/using/serve.md#who-may-ask-what)."""
    wait_seconds: float = Field(600.0, gt=0, le=1e6)
    """Time in which clients must have come; the run begins as soon as all of the file are there."""
    patience_seconds: float = Field(600.0, gt=0, le=1e6)
    """Time a question waits for answers; who takes longer has fallen out of that sum."""


class Joining(Config):
    """Of role client: which server, and how to know it. The client's key stands in the environment variable ADREC_API_KEY."""

    server: str = "https://127.0.0.1:8443"
    """Address of the server. Without TLS only this machine is asked."""
    authority: ConfigPath | None = None
    """PEM file of whoever signed the server's certificate; None: those that the system trusts."""
    patience_seconds: float = Field(3_600.0, gt=0, le=1e6)
    """Time without a word of the server after which the client gives up."""


class FederatedPrivacy(Config):
    """Differential privacy with clients as units: the server adds noise to their sums. Needs `pip install 'adrec[privacy]'`."""

    epsilon: Annotated[float, Field(gt=0, le=1_000)]
    """The most that one client may change the odds of any bundle, as a power of e: 1 is strong, 8 weak."""
    delta: Annotated[float, Field(gt=0, lt=0.1)] = 1e-6
    """The chance that epsilon does not hold: well below one over the number of clients."""
    statistics: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Part of epsilon that rates and calibration may cost by themselves; together with the training it takes far less."""
    accountant: Literal["rdp", "prv"] = "rdp"
    """rdp: a proven bound. prv: numerical, some percent less noise."""
    public: list[Literal["features", "encoder"]] = []
    """What anyone may know, on your word: `features`, the prepared folder's vocabularies and scales, which all sides share;
    `encoder`, a text encoder of a folder."""
    secure: bool = True
    """Randomness of the operating system, which cannot be repeated. false: of the seed, for tests; protects nothing."""


class FederateConfig(OnDevice, Seeded):
    """Train a click model on logs that stay where they are: server and clients over a network, or all in one process.

    Each client trains on its own rows and sends a change of the weights; the server sees their sum. Reads a finetune config and
    its prepared folder; writes the bundle `output`. In a simulation the folder's rows are dealt out to clients.
    """

    role: Literal["simulation", "server", "client"] = "simulation"
    """simulation: all sides in one process. server: asks clients elsewhere, and reads no training row of its own folder.
    client: answers with what its own folder's rows say, under masks."""
    listening: Listening = Listening()
    """Of the server."""
    joining: Joining = Joining()
    """Of a client."""

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
    """Of fedadam: where it begins; it falls to 0 in a line over the rounds."""
    local_optimizer: Literal["auto", "adamw", "sgd"] = "auto"
    """Of a client. adamw: by the finetune config. sgd: plain steps of `local_learning_rate`. auto: sgd for fedadam, else adamw.
    A client of few rows takes few steps, and AdamW's first ones go by the signs of its gradients alone: where users are clients
    take fedadam, whose server adapts for all."""
    local_learning_rate: Annotated[float, Field(gt=0, le=1_000)] = 0.1
    """Of sgd. Where a client takes one step in a round, fedadam goes the same way whatever it is."""
    secure: bool = True
    """Sums under pairwise masks, so that the server sees no client's change (Bonawitz et al. 2017)."""
    threshold: Annotated[float, Field(gt=0.5, le=1)] = 0.6
    """Share of a round's clients that must stay to its end to undo the masks."""
    drop_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a round's clients that fall out after they were drawn, to see what it costs."""
    rule: Literal["mean", "clipped", "zeno", "median", "trimmed_mean"] = "mean"
    """clipped: no client changes more than `clip`. zeno: the mean without those changes that leave the server's validation rows
    the largest loss (Xie et al. 2019). median, trimmed_mean: of each weight over the clients (Yin et al. 2018). These three
    withstand some clients that send anything; the server must see each change, so `secure` is false."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Of clipped, and under `privacy`: largest norm of a client's change."""
    features: Literal["agreed", "federated"] = "agreed"
    """agreed: vocabularies and scales are the prepared folder's, and all sides have the same `features.json`. federated: those
    of impressions and users are fitted from sums over the clients' training rows; all sides declare the same columns."""
    feature_buckets: Annotated[int, Field(ge=16, le=1 << 20)] = 1 << 14
    """Of federated features: buckets of the hash by which values of a vocabulary are counted; values of one bucket are one."""
    privacy: FederatedPrivacy | None = None
    """Noise on the sums, so that the bundle tells of no client. Changes are cut to `clip`, clients weigh alike."""
    trim: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share that zeno leaves out; of trimmed_mean at each end."""
    overrides: list[str] = []
    """`key=value` settings of the finetune config, as after `--set`."""

    @property
    def is_plain(self) -> bool:
        """Whether clients take plain steps."""
        return self.local_optimizer == "sgd" or (self.local_optimizer == "auto" and self.algorithm == "fedadam")

    @model_validator(mode="after")
    def _hidden_or_robust(self) -> "FederateConfig":
        if self.rule in _SEEN and self.secure:
            raise ValueError(f"rule: {self.rule} needs to see each client's change; set `secure` to false, or rule to clipped")
        if self.privacy is not None and self.rule in _SEEN:
            raise ValueError(f"privacy: noise is added to a sum; {self.rule} is none. Leave out rule")
        if self.privacy is not None and self.features == "federated" and "features" not in self.privacy.public:
            raise ValueError(
                "features: sums of vocabularies and scales get no noise. Set it to agreed; or if anyone may know them, say so:"
                " privacy.public=[features]"
            )
        if self.role == "client" and self.privacy is not None:
            raise ValueError("privacy: the server adds the noise; leave it out of the clients' configs")
        if self.role != "simulation" and (not self.secure or self.drop_out or self.rule != "mean"):
            raise ValueError(f"role {self.role}: sums are under masks: `secure` is true, `rule` is mean, and `drop_out` is 0")
        if (self.listening.certificate is None) != (self.listening.key is None):
            raise ValueError("listening: a certificate needs its key, and a key its certificate")
        if self.drop_out >= 1 - self.threshold and self.drop_out > 0 and self.secure:
            raise ValueError("drop_out: more clients fall out than `threshold` allows; lower one of them")
        return self
