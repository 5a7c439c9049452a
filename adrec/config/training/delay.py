"""What is done about labels that come late. A section of the finetune config."""

from typing import Annotated, Literal

from pydantic import Field

from adrec.config.base import Config


class DelaySettings(Config):
    """Conversions that have not come yet, for every binary task whose label has a moment of its own (`history.converted_at`
    and `clicked_at` of the preprocess config)."""

    method: Literal["none", "wait", "dfm", "es_dfm", "fnw"] = "none"
    """none: what has not come yet is learned as never coming. wait: rows younger than `wait_hours` are left out. dfm: delays
    are learned too (Chapelle 2014). es_dfm: rows enter after `wait_hours`, later conversions once more, reweighted (Yang et
    al. 2021). fnw: every row enters as a negative, conversions once more, reweighted (Ktena et al. 2019). All but none also
    make up for what is still to come where probabilities are calibrated."""
    window_hours: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Attribution window: what comes later than this after the showing counts for nothing. None: however late, as far as the
    log can tell."""
    wait_hours: Annotated[float, Field(gt=0, le=10_000)] = 24.0
    """How long `wait` and `es_dfm` watch a row before it enters."""

    @property
    def is_timed(self) -> bool:
        """Whether the moments of labels count."""
        return self.method != "none" or self.window_hours is not None
