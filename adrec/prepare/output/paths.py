"""What ads are linked to, made of the tables of links once all ads are known: lists of it, and vectors of those."""

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.config.data.preprocess import PreprocessConfig
from adrec.data.arrays import combined
from adrec.data.disk.engine import columns_of, fetch, name
from adrec.data.graph.entity_vectors import EntityVectors
from adrec.data.graph.links import Graph
from adrec.errors import DataError
from adrec.prepare.extras import made_of_links
from adrec.prepare.output.entities import Encoded
from adrec.schema import ADS, GRAPH


def add_paths(connection: duckdb.DuckDBPyConnection, config: PreprocessConfig) -> list[str]:
    """Add the lists of `features.ads.lists` that name `paths` to the table `ads`; what deserves a word.

    Raises DataError where the source has no links to make them of.
    """
    wanted = [item for item in config.features.ads.lists if item.column in made_of_links(config)]
    if not wanted:
        return []
    present = {table for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    tables = {spec.name: fetch(connection, f"SELECT * FROM {spec.name}") for spec in GRAPH if spec.name in present}
    ids = combined(fetch(connection, f"SELECT {ADS.key} FROM ads ORDER BY {ADS.index}")[ADS.key])
    graph = Graph.of(tables, ids)
    if graph is None:
        raise DataError(
            f"features.ads.lists: '{wanted[0].column}' has paths, and the source has no table of links. Name one in "
            "source.tables (links, ad_links), or set paths to 0."
        )
    for item in wanted:
        lists = graph.paths(ids, hops=item.paths, most=item.max_items)
        made = pa.table({"place": np.arange(len(ids)), "made": lists})
        connection.register("made_paths", made)
        kept = [column for column in columns_of(connection, "ads") if column != item.column]
        connection.execute(
            f"CREATE OR REPLACE TABLE ads AS SELECT {', '.join(f'ads.{name(column)}' for column in kept)}, "
            f"made AS {name(item.column)} FROM ads JOIN made_paths ON place = {ADS.index} ORDER BY {ADS.index}"
        )
        connection.unregister("made_paths")
    unknown = len(graph.ads) - int(pc.sum(pc.is_in(graph.ads, value_set=ids)).as_py() or 0)
    linked = len(graph.ads) - unknown
    told = [f"only {linked:,} of {len(ids):,} ads are linked to entities"] if 2 * linked < len(ids) else []
    return told + ([f"ad_links: {unknown:,} ads are not in the ads table; their links say nothing"] if unknown else [])


def with_entity_vectors(config: PreprocessConfig) -> tuple[PreprocessConfig, list[Encoded]]:
    """The config with width and space of the vectors that `entities` names, and how they are made of the ads' lists.

    The space names the vectors, so that those of another training are not taken for them. Raises DataError.
    """
    ads = config.features.ads
    column = next((item.column for item in ads.lists if item.paths), "")
    vectors, encoded = [], []
    for item in ads.vectors:
        if item.entities is not None:
            held = EntityVectors.open(item.entities)
            space = f"{item.column} {held.fingerprint[:16]}"
            item = item.model_copy(update={"width": held.width, "space": space})
            encoded.append(Encoded(item.column, held.width, column, held.of_paths))
        vectors.append(item)
    if not encoded:
        return config, []
    made = ads.model_copy(update={"vectors": vectors})
    return config.model_copy(update={"features": config.features.model_copy(update={"ads": made})}), encoded
