"""The sample's graph of entities: who makes what an ad sells, and which group the maker belongs to, which no word tells.

A user is fond of one group. Ads are linked to makers, makers to groups and to the town where they are, which means nothing.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adrec.sample.world import Integers, identifiers

MAKERS, GROUPS, TOWNS = 48, 8, 5
_SEED = 11


def draw_makers(count: int, generator: np.random.Generator) -> Integers:
    """(A,) the maker of each ad."""
    return np.asarray(generator.integers(0, MAKERS, count), np.int64)


def group_of(maker: Integers) -> Integers:
    """The group of each maker."""
    return maker % GROUPS


def fond_of(user: Integers) -> Integers:
    """The group that each user is fond of: by number, which nothing else about a user depends on."""
    return (user * 7 + user // GROUPS) % GROUPS


def write_graph(folder: Path, ids: pa.Array, maker: Integers, share: float, seed: int) -> None:
    """`entities.parquet`, `links.parquet` and `ad_links.parquet`, the last of that share of the ads."""
    makers, groups, towns = (identifiers(kind, count) for kind, count in (("m", MAKERS), ("g", GROUPS), ("t", TOWNS)))
    number = np.arange(MAKERS)
    counts = {"Maker": MAKERS, "Group": GROUPS, "Town": TOWNS}
    names = [f"{kind} {place + 1}" for kind, count in counts.items() for place in range(count)]
    kinds = np.repeat(["maker", "group", "town"], [MAKERS, GROUPS, TOWNS])
    shown = pa.array(np.random.default_rng([seed, _SEED]).random(len(maker)) < share)
    tables = {
        "entities": {"entity_id": pa.concat_arrays([makers, groups, towns]), "name": names, "kind": kinds},
        "links": {
            "head": pa.concat_arrays([makers, makers]),
            "relation": np.repeat(["belongs_to", "town"], MAKERS),
            "tail": pa.concat_arrays([groups.take(pa.array(group_of(number))), towns.take(pa.array(number % TOWNS))]),
        },
        "ad_links": {
            "ad_id": ids.filter(shown),
            "relation": np.full(shown.true_count, "made_by"),
            "entity_id": makers.take(pa.array(maker)).filter(shown),
        },
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", compression="zstd")
