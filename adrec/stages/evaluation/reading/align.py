"""Line up another run's rows with the judged ones, so that a comparison is of the same impressions."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.errors import DataError
from adrec.stages.evaluation.reading.rows import Codes, Ints, Rows


def aligned(other: Rows, rows: Rows) -> Rows:
    """`other` in the order of `rows`, by `row_id` where both have it, else as it stands. Raises DataError on other rows."""
    if len(other) != len(rows):
        raise DataError(
            f"{other.path}: {len(other):,} rows, but {rows.path} has {len(rows):,}. Both runs must score the same impressions."
        )
    if "row_id" in rows and "row_id" in other:
        other = _take(other, _order(rows, other))
    for column in ("user_id", "ad_id", "request_id"):
        if column in rows and column in other:
            _check_same(rows, other, column)
    return other


def _order(rows: Rows, other: Rows) -> Ints:
    place = pc.index_in(rows.table["row_id"].combine_chunks(), value_set=other.table["row_id"].combine_chunks())
    if place.null_count:
        missing = rows.table["row_id"].filter(pc.is_null(place))[0].as_py()
        raise DataError(
            f"{other.path}: no row with row_id {missing} ({place.null_count:,} such rows of {rows.path})."
            " Both runs must score the same impressions."
        )
    return np.asarray(place.to_numpy(zero_copy_only=False), dtype=np.int64)


def _take(rows: Rows, order: Ints) -> Rows:
    if bool((order == np.arange(len(order))).all()):
        return rows

    def taken(codes: Codes) -> Codes:
        return replace(codes, codes=codes.codes[order])

    requests = None if rows.requests is None else taken(rows.requests)
    lone, unnamed = (None if mask is None else mask[order] for mask in (rows.lone, rows.unnamed))
    return replace(
        rows,
        table=rows.table.take(pa.array(order)),
        users=taken(rows.users),
        ads=taken(rows.ads),
        requests=requests,
        lone=lone,
        unnamed=unnamed,
    )


def _check_same(rows: Rows, other: Rows, column: str) -> None:
    same = pc.equal(rows.table[column].cast(pa.string()), other.table[column].cast(pa.string()))
    different = np.flatnonzero(~pc.fill_null(same, True).to_numpy())
    if len(different):
        row = int(different[0])
        raise DataError(
            f"{other.path}: row {row} has {column} '{other.table[column][row]}', but {rows.path} has"
            f" '{rows.table[column][row]}' ({len(different):,} such rows). Both runs must score the same impressions in order."
        )
