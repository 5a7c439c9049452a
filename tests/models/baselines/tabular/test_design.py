"""Scaled features, laid out and not."""

from dataclasses import replace

import numpy as np
from baseline_worlds import planted

from adrec.models.baselines.base import Columns
from adrec.models.baselines.tabular.design import LARGEST, Design, Scaler, design


def test_the_product_is_that_of_the_columns_laid_out():
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 4, 60), rng.integers(0, 2, 60), rng.integers(0, 5000, 60)], axis=1).astype(np.int32)
    table = Design(rng.standard_normal((60, 3)).astype(np.float32), ("a", "b", "c"), codes, ("few", "two", "many"))
    scaler = Scaler.fit(table)
    assert scaler.width == 3 + (codes.max(axis=0) + 1).sum(), "every value has a column"
    dense = np.concatenate([9 * table.dense, table.dense], axis=1)
    other = Design(dense, ("c", "b", "x", "y", "a", "z"), codes + 1, ("few", "two", "many"))  # unknown codes, other order
    weights = rng.standard_normal(scaler.width).astype(np.float32)
    for rows in (table, other):
        laid_out = scaler.transform(rows).toarray()
        assert np.abs(laid_out).max() <= LARGEST
        np.testing.assert_array_equal(laid_out[:, 3:].sum(axis=1), 3)
        np.testing.assert_allclose(scaler.product(rows, weights), laid_out @ weights, rtol=1e-5, atol=1e-5)


def test_a_row_alone_has_the_columns_and_the_bits_that_it_has_among_others():
    """Also where none of the rows beside it, nor it, has a skipped ad."""
    world = planted(60, ads=30)
    rng = np.random.default_rng(0)
    catalogue = replace(
        world.ads, vectors=rng.normal(size=(30, 17)).astype(np.float32), categorical=rng.integers(0, 4, (30, 1))
    )
    count = len(world.examples.history_offsets) - 1
    skips = np.where(np.arange(count) % 3 == 0, 0, 5)
    examples = replace(
        world.examples,
        skipped_offsets=np.concatenate([[0], np.cumsum(skips)]).astype(np.int64),
        skipped_values=rng.integers(0, 30, skips.sum()).astype(np.int32),
    )
    whole = replace(world, examples=examples, ads=catalogue, columns=Columns(ad_categorical=("category",)))
    table = design(whole)
    for row in range(0, len(whole), 7):
        alone = design(whole.take(np.array([row]))).picked(table.names, table.code_names)
        np.testing.assert_array_equal(alone.dense[0], table.dense[row])
