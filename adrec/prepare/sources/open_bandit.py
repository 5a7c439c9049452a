"""The Open Bandit Dataset (Saito et al. 2021): logged impressions of fashion items with true propensities."""

import duckdb

from adrec.config.data.sources import OpenBanditSource
from adrec.data.disk.engine import columns_of, name
from adrec.errors import DataError
from adrec.prepare.sources.base import RawTable, RawTables, Reading
from adrec.prepare.sources.files import find_files, read_files

_NEEDED = ("timestamp", "item_id", "position", "click", "propensity_score")


def open_open_bandit(connection: duckdb.DuckDBPyConnection, config: OpenBanditSource, skip: int = 0) -> RawTables:
    """The set names no users: those with equal user features count as one, as in the features' own resolution.

    Positions are slots 1 to 3. Items have no text: their features stand for a title.
    """
    logs = sorted(file for file in config.folder.glob("*.csv") if file.name != "item_context.csv")
    items = config.folder / "item_context.csv"
    if len(logs) != 1 or not items.is_file():
        raise DataError(f"{config.folder}: expected one log (all.csv, men.csv or women.csv) and item_context.csv.")
    read_files(connection, "raw_log", find_files(str(logs[0])))
    read_files(connection, "raw_items", find_files(str(items)))
    found = columns_of(connection, "raw_log")
    missing = [column for column in _NEEDED if column not in found]
    if missing:
        raise DataError(f"{logs[0]}: column '{missing[0]}' is missing. Take the files of the data set as they are.")
    profile = [column for column in found if column.startswith("user_feature_")]
    profiled = ", ".join(f"coalesce({name(column)}, '')" for column in profile) or "''"
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW raw_impressions AS SELECT 'u' || left(md5(concat_ws('|', {profiled})), 12) AS user_id, "
        f'item_id AS ad_id, "timestamp" AS shown_at, click, position, propensity_score AS propensity, source_file, source_row, '
        f"source_order{''.join(', ' + name(column) for column in profile)} FROM raw_log"
    )
    features = [column for column in columns_of(connection, "raw_items") if column.startswith("item_feature_")]
    words = ", ".join(f"'{column.removeprefix('item_')} ' || {name(column)}" for column in features) or "item_id"
    category = f", {name(features[1])} AS category" if len(features) > 1 else ""
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW raw_ads AS SELECT item_id AS ad_id, concat_ws(', ', {words}) AS title{category}, "
        f"source_file, source_row, source_order{''.join(', ' + name(column) for column in features)} FROM raw_items"
    )
    return RawTables(
        impressions=RawTable("raw_impressions", tuple(logs), Reading(own_names={"ad_id": "item_id", "shown_at": "timestamp"})),
        ads=RawTable("raw_ads", (items,)),
    )
