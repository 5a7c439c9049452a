"""How long a private training is and how much noise it takes: fixed before it begins, the same for rows, users and texts."""

from collections.abc import Sequence
from dataclasses import dataclass

from adrec.config.training.loop import TrainingConfig
from adrec.config.training.privacy import PretrainPrivacy, TrainingPrivacy
from adrec.errors import ConfigError
from adrec.privacy.accounting import Event, epsilon_of, noise_for


@dataclass(frozen=True)
class Schedule:
    """How often who takes part, and under how much noise."""

    rate: float
    steps: int
    noise: float

    @property
    def event(self) -> Event:
        """As the accountant sees it."""
        return Event(self.noise, self.rate, self.steps)


def schedule_within(
    privacy: TrainingPrivacy | PretrainPrivacy,
    training: TrainingConfig,
    *,
    rate: float,
    delta: float,
    beside: Sequence[Event] = (),
) -> Schedule:
    """As many steps as `training` says, a unit taking part at `rate`, under such noise that they and `beside` stay in epsilon.

    `delta`: what the accountant may spend. Raises ConfigError where `privacy.noise` is too little.
    """
    steps = max(1, round(training.epochs / rate))
    steps = min(steps, training.max_steps or steps)
    if privacy.noise == "auto":
        noise = noise_for(privacy.epsilon, delta, rate=rate, steps=steps, beside=beside, accountant=privacy.accountant)
        return Schedule(rate, steps, noise)
    spent = epsilon_of([*beside, Event(privacy.noise, rate, steps)], delta, privacy.accountant)
    if spent > privacy.epsilon:
        raise ConfigError(
            f"privacy.noise {privacy.noise:g} costs an epsilon of {spent:.3g} over {steps:,} steps, more than privacy.epsilon"
            f" {privacy.epsilon:g}. Set it to auto, or lower training.epochs."
        )
    return Schedule(rate, steps, privacy.noise)
