"""One adapter a format. Each gives views with canonical column names; everything after it is the same for all."""

import duckdb

from adrec.config.sources import CriteoSource, MindSource, OpenBanditSource, RecboleSource, Source
from adrec.prepare.sources.base import RawTable, RawTables, Reading
from adrec.prepare.sources.criteo import open_criteo
from adrec.prepare.sources.mind import open_mind
from adrec.prepare.sources.open_bandit import open_open_bandit
from adrec.prepare.sources.recbole import open_recbole
from adrec.prepare.sources.tables import open_tables

__all__ = ["RawTable", "RawTables", "Reading", "open_source"]


def open_source(connection: duckdb.DuckDBPyConnection, config: Source, *, skip: int = 0) -> RawTables:
    """The raw tables of any source. `skip` leaves out the first files of impressions, where the source can do that."""
    if isinstance(config, MindSource):
        return open_mind(connection, config, skip)
    if isinstance(config, RecboleSource):
        return open_recbole(connection, config)
    if isinstance(config, OpenBanditSource):
        return open_open_bandit(connection, config)
    if isinstance(config, CriteoSource):
        return open_criteo(connection, config)
    return open_tables(connection, config, skip)
