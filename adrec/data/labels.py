"""Labels as of a cut: what a trainer knew when the next part of the log began. One function, for every reader that trains.

The prepared rows keep what happened in the end, for measuring. A conversion that came after the cut is, at the cut, a row
without one; so is a click whose moment is its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from adrec.schema import TIMESTAMP

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


@dataclass(frozen=True)
class LabelCut:
    """What is known at `moment`."""

    moment: datetime
    """aware, UTC: what happened then or later is not known"""
    columns: Mapping[str, str]
    """label → the column with the moment when it happened; labels without one are known when the ad is shown"""

    def apply(self, rows: Rows) -> Rows:
        """`rows` with 0 for every label that came later. Labels or moments that `rows` lack are left alone."""
        cut = pa.scalar(self.moment, TIMESTAMP)
        for label, column in self.columns.items():
            if label in rows.schema.names and column in rows.schema.names:
                place = rows.schema.get_field_index(label)
                values = rows.column(label)
                later = pc.fill_null(pc.greater_equal(rows.column(column), cut), False)
                known = pc.if_else(pc.and_(later, pc.fill_null(pc.equal(values, 1), False)), pa.scalar(0, values.type), values)
                rows = rows.set_column(place, rows.schema.field(place), known)
        return rows


def labels_as_of(rows: Rows, cut: LabelCut | None) -> Rows:
    """See LabelCut.apply; without a cut every label stays."""
    return rows if cut is None else cut.apply(rows)
