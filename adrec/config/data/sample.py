"""Config of `adrec sample`: how much of the built-in world to write, and where."""

from pydantic import Field

from adrec.config.base import ConfigPath, Seeded


class SampleConfig(Seeded):
    """A seeded world of bilingual ads, users and clicks with known click probabilities (docs/data/sample.md)."""

    output: ConfigPath
    """Folder to write: ads.parquet, users.parquet and impressions/part-*.parquet."""
    impressions: int = Field(30_000, ge=1, le=1_000_000_000)
    """Rows of the log; ads and users grow with it."""
    pictures: float = Field(0.0, ge=0, le=1)
    """Share of the ads whose picture is drawn. Above 0 what ads look like decides clicks, too: no word tells it."""
