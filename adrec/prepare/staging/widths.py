"""How wide a column of vectors is: what most of the first filled cells have, where the config does not say."""

import duckdb

from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.features import TableFeatures, VectorFeature
from adrec.data.disk.engine import columns_of, name, one_row
from adrec.errors import DataError
from adrec.prepare.sources import RawTable, RawTables
from adrec.prepare.staging.convert import filled, vector_items

MOST_WIDTH = 16_384
_LOOKED_AT = 1_000
_READ = 100_000
"""Rows among which filled cells are looked for."""


def with_widths(connection: duckdb.DuckDBPyConnection, config: PreprocessConfig, raw: RawTables) -> PreprocessConfig:
    """The config with the width of every column of vectors. Raises DataError where a column holds none."""
    measured = {
        table: _measured(connection, getattr(config.features, table), table, raw.tables.get(table) or raw.impressions)
        for table in ("ads", "users")
    }
    return config.model_copy(update={"features": config.features.model_copy(update=measured)})


def _measured(connection: duckdb.DuckDBPyConnection, spec: TableFeatures, table: str, raw: RawTable) -> TableFeatures:
    found = columns_of(connection, raw.view) if spec.vectors else {}
    vectors = [
        item.model_copy(update={"width": _width(connection, raw, table, item, found[item.column])})
        if item.width is None and item.column in found  # a column that is not there is told with all others
        else item
        for item in spec.vectors
    ]
    return spec.model_copy(update={"vectors": vectors})


def _width(connection: duckdb.DuckDBPyConnection, raw: RawTable, table: str, item: VectorFeature, stored: str) -> int:
    cell = filled(raw.reading, f"r.{name(item.column)}", stored, "vector")
    widths = (
        f"SELECT len({vector_items(raw.reading, 'cell', 'VARCHAR' if stored == 'JSON' else stored)}) AS width FROM "
        f"(SELECT {cell} AS cell FROM (SELECT * FROM {raw.view} LIMIT {_READ}) r) WHERE cell IS NOT NULL LIMIT {_LOOKED_AT}"
    )
    width = one_row(connection, f"SELECT mode(width) AS width FROM ({widths}) WHERE width > 0")["width"]
    where = f"{raw.files[0]}: column '{item.column}', of features.{table}.vectors"
    if width is None:
        raise DataError(f"{where}: its first cells hold no list of numbers. Set its `width`, or leave it out.")
    if width > MOST_WIDTH:
        raise DataError(f"{where}: has {width:,} numbers a cell, at most {MOST_WIDTH:,} are read. Leave it out.")
    return int(width)
