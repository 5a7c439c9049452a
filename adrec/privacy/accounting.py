"""How much privacy a list of Gaussian mechanisms costs together, and how much noise a budget asks for. By Opacus' accountants.

An event is `steps` times the Gaussian mechanism of `noise` deviations a unit of L2 sensitivity, on a Poisson sample of `rate`.
Neighbours differ by one unit added or removed. Costs a second or less.
"""

import logging
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from adrec.errors import ConfigError, ResourceError

Accountant = Literal["rdp", "prv"]
_ORDERS = [*(1.0 + step / 10.0 for step in range(1, 100)), *range(11, 64), *(round(64 * 2 ** (step / 4)) for step in range(24))]
"""Whole where they are large: between them Opacus' series breaks off and falls below 0 (order 152.2, rate .214, noise 7.5)."""
_MOST_NOISE = 1e5
_PRECISION = 1e-3


class Event(NamedTuple):
    """A Gaussian mechanism, so many times."""

    noise: float
    """deviations of the noise over the L2 sensitivity"""
    rate: float = 1.0
    """of the Poisson sample that each time looks at; 1 is everybody"""
    steps: int = 1


def epsilon_of(events: Sequence[Event], delta: float, accountant: Accountant = "rdp") -> float:
    """The smallest epsilon, by that accountant, at which all `events` together are (epsilon, `delta`) private.

    rdp: Renyi divergences (Mironov 2017; sampled: Mironov, Talwar and Zhang 2019), with the conversion of Balle et al. 2020.
    prv: numerical composition of privacy loss variables (Gopi, Lee and Wutschitz 2021), the upper end of its bracket.
    """
    if not events:
        return 0.0
    prv = _prv()
    with warnings.catch_warnings():  # that the best order is an end of the range: it is a bound all the same
        warnings.simplefilter("ignore")
        if accountant == "rdp":
            return _by_divergences(events, delta)
        prv.history = [(event.noise, event.rate, event.steps) for event in events]
        return float(prv.get_epsilon(delta, eps_error=_PRECISION * 5, delta_error=delta / 1000))


def noise_for(
    epsilon: float,
    delta: float,
    *,
    rate: float = 1.0,
    steps: int = 1,
    beside: Sequence[Event] = (),
    accountant: Accountant = "rdp",
) -> float:
    """The least noise (within a thousandth) at which `steps` times that mechanism, `beside` other events, stay in the budget.

    Raises ConfigError where no noise is enough, since the other events use it up.
    """

    def cost(noise: float) -> float:
        return epsilon_of([*beside, Event(noise, rate, steps)], delta, accountant)

    low, high = 0.05, 1.0
    while cost(high) > epsilon:
        low, high = high, 2.0 * high
        if high > _MOST_NOISE:
            raise ConfigError(f"privacy: no noise keeps {steps:,} steps within epsilon {epsilon:g}. Raise privacy.epsilon.")
    while high / low > 1.0 + _PRECISION:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if cost(middle) > epsilon else (low, middle)
    return high


def _by_divergences(events: Sequence[Event], delta: float) -> float:
    """Over the orders that can be computed: a divergence is finite, not negative and never falls with its order."""
    from opacus.accountants.analysis import rdp

    total, sound = np.zeros(len(_ORDERS)), np.ones(len(_ORDERS), bool)
    for event in events:
        own = np.atleast_1d(rdp.compute_rdp(q=event.rate, noise_multiplier=event.noise, steps=event.steps, orders=_ORDERS))
        largest = np.maximum.accumulate(np.where(np.isfinite(own), own, 0.0))
        sound &= np.isfinite(own) & (own >= 0.0) & (own >= largest * (1.0 - 1e-6))
        total += np.where(sound, own, 0.0)
    epsilon, _ = rdp.get_privacy_spent(orders=np.array(_ORDERS)[sound], rdp=total[sound], delta=delta)
    return max(0.0, float(epsilon))


def _prv() -> Any:
    try:
        from opacus.accountants import PRVAccountant
    except ImportError:
        raise ResourceError("privacy.epsilon needs Opacus' accountants. Run: pip install 'adrec[privacy]'") from None
    logging.getLogger("opacus").setLevel(logging.ERROR)
    return PRVAccountant()
