"""Labels that come late, in evaluation: what is known by a moment, which rows are old enough to be judged, and the level of all
rows against what has come by now."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.config.evaluation.evaluate import DelayedLabels, TaskColumns
from adrec.data.arrays import combined
from adrec.data.labels import ELAPSED, LabelCut, delay_column
from adrec.errors import DataError
from adrec.metrics.delays import fit_delay_curve
from adrec.stages.evaluation.reading.rows import Floats, Rows


@dataclass(frozen=True)
class Lateness:
    """What is known of one label."""

    rows: int
    """of the table"""
    judged: int
    """of them, those whose window has passed; all without a window"""
    come: int
    """labels of 1 by now, in all rows"""
    seen: float
    """the share of what these rows will bring that has come by now, on average, by the delays that the rows show"""
    predicted_over_come: float
    """sum of score times the share that should have come of it by now, over what has come: 1 is right, in all rows"""

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        return dict(self.__dict__)

    def line(self, label: str) -> str:
        """For people."""
        return (
            f"{label}: {self.come:,} by now in {self.rows:,} rows, about {self.seen:.0%} of what will come. Predicted by now / "
            f"observed: {self.predicted_over_come:.3f}. {self.judged:,} rows are old enough to be judged."
        )


def known_by(rows: Rows, settings: DelayedLabels, tasks: Sequence[TaskColumns]) -> tuple[Rows, dict[str, Lateness]]:
    """The rows with labels as they were known then, null where the window has not passed; and what is known of each label
    that `settings` gives a moment. Raises DataError where none has one, or rows have no shown_at."""
    table = rows.table
    moments = {label: column for label, column in settings.moments.items() if label in rows and column in rows}
    if not moments or "shown_at" not in rows:
        raise DataError(
            f"{rows.path}: delay needs shown_at and the moment of a label ({', '.join(settings.moments.values())}). "
            f"Name them in delay.moments, or leave delay out. Columns: {', '.join(rows.columns[:12])}."
        )
    moment = settings.known_until or pc.max(table["shown_at"]).as_py()
    timed = LabelCut(moment, moments, settings.window_hours, timed=True).apply(table)
    elapsed = _floats(timed[ELAPSED])
    young = np.zeros(len(rows), bool) if settings.window_hours is None else elapsed < settings.window_hours
    score_of = {task.label: task.score for task in tasks}
    late: dict[str, Lateness] = {}
    for label in moments:
        values = _floats(timed[label])
        if label in score_of:
            scores, delay = rows.numbers(score_of[label]), _floats(timed[delay_column(label)])
            late[label] = _lateness(values, scores.astype(np.float64), delay, elapsed, young, settings.window_hours)
        place = table.schema.get_field_index(label)
        old = pa.array(np.where(young, np.nan, values), from_pandas=True)
        table = table.set_column(place, label, old)
    return replace(rows, table=table), late


def _lateness(
    labels: Floats, scores: Floats, delay: Floats, elapsed: Floats, young: NDArray[np.bool_], window_hours: float | None
) -> Lateness:
    known = ~np.isnan(labels)
    happened = known & (labels == 1)
    share = fit_delay_curve(delay[happened], elapsed[happened], window_hours).by(elapsed)
    come = float(labels[known].sum())
    return Lateness(
        rows=int(known.sum()),
        judged=int((known & ~young).sum()),
        come=int(come),
        seen=float(np.average(share[known], weights=scores[known])),
        predicted_over_come=float((share * scores)[known].sum() / come) if come else float("nan"),
    )


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(pc.cast(combined(column), pa.float64()).to_numpy(zero_copy_only=False))
