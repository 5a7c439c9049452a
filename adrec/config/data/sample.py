"""Config of `adrec sample`: how much of the built-in world to write, and where."""

from pydantic import Field

from adrec.config.base import ConfigPath, Seeded


class SampleConfig(Seeded):
    """A seeded world of bilingual ads, users and clicks with known click probabilities (docs/data/sample.md)."""

    output: ConfigPath
    """Folder to write: ads.parquet, users.parquet and impressions/part-*.parquet."""
    impressions: int = Field(30_000, ge=1, le=1_000_000_000)
    """Rows of the log; ads and users grow with it."""
    conversion_delay: float = Field(1.0, gt=0, le=100)
    """How many times later than usual conversions come: the median is 8 hours at 1, 24 at 3."""
    conversion_delay_by_price: float = Field(0.0, ge=-3, le=3)
    """By how much more dear ads wait: log of the median delay for each standard deviation of the price."""
    pictures: float = Field(0.0, ge=0, le=1)
    """Share of the ads whose picture is drawn. Above 0 what ads look like decides clicks, too: no word tells it."""
    sounds: float = Field(0.0, ge=0, le=1)
    """Share of the ads whose sound is played. Above 0 what ads sound like decides clicks, too: no word tells it."""
    graph: float = Field(0.0, ge=0, le=1)
    """Share of the ads whose links are written. Above 0 what their makers belong to decides clicks, too: no word tells it."""
