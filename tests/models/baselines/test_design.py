"""Scaled features, laid out and not."""

import numpy as np

from adrec.models.baselines.design import Design, Scaler


def test_the_product_is_that_of_the_columns_laid_out():
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 4, 60), rng.integers(0, 2, 60), rng.integers(0, 900, 60)], axis=1).astype(np.int32)
    table = Design(rng.standard_normal((60, 3)).astype(np.float32), ("a", "b", "c"), codes, ("few", "two", "many"))
    scaler = Scaler.fit(table, max_values=100)  # "many" is left out
    dense = np.concatenate([9 * table.dense, table.dense], axis=1)
    other = Design(dense, ("c", "b", "x", "y", "a", "z"), codes + 1, ("few", "two", "many"))  # unknown codes, other order
    weights = rng.standard_normal(3 + 4 + 2).astype(np.float32)
    for rows in (table, other):
        laid_out = np.clip(scaler.transform(rows).toarray(), -2, 2)
        assert np.abs(scaler.transform(rows).toarray()).max() > 2
        np.testing.assert_allclose(scaler.product(rows, weights, largest=2.0), laid_out @ weights, rtol=1e-5, atol=1e-5)
