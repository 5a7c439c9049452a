"""The click rate of an ad's section: what somebody who sees nothing but the section would promise."""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from adrec.models.baselines.base import Floats, Inputs, load_state, save_state

SECTION = "category"


class SectionRate:
    """(clicks + 20 r) / (impressions + 20) of the section, r being the rate of all rows."""

    name: ClassVar[str] = "section_rate"
    is_probability: ClassVar[bool] = True

    def __init__(self, rates: Floats | None = None) -> None:
        self.rates = np.zeros(0, np.float32) if rates is None else rates

    @classmethod
    def lacks(cls, inputs: Inputs) -> str:
        """The section must be a feature of the ads."""
        return "" if SECTION in inputs.columns.ad_categorical else f"no ad feature '{SECTION}'"

    def fit(self, inputs: Inputs, valid: Inputs | None = None, *, seed: int = 0) -> None:
        """Count."""
        rows = inputs.labelled()
        sections = _sections(rows)
        shown = np.bincount(sections)
        overall = rows.clicks.mean()
        self.rates = ((np.bincount(sections, weights=rows.clicks) + 20 * overall) / (shown + 20)).astype(np.float32)

    def score(self, inputs: Inputs) -> Floats:
        """(N,) the rate of each row's section; code 0, a section that training did not know, has one, too."""
        return self.rates[np.minimum(_sections(inputs), len(self.rates) - 1)]

    def save(self, folder: Path) -> None:
        """Arrays without pickle: opening a bundle must not run code."""
        save_state(folder, {}, {"rates": self.rates})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From `save`."""
        return cls(load_state(folder)[1]["rates"])


def _sections(inputs: Inputs) -> np.ndarray:
    column = inputs.columns.ad_categorical.index(SECTION)
    return inputs.ads.categorical[:, column][inputs.examples.ad_index]
