"""A table of users with few values a column, some of them unknown, in an engine. Import from any test."""

import numpy as np
import pyarrow as pa


def users_table(connection, seed, count):
    """Replace the engine's table `users`."""
    rng = np.random.default_rng(seed)

    def draw(options):
        return pa.array([None if value == 0 else f"v{value}" for value in rng.zipf(1.6, count) % options])

    table = pa.table({"user_index": np.arange(count), "age": draw(6), "region": draw(9), "job": draw(20)})
    connection.register("given", table)
    connection.execute("CREATE OR REPLACE TABLE users AS SELECT * FROM given")
