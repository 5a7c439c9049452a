"""Labels as of a cut: what a trainer knew when the next part of the log began. One function, for every reader that trains.

The prepared rows keep what happened in the end, for measuring. A conversion that came after the cut is, at the cut, a row
without one; so is a click whose moment is its own. What comes later than an attribution window never counts.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.schema import TIMESTAMP

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)

ELAPSED = "_elapsed_hours"
"""Column of `timed` cuts: hours from the showing to the cut."""
_HOUR = 3_600_000_000


def delay_column(label: str) -> str:
    """Column of `timed` cuts: hours from the showing to what `label` says happened; null where it has not."""
    return f"_delay_hours_{label}"


@dataclass(frozen=True)
class LabelCut:
    """What is known at `moment`."""

    moment: datetime
    """aware, UTC: what happened then or later is not known"""
    columns: Mapping[str, str]
    """label → the column with the moment when it happened; labels without one are known when the ad is shown"""
    window_hours: float | None = None
    """what happened later than this after the showing counts for nothing; None: however late"""
    timed: bool = False
    """tell the time that has passed, and the delay of each label, in columns of their own"""

    def apply(self, rows: Rows) -> Rows:
        """`rows` with 0 for every label that came later. Labels or moments that `rows` lack are left alone."""
        cut = pa.scalar(self.moment, TIMESTAMP)
        shown = _microseconds(rows.column("shown_at")) if self.timed or self.window_hours is not None else None
        for label, column in self.columns.items():
            if label in rows.schema.names and column in rows.schema.names:
                place = rows.schema.get_field_index(label)
                values = rows.column(label)
                later = pc.fill_null(pc.greater_equal(rows.column(column), cut), False)
                delay = None if shown is None else pc.subtract(_microseconds(rows.column(column)), shown)
                if self.window_hours is not None:
                    too_late = pc.greater(delay, pa.scalar(round(self.window_hours * _HOUR), pa.int64()))
                    later = pc.or_(later, pc.fill_null(too_late, False))
                known = pc.if_else(pc.and_(later, pc.fill_null(pc.equal(values, 1), False)), pa.scalar(0, values.type), values)
                rows = rows.set_column(place, rows.schema.field(place), known)
                if self.timed:
                    happened = pc.fill_null(pc.equal(known, 1), False)
                    rows = rows.append_column(delay_column(label), _hours(pc.if_else(happened, delay, None)))
        if self.timed:
            rows = rows.append_column(ELAPSED, _hours(pc.subtract(pa.scalar(_at(self.moment), pa.int64()), shown)))
        return rows

    def reads(self, labels: Collection[str]) -> list[str]:
        """The columns beside `labels` themselves that tell what of them was known."""
        shown = ["shown_at"] if self.timed or self.window_hours is not None else []
        return [*(column for label, column in self.columns.items() if label in labels), *shown]

    def timing(self, window_hours: float | None) -> "LabelCut":
        """The same cut, which tells times and knows of an attribution window."""
        return replace(self, window_hours=window_hours, timed=True)


def labels_as_of(rows: Rows, cut: LabelCut | None) -> Rows:
    """See LabelCut.apply; without a cut every label stays."""
    return rows if cut is None else cut.apply(rows)


def _microseconds(moments: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.cast(pc.cast(moments, TIMESTAMP), pa.int64())


def _at(moment: datetime) -> int:
    return int(np.datetime64(moment.replace(tzinfo=None), "us").astype(np.int64))


def _hours(microseconds: pa.ChunkedArray) -> pa.ChunkedArray:
    """Never below 0: what is said to have happened before the showing happened at once."""
    hours = pc.divide(pc.cast(microseconds, pa.float64()), float(_HOUR))
    return pc.cast(pc.max_element_wise(hours, 0.0, skip_nulls=False), pa.float32())
