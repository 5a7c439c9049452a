"""Config of `adrec inspect`."""

from pydantic import Field

from adrec.config.base import ConfigPath, OpensBundle, Paged


class InspectConfig(OpensBundle, Paged):
    """Look at a prepared folder, a bundle or a table."""

    path: ConfigPath
    """Prepared folder, bundle, or table: one file or a folder of CSV, TSV, JSONL or Parquet files."""
    against: ConfigPath | None = None
    """Compare with this later one of the same kind: whether both are identical, which columns differ, what has drifted."""
    drift_psi: float = Field(0.1, ge=0)
    """With `against`: the least PSI of a column that is called drifted; it must also be beyond chance."""
    drift_mean: float = Field(0.1, ge=0)
    """With `against`: a label or score also drifts where its mean moves by this share of itself."""
    html: ConfigPath | None = None
    """Also write a page with plots to this file."""
    rows: int = Field(3, ge=0, le=100)
    """Rows to show of each table."""
