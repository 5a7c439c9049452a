"""From requests to (request, ad) pairs, and what the training rows and histories say about ads and categories."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.data.arrays import Longs, places
from adrec.data.examples import Examples
from adrec.data.features import FeatureArrays
from adrec.data.ragged import Ragged
from adrec.inference.catalogs import Catalogs
from adrec.inference.known import Known
from adrec.inference.lists.catalogue import AdColumns
from adrec.inference.predictor import Predictor
from adrec.ranking.arrays import Floats, Ints
from adrec.schema import COUNTER_PREFIX


def pair_examples(examples: Examples, row: Ints, ad: Ints, features: FeatureArrays | None) -> Examples:
    """Examples of N (request, ad) pairs; `features` replace those of the requests where given."""
    pairs = replace(examples.take(row), ad_index=ad.astype(np.int32), request=row.astype(np.int32), labels={})
    if features is not None:
        lists = {name: Ragged(offsets, values) for name, (offsets, values) in features.lists.items()}
        pairs = replace(pairs, numeric=features.numeric, categorical=features.categorical, lists=lists)
    return pairs


def pairs_at(
    predictor: Predictor, catalogs: Catalogs, known: Known, table: pa.Table, examples: Examples, row: Longs, ad: Longs
) -> Examples:
    """N pairs of request `row` (N,) of `table` (prepared impressions) and ad (N,), with what was known at its moment."""
    features = predictor.packed.features["impressions"]
    if not features.columns:
        return pair_examples(examples, row, ad, None)
    # A request's own row may carry the counters of its first ad, and what that ad was like.
    described = predictor.described
    kept = [
        name
        for name in table.column_names
        if name in features.columns and name not in described and not name.startswith(COUNTER_PREFIX)
    ]
    columns = {name: table[name].take(pa.array(row)) for name in {*kept, "history_length"}}
    columns |= known.pair_columns(table, ads=catalogs.ad_table, users=catalogs.user_table, row=row, ad=ad, described=described)
    return pair_examples(examples, row, ad, features.transform(pa.table(columns)))


def category_shares(examples: Examples, category: Ints, count: int) -> NDArray[np.float64]:
    """(R, G) shares of the categories among each request's clicks that have one; zero rows without such clicks."""
    width = max(1, count)
    lengths = np.diff(examples.history_offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    code = category[examples.history_values]
    counts = np.bincount((owner * width + code)[code >= 0], minlength=len(lengths) * width)
    counts = counts.reshape(len(lengths), width).astype(np.float64)
    shares: NDArray[np.float64] = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    return shares[examples.history_of_row]


def training_counts(predictor: Predictor, ads: AdColumns) -> tuple[Ints, Floats]:
    """(A,) impressions and clicks of each ad among the training rows."""
    seen = predictor.packed.seen_ads
    found = places(ads.ids, seen["id"])
    known = found >= 0

    def of(column: str) -> NDArray[np.float64]:
        values = np.asarray(seen[column].to_numpy(), dtype=np.float64)
        return np.where(known, values[np.where(known, found, 0)], 0.0) if len(values) else np.zeros(len(ads))

    return of("impressions").astype(np.int64), of("clicks")
