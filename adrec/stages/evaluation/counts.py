"""Rows that stand for many impressions: their weights, and what is drawn when intervals are made of them.

The impressions of a log of counts are binomial inside a row, and rows of one ad (or of one test, whose arms share a page and a
day) differ together. So what is drawn with replacement is the ad, or the test where a column names tests: whole, with its rows
and their noise. Fewer than LEAST_UNITS of them cannot stand for others; then the counts themselves are drawn, and an interval
says how sure the figures of these ads are, not those of further ones.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adrec.errors import DataError
from adrec.metrics.ties import group_codes
from adrec.schema import WEIGHT
from adrec.stages.evaluation.reading.rows import AnyInts, Floats, Ints, Rows, encode

LEAST_UNITS = 20
"""Ads or tests that can stand for others."""


@dataclass(frozen=True)
class Units:
    """What is drawn of N rows."""

    name: str
    """ads, tests, or counts"""
    codes: AnyInts
    """(N,) in [0, count)"""
    count: int
    counts: Floats | None = None
    """(U,) of the units, where they are counts"""


def weights_of(rows: Rows) -> Floats | None:
    """(N,) impressions of each row, None where each row is one. Raises DataError naming a row that stands for none."""
    if WEIGHT not in rows:
        return None
    weights = np.asarray(rows.numbers(WEIGHT), dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))
    if len(bad):
        raise DataError(
            f"{rows.path}: column '{WEIGHT}', row {bad[0]}: {weights[bad[0]]:g} is no number of impressions "
            f"({len(bad):,} such rows). Write a number above 0, or give the column another name."
        )
    return weights


def tests_of(rows: Rows, column: str | None) -> AnyInts | None:
    """(N,) the test that each row's ad is an arm of: by `column`, else by request where any request of counts has several ads.

    Raises DataError for a column that is not there. None where there are no tests.
    """
    if column is not None:
        if column not in rows:
            raise DataError(f"{rows.path}: column '{column}' (arms) is missing. Columns: {', '.join(rows.columns[:12])}.")
        return encode(rows.table[column]).codes
    if WEIGHT not in rows or rows.requests is None:
        return None
    arms = len(np.unique(rows.requests.codes.astype(np.int64) * len(rows.ads) + rows.ads.codes))
    return rows.requests.codes if arms > len(rows.requests) else None


def units_of(ads: AnyInts, tests: AnyInts | None, weights: Floats) -> Units:
    """What to draw of rows with these ads, tests and weights, (N,) each."""
    for name, codes in (("tests", tests), ("ads", ads)):
        if codes is not None:
            own, count = group_codes(codes)
            if count >= LEAST_UNITS:
                return Units(name, own, count)
    rows: Ints = np.arange(len(weights), dtype=np.int64)
    return Units("counts", rows, len(rows), np.asarray(weights))


def repeated(values: npt.NDArray[np.generic], weights: Floats | None) -> Floats:
    """`values` (N,) as often as each row counts."""
    return np.asarray(values, dtype=np.float64) if weights is None else np.asarray(values, dtype=np.float64) * weights
