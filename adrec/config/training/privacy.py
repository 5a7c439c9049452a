"""The `privacy` section of finetune: how much the bundle may tell of a user, or of a row (docs/how-to/privacy.md)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from adrec.config.base import Config


class TrainingPrivacy(Config):
    """Differential privacy of all that the bundle holds. Needs `pip install 'adrec[privacy]'`."""

    epsilon: Annotated[float, Field(gt=0, le=1_000)]
    """The most that one unit may change the odds of any bundle, as a power of e: 1 is strong, 8 weak."""
    delta: Annotated[float, Field(gt=0, lt=0.1)] = 1e-6
    """The chance that epsilon does not hold: well below one over the number of units."""
    unit: Literal["user", "row", "label"] = "user"
    """Who is protected: user: all that one user did. row: one prepared row, while users with many rows are protected less.
    label: only what a row's labels say (was it clicked?); who was there, and what he was shown, anyone may know."""
    clip: Annotated[float, Field(gt=0)] | Literal["adaptive"] = "adaptive"
    """Largest norm of a unit's gradient. adaptive: follows the norms so that misses and nine clicks in ten stay whole, of users
    nine in ten (Andrew et al. 2021): a clip that cuts all clicks teaches that nobody clicks."""
    max_rows_per_user: Annotated[int, Field(ge=1, le=100_000)] = 32
    """With unit user: rows of one user that one step reads, drawn anew each time."""
    units_per_step: Annotated[int, Field(ge=1)] | None = None
    """Units of a step, on average; each takes part by its own draw. None: `training.batch_rows` for rows, an eighth of it for
    users; more where the passes would take more than 200 steps; at most a tenth of all. More of them stand out better from the
    noise."""
    noise: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Deviations of the noise over the clip; auto: the least that epsilon allows. Too little is refused."""
    text_width: Annotated[int, Field(ge=1, le=1_000_000)] | None = 32
    """Texts are read along so many main directions of the ads' texts, which are public: every weight costs noise, and 384
    numbers a text cost twelve times those of 32. None: all numbers of the encoder."""
    statistics: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = "auto"
    """Part of epsilon that vocabularies, scales, rates and calibration may cost by themselves. Together with the training it
    takes far less than this part away: noise adds up in squares. auto: a tenth, or as much more, up to a half, as a rate of
    clicks that holds needs where units are few."""
    accountant: Literal["rdp", "prv"] = "rdp"
    """rdp: a proven bound. prv: numerical, some percent less noise; counts the discrete Gaussian as the continuous one."""
    counts: bool = False
    """Keep how often each ad was shown and clicked, noised, for retrieval by popularity; else every ad counts nothing."""
    public: list[str] = []
    """What tells nothing of a person, on your word: `encoder` (it learned no texts of users), `metrics` (validation figures may
    stand in the bundle), `ads` (which ads a log names that has no table of them), or columns of users and impressions whose
    values and scale anyone may know, as `scenario`. A counter that is named here is read although it counts other users. With
    unit label: `history` (earlier clicks), and counters of clicks."""
    bounds: dict[str, tuple[float, float]] = {}
    """Numeric column → its usual lowest and highest value, which anyone may know: then its scale costs nothing."""
    secure: bool = True
    """Randomness of the operating system, which cannot be repeated. false: of the seed, for tests; protects nothing."""

    @model_validator(mode="after")
    def _bounded(self) -> "TrainingPrivacy":
        for column, (low, high) in self.bounds.items():
            if not low < high:
                raise ValueError(f"bounds: {column} goes from {low:g} to {high:g}; the first must be less")
        return self


class PretrainPrivacy(Config):
    """Differential privacy of all that the encoder folder tells of what users wrote. Needs `pip install 'adrec[privacy]'`."""

    epsilon: Annotated[float, Field(gt=0, le=1_000)]
    """The most that one user's texts may change the odds of any encoder, as a power of e: 1 is strong, 8 weak."""
    delta: Annotated[float, Field(gt=0, lt=0.1)] = 1e-6
    """The chance that epsilon does not hold: well below one over the number of users."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of a user's gradient."""
    users_per_step: Annotated[int, Field(ge=1)] | None = None
    """Users of a step, on average; each takes part by a draw of his own. None: 256, at most a tenth of all."""
    users_at_once: Annotated[int, Field(ge=1)] = 32
    """Users that go through the network together: memory alone."""
    noise: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Deviations of the noise over the clip; auto: the least that epsilon allows. Too little is refused."""
    accountant: Literal["rdp", "prv"] = "rdp"
    """rdp: a proven bound. prv: numerical, some percent less noise."""
    public: list[Literal["tokenizer", "ads"]] = []
    """`tokenizer`: the prepared folder's, which counted what users wrote, may be known. A model from scratch needs it. `ads`:
    which ads a log names that has no table of them."""
    secure: bool = True
    """Randomness of the operating system, which cannot be repeated. false: of the seed, for tests; protects nothing."""
