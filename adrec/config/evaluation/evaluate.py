"""Config of `adrec evaluate`: which scored rows, against what, how sure, in which slices."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from adrec.config.base import Config, ConfigPath, Moment, OpensBundle, Paged, Seeded
from adrec.config.cluster import OnCluster

Count = Annotated[int, Field(ge=1)]


class TaskColumns(Config):
    """One label and the column that predicts it."""

    label: str
    """Column with what happened: click, conversion, rating, dwell_seconds, or any other."""
    score: str
    """Column with what was predicted."""
    kind: Literal["binary", "regression"] = "binary"
    """binary: labels 0 or 1, scores are probabilities. regression: numbers in the label's own unit."""


class BootstrapSettings(Config):
    """How intervals are made."""

    replicates: Annotated[int, Field(ge=2, le=100_000)] = 1000
    """Draws of users with replacement for the headline; 2.5 % of them lie outside each end of an interval."""

    @property
    def slice_replicates(self) -> int:
        """Draws for slices, of which there are many, and for lists."""
        return min(self.replicates, 300)


class SliceSettings(Config):
    """Parts of the rows that are looked at on their own."""

    columns: list[str] = []
    """Columns of the scored, ads or users table beyond those always used: cold_ad, cold_user, history_length, category,
    scenario, language, position, day."""


class AlarmSettings(Config):
    """When a slice is called worse. Both must hold: significant after correction, and large enough to matter."""

    auc_gap: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Least shortfall of a slice's AUC below that of all rows."""
    calibration_gap: Annotated[float, Field(ge=0)] = 0.1
    """Least distance of predicted / observed from 1."""


class OffPolicySettings(Config):
    """What would have happened under another policy, from logs with known propensities."""

    policy: ConfigPath | None = None
    """RANKED Parquet of the policy to judge, for the requests of the scored rows."""
    policy_is: Literal["lists", "distribution"] = "lists"
    """lists: the table holds the lists that the policy showed (random ones too: the draw counts as it fell).
    distribution: it holds every ad the policy might show, and `propensity` is the probability of each."""
    match_position: bool | None = None
    """Match the slot (RANKED `rank`, logged `position`) as well as the ad; None: where both tables have it. Without, each
    listed ad is judged by its clicks in whichever slot the logs showed it."""
    policy_column: str | None = None
    """Instead of `policy`: column of the scored rows with the judged policy's probability of the ad that was shown."""
    expected_column: str | None = None
    """With `policy_column`: column with the model's expected reward under the judged policy, for the direct method."""
    propensity_column: str | None = None
    """Column of the scored rows: the logging policy's probability of the ad that was shown. None: `propensity`, else
    `propensity_given_above`."""
    propensity_is: Literal["marginal", "given_above"] | None = None
    """marginal: the probability of the ad in its slot, whatever stood above. given_above: that given the ads of the slots
    above, as `adrec rank` and `serve` tell it; `position` counts the slots. None: given_above for `propensity_given_above`,
    else marginal."""
    slots: Annotated[int, Field(ge=1)] | None = None
    """Judge only these many slots from the top; None: all."""
    clip: Annotated[float, Field(gt=0)] = 10.0
    """Largest weight of clipped IPS; above it switch-DR trusts the model."""

    @model_validator(mode="after")
    def _one_policy(self) -> "OffPolicySettings":
        if (self.policy is None) == (self.policy_column is None):
            raise ValueError("give either `policy` (a RANKED table) or `policy_column`")
        if self.policy_column is not None and self.match_position:
            raise ValueError("`match_position` needs `policy` (a RANKED table)")
        if self.policy is not None and self.expected_column is not None:
            raise ValueError("`expected_column` goes with `policy_column`")
        return self


class DelayedLabels(Config):
    """Labels that come late: what counts, and which rows are old enough to be judged."""

    moments: dict[str, str] = {"click": "clicked_at", "conversion": "converted_at"}
    """Label and the column with the moment when it happened; those that the rows lack are passed over."""
    window_hours: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Attribution window: what comes later than this after the showing counts for nothing, and rows whose window has not
    passed are not judged. None: however late, and all rows are judged by what has come."""
    known_until: Moment | None = None
    """What happened then or later is not known. None: the last showing of the rows."""


class DriftSettings(Config):
    """What has changed from one log, or one bundle, to another, as `adrec inspect A --against B` tells it."""

    before: ConfigPath
    """Prepared folder, bundle or table, such as a split of a prepared folder (`prepared/impressions/train`)."""
    after: ConfigPath
    """A later one of the same kind."""
    least_psi: float = Field(0.1, ge=0)
    """The least PSI of a column that is called drifted; it must also be beyond chance."""
    least_change: float = Field(0.1, ge=0)
    """A label or score also drifts where its mean moves by this share of itself."""


class EvaluateConfig(OpensBundle, Seeded, Paged, OnCluster):
    """Judge scored or ranked rows by what happened. Reads `scored`; writes the folder `output`. No model is loaded."""

    scored: ConfigPath
    """SCORED or RANKED Parquet, a file or a folder of them."""
    output: ConfigPath | None = None
    """Folder for metrics.json and report.html; None: beside `scored`, named `<name>_evaluation`."""
    name: str | None = None
    """What the report calls this run; None: the name of the scored file or folder."""
    split: str = "test"
    """Which rows these are, for the record."""
    against: list[ConfigPath] = []
    """Other SCORED tables of the same rows, compared pair by pair."""
    labels: ConfigPath | None = None
    """Impressions with what happened, for tables that lack the labels; joined by request (else user) and ad."""
    ads: ConfigPath | None = None
    """ADS Parquet (or a prepared folder): texts in examples, category and language slices, advertisers, bids."""
    users: ConfigPath | None = None
    """USERS Parquet, for slices by declared user columns."""
    vectors: ConfigPath | None = None
    """Ad vectors written by `adrec encode` (`ad_id`, `vector`), for the diversity of lists."""
    training: ConfigPath | None = None
    """Bundle folder, for its fingerprints, learning curves, candidate recall and the ads' popularity in training."""
    importance: ConfigPath | None = None
    """Folder of `adrec explain --global`: the report draws what the model lives on."""
    tasks: list[TaskColumns] = []
    """Labels and their scores; empty: every label present, with `score` for the click and `score_<label>` for others."""
    probability_baselines: list[str] = ["smoothed_ctr", "logistic", "mlp", "lightgbm"]
    """Baselines whose scores are click probabilities, so that log loss and calibration mean something for them."""
    cutoffs: Annotated[list[Count], Field(min_length=1)] = [5, 10]
    """The k of nDCG@k, hit rate, precision, recall and MAP@k."""
    arms: str | None = None
    """Column that names the test (experiment, ad group, article) whose ads are compared pair by pair as its arms; None: the
    request of a log of counts, where it groups several ads. It may be any column of the scored table."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Score from which accuracy, precision, recall and F1 say yes."""
    bootstrap: BootstrapSettings = BootstrapSettings()
    """Intervals."""
    slices: SliceSettings = SliceSettings()
    """Slices."""
    alarms: AlarmSettings = AlarmSettings()
    """Alarms."""
    delay: DelayedLabels | None = None
    """Labels that come late; None: labels are what they are."""
    off_policy: OffPolicySettings | None = None
    """Off-policy evaluation; None: not asked for."""
    drift: DriftSettings | None = None
    """Tell what has changed in the data, as a section of the report."""
    report: bool = True
    """Write report.html."""

    @field_validator("cutoffs")
    @classmethod
    def _rising(cls, cutoffs: list[int]) -> list[int]:
        return sorted(set(cutoffs))
