"""One adapter a format. Each gives views with canonical column names; everything after it is the same for all."""

import duckdb

from adrec.config.preprocess import MindSource, TablesSource
from adrec.prepare.sources.base import RawTable, RawTables, Reading
from adrec.prepare.sources.mind import open_mind
from adrec.prepare.sources.tables import open_tables

__all__ = ["RawTable", "RawTables", "Reading", "open_source"]


def open_source(connection: duckdb.DuckDBPyConnection, config: TablesSource | MindSource) -> RawTables:
    """The raw tables of any source."""
    if isinstance(config, MindSource):
        return open_mind(connection, config)
    return open_tables(connection, config)
