"""One self-contained page."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from adrec.stages.evaluation.rows import Rows

if TYPE_CHECKING:
    from adrec.stages.evaluate import EvaluateResult


def write_report(result: "EvaluateResult", rows: Rows, ads: pa.Table | None, path: Path) -> None:
    """Write the page."""
    path.write_text(result.name, encoding="utf-8")
