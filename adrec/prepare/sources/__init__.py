"""One adapter a format. Each gives views with canonical column names; everything after it is the same for all."""

from collections.abc import Callable
from typing import Any

import duckdb

from adrec.config.data.sources import CriteoSource, MindSource, OpenBanditSource, RecboleSource, Source, TablesSource
from adrec.errors import DataError
from adrec.plugins import SourceFormat, load
from adrec.prepare.sources.base import RawTable, RawTables, Reading
from adrec.prepare.sources.criteo import open_criteo
from adrec.prepare.sources.mind import open_mind
from adrec.prepare.sources.open_bandit import open_open_bandit
from adrec.prepare.sources.recbole import open_recbole
from adrec.prepare.sources.tables import open_tables

__all__ = ["RawTable", "RawTables", "Reading", "open_source"]

_OPENERS: dict[type[Any], Callable[..., RawTables]] = {
    TablesSource: open_tables,
    MindSource: open_mind,
    RecboleSource: open_recbole,
    OpenBanditSource: open_open_bandit,
    CriteoSource: open_criteo,
}


def open_source(connection: duckdb.DuckDBPyConnection, config: Source, *, skip: int = 0) -> RawTables:
    """The raw tables of any source. `skip` leaves out the first files of impressions, where the source can do that."""
    own = _OPENERS.get(type(config))
    opened = own if own is not None else load(config.format, "adrec.sources", SourceFormat, "source").open
    tables = opened(connection, config, skip)
    if not isinstance(tables, RawTables):
        raise DataError(f"source '{config.format}': gives a {type(tables).__name__}, not RawTables. Mend its package.")
    return tables
