"""Config of `adrec compare`: which runs stand side by side, by which metrics."""

from typing import Annotated

from pydantic import Field

from adrec.config.base import ConfigPath, Paged


class CompareConfig(Paged):
    """Put runs side by side. Reads the metrics.json of each; writes `output` where one is given."""

    runs: Annotated[list[ConfigPath], Field(min_length=1)]
    """Evaluation or bundle folders, their metrics.json, or folders with any of them below."""
    task: str | None = None
    """Which label; None: the first one that all runs have."""
    metrics: Annotated[list[str], Field(min_length=1)] = [
        "auc",
        "auc_request",
        "auc_user",
        "ndcg@10",
        "log_loss",
        "predicted_over_observed",
    ]
    """Columns; those that no run has are left out."""
    sort: str | None = None
    """Metric to sort by, best first; None: the first column."""
    output: ConfigPath | None = None
    """JSON file with the table, for other tools."""
    html: ConfigPath | None = None
    """Also write a page to this file."""
