"""Between requests and the ranker: named candidates as rows, and ranked blocks as plain values to write out."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from adrec.data.arrays import combined
from adrec.inference.lists.ranker import Block, Ranker
from adrec.schema import CONVERSION_SCORE, PROPENSITY_GIVEN_ABOVE

Answer = dict[str, Any]
"""As messages.py describes it, in plain values: checking what we made ourselves would cost more than writing it out."""


def given_ads(candidates: list[list[int]]) -> np.ndarray:
    """(R, C) rows of the named ads, -1 behind the last; at least one column."""
    given = np.full((len(candidates), max(1, *map(len, candidates))), -1, np.int64)
    for line, rows in enumerate(candidates):
        given[line, : len(rows)] = rows
    return given


def lists_of(ranker: Ranker, block: Block) -> list[list[Answer]]:
    """The ads of each request of the block, in order."""
    table = ranker.table(block)
    row, _ = block.shown
    names = ("ad_id", "rank", "score", "value", "price", PROPENSITY_GIVEN_ABOVE, "reason")
    columns = {name: combined(table[name]).tolist() for name in names}
    conversion = ranker.predictor.packed.conversion_column
    columns[CONVERSION_SCORE] = combined(table[conversion]).tolist() if conversion is not None else [None] * len(table)
    shown = block.ranked.ad[block.shown]
    columns["title"] = ranker.ads.titles.take(pa.array(shown)).tolist()
    columns["bid"] = pa.array(ranker.ads.bid[shown], from_pandas=True).tolist()  # NaN is no bid
    ads = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    ends = np.searchsorted(row, np.arange(len(block.requests) + 1)).tolist()
    return [ads[start:end] for start, end in pairwise(ends)]
