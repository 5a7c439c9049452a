"""From requests to (request, ad) pairs, and what the training rows and histories say about ads and categories."""

from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.arrays import combined
from adrec.data.examples import Examples, Ragged
from adrec.data.features import FeatureArrays
from adrec.inference.lists.catalogue import AdColumns
from adrec.inference.predictor import Predictor
from adrec.ranking.arrays import Floats, Ints


def pair_examples(examples: Examples, row: Ints, ad: Ints, features: FeatureArrays | None) -> Examples:
    """Examples of N (request, ad) pairs; `features` replace those of the requests where given."""
    pairs = replace(examples.take(row), ad_index=ad.astype(np.int32), request=row.astype(np.int32), labels={})
    if features is not None:
        lists = {name: Ragged(offsets, values) for name, (offsets, values) in features.lists.items()}
        pairs = replace(pairs, numeric=features.numeric, categorical=features.categorical, lists=lists)
    return pairs


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
    found = pc.fill_null(pc.index_in(ads.ids, value_set=combined(seen["id"])), -1).to_numpy(zero_copy_only=False)
    known = found >= 0

    def of(column: str) -> NDArray[np.float64]:
        values = np.asarray(seen[column].to_numpy(), dtype=np.float64)
        return np.where(known, values[np.where(known, found, 0)], 0.0) if len(values) else np.zeros(len(ads))

    return of("impressions").astype(np.int64), of("clicks")
