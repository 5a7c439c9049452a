"""Scaled features, laid out and not."""

import numpy as np

from adrec.models.baselines.tabular.design import LARGEST, Design, Scaler


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
