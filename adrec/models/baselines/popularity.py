"""Baselines that know only the ad: how often it was clicked, its smoothed click rate, its click rate so far."""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import betaln

from adrec.metrics.ranking import mrr
from adrec.models.baselines.base import (
    Floats,
    Inputs,
    LacksNothing,
    Unfitted,
    load_state,
    looked_up,
    positions,
    save_state,
    text_array,
)
from adrec.schema import COUNTER_PREFIX


class Popularity(LacksNothing):
    """log(1 + training clicks of the ad); 0 for an ad never clicked."""

    name: ClassVar[str] = "popularity"
    is_probability: ClassVar[bool] = False

    def __init__(self, ids: NDArray[np.str_] | None = None, clicks: NDArray[np.float64] | None = None) -> None:
        self.ids = np.zeros(0, np.str_) if ids is None else ids
        self.clicks = np.zeros(0) if clicks is None else clicks

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Count."""
        self.ids, _, self.clicks = ad_totals(inputs)

    def score(self, inputs: Inputs) -> Floats:
        """(N,) log(1 + clicks)."""
        by_ad = looked_up(np.log1p(self.clicks), positions(inputs.ads.ids, self.ids), 0.0)
        return by_ad[inputs.examples.ad_index]

    def save(self, folder: Path) -> None:
        """Ids and counts."""
        save_state(folder, {}, {"ids": self.ids, "clicks": self.clicks})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        arrays = load_state(folder)[1]
        return cls(arrays["ids"], arrays["clicks"])


class SmoothedCtr(LacksNothing):
    """Posterior mean click rate of the ad, (clicks + a) / (impressions + a + b), under a beta prior fitted to all ads.

    An ad never shown gets the prior mean a / (a + b). Wang, Li, Cui, Zhang and Mao 2011, "Click-through rate estimation for
    rare events in online advertising"; the prior by Minka's fixed point.
    """

    name: ClassVar[str] = "smoothed_ctr"
    is_probability: ClassVar[bool] = True

    def __init__(
        self,
        ids: NDArray[np.str_] | None = None,
        impressions: NDArray[np.float64] | None = None,
        clicks: NDArray[np.float64] | None = None,
        prior: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.ids = np.zeros(0, np.str_) if ids is None else ids
        self.impressions = np.zeros(0) if impressions is None else impressions
        self.clicks = np.zeros(0) if clicks is None else clicks
        self.prior = prior

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Count, then fit the prior."""
        self.ids, self.impressions, self.clicks = ad_totals(inputs)
        self.prior = fit_beta_prior(self.clicks, self.impressions)

    def score(self, inputs: Inputs) -> Floats:
        """(N,) probabilities."""
        a, b = self.prior
        rates = (self.clicks + a) / (self.impressions + a + b)
        return looked_up(rates, positions(inputs.ads.ids, self.ids), a / (a + b))[inputs.examples.ad_index]

    def save(self, folder: Path) -> None:
        """Ids, counts and the prior."""
        arrays = {"ids": self.ids, "impressions": self.impressions, "clicks": self.clicks}
        save_state(folder, {"prior": list(self.prior)}, arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        values, arrays = load_state(folder)
        a, b = values["prior"]
        return cls(arrays["ids"], arrays["impressions"], arrays["clicks"], (float(a), float(b)))


class ItemRate(Unfitted):
    """Smoothed click rate of the ad up to the moment of the impression: the preprocessed point-in-time counter as it stands."""

    name: ClassVar[str] = "item_rate"
    is_probability: ClassVar[bool] = False
    column: ClassVar[str] = f"{COUNTER_PREFIX}ad_rate"

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """The counter of the ad's click rate."""
        return "" if cls.column in inputs.columns.numeric else f"the impression feature '{cls.column}'"

    def score(self, inputs: Inputs) -> Floats:
        """(N,) the standardised counter."""
        return inputs.examples.numeric[:, inputs.columns.numeric.index(self.column)]


class RecentPopularity:
    """Clicks of the ad up to the moment, older ones faded: the point-in-time counter as it stands, of the half-life whose order
    puts the validation clicks highest."""

    name: ClassVar[str] = "recent_popularity"
    is_probability: ClassVar[bool] = False

    def __init__(self, column: str = "") -> None:
        self.column = column

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """A counter of the ad's clicks that fades."""
        return "" if _fading(inputs) else f"an impression feature '{COUNTER_PREFIX}ad_clicks_<hours>h'"

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Choose the counter."""
        judged = (valid if valid is not None else inputs).labelled()
        found = {
            column: mrr(judged.clicks, judged.examples.numeric[:, place].astype(np.float64), judged.examples.request)
            for column, place in _fading(inputs).items()
        }
        self.column = max(found, key=lambda column: np.nan_to_num(found[column]))

    def score(self, inputs: Inputs) -> Floats:
        """(N,) the standardised counter."""
        return inputs.examples.numeric[:, inputs.columns.numeric.index(self.column)]

    def save(self, folder: Path) -> None:
        """The counter's name."""
        save_state(folder, {"column": self.column})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        values, _ = load_state(folder)
        return cls(str(values["column"]))


def _fading(inputs: Inputs) -> dict[str, int]:
    """Counters of the ad's clicks with a half-life, and their places among the numeric features."""
    prefix = f"{COUNTER_PREFIX}ad_clicks_"
    return {name: place for place, name in enumerate(inputs.columns.numeric) if name.startswith(prefix)}


def ad_totals(inputs: Inputs) -> tuple[NDArray[np.str_], NDArray[np.float64], NDArray[np.float64]]:
    """Identifiers, impressions and clicks of every ad shown in rows with a known click."""
    known = inputs.labelled()
    index, count = known.examples.ad_index, len(known.ads)
    w = known.weights
    impressions = np.bincount(index, w, count).astype(np.float64)
    clicks = np.bincount(index, known.clicks if w is None else w * known.clicks, count).astype(np.float64)
    shown = np.flatnonzero(impressions)
    return text_array(inputs.ads.ids.take(shown)), impressions[shown], clicks[shown]


def fit_beta_prior(clicks: NDArray[np.float64], impressions: NDArray[np.float64]) -> tuple[float, float]:
    """(a, b) of a beta prior, given clicks out of impressions of each ad: its mean is the rate of all impressions, its strength
    a + b (0.01 to 1e6) the likeliest.

    The mean is not left to the likelihood: an average over ads, it is ruled by those with a few impressions and one click, and
    gave ads that nobody had seen twenty times the clicks they got.
    """
    pairs, weight = np.unique(np.stack([clicks, impressions], axis=1), axis=0, return_counts=True)
    k, n = pairs[:, 0], pairs[:, 1]
    rate = float((k @ weight + 0.5) / (n @ weight + 1.0))

    def cost(log_strength: float) -> float:
        a, b = rate * np.exp(log_strength), (1 - rate) * np.exp(log_strength)
        return -float(weight @ (betaln(k + a, n - k + b) - betaln(a, b)))

    strength = float(np.exp(minimize_scalar(cost, bounds=(np.log(0.01), np.log(1e6)), method="bounded").x))
    return rate * strength, (1 - rate) * strength
