"""Config of `adrec inspect`."""

from pydantic import Field

from adrec.config.base import ConfigPath, StageConfig


class InspectConfig(StageConfig):
    """Look at a prepared folder, a bundle or a table."""

    path: ConfigPath
    """Prepared folder, bundle, or table: one file or a folder of CSV, TSV, JSONL or Parquet files."""
    html: ConfigPath | None = None
    """Also write a page with plots to this file."""
    rows: int = Field(3, ge=0, le=100)
    """Rows to show of each table."""
