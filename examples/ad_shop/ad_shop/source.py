"""Sessions as our ad server exports them: one line a session, the shown ads as a list."""

import duckdb

from adrec.config.base import ConfigPattern
from adrec.config.data.sources import SourceConfig
from adrec.plugins import SourceFormat
from adrec.prepare.sources import RawTable, RawTables, Reading
from adrec.prepare.sources.files import find_files, read_files


class SessionsConfig(SourceConfig):
    """What stands beside `format` in the config's `source`."""

    sessions: ConfigPattern
    """Files of sessions; paths are relative to the config."""
    ads: ConfigPattern
    """Files of ads."""


def open_sessions(connection: duckdb.DuckDBPyConnection, config: SessionsConfig, skip: int = 0) -> RawTables:
    """One impression for each shown ad."""
    sessions, ads = find_files(config.sessions), find_files(config.ads)
    header = ("user_id", "shown_at", "shown", "clicked")
    read_files(connection, "raw_sessions", sessions, format="csv", delimiter=";", header=header)
    read_files(connection, "raw_ads", ads)
    connection.execute("""
        CREATE OR REPLACE TEMP VIEW raw_impressions AS
        SELECT user_id, shown_at, shown_ad.id AS ad_id, CAST(shown_ad.id = clicked AS INTEGER) AS click,
               source_file, source_row, source_order * 1000 + shown_ad.place AS source_order
        FROM (SELECT *, unnest(list_transform(string_split(shown, ' '), lambda x, i: {'id': x, 'place': i})) AS shown_ad
              FROM raw_sessions)""")
    return RawTables(
        impressions=RawTable("raw_impressions", tuple(sessions), Reading(time_unit="seconds")),
        ads=RawTable("raw_ads", tuple(ads)),
    )


sessions = SourceFormat(SessionsConfig, open_sessions)
