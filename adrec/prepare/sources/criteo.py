"""Criteo's display advertising logs: a label, 13 integers, 26 hashed categories; tab separated, without a header."""

import duckdb

from adrec.config.data.sources import CriteoSource
from adrec.data.disk.engine import name
from adrec.errors import ConfigError
from adrec.prepare.sources.base import RawTable, RawTables, Reading
from adrec.prepare.sources.files import find_files, read_files

INTEGERS = tuple(f"I{number}" for number in range(1, 14))
CATEGORIES = tuple(f"C{number}" for number in range(1, 27))


def open_criteo(connection: duckdb.DuckDBPyConnection, config: CriteoSource, skip: int = 0) -> RawTables:
    """Rows are in time order without a time: shown_at advances by `seconds_per_row` from 1970 on, over all files.

    The set names neither ads nor users: the hashed columns that the config chooses stand for them.
    """
    for key, column in (("ad_column", config.ad_column), ("user_column", config.user_column)):
        if column not in CATEGORIES:
            raise ConfigError(f"source.{key}: {column!r} is none of C1 to C26.")
    files = find_files(config.files)
    read_files(connection, "raw_log", files, format="tsv", header=("label", *INTEGERS, *CATEGORIES), quote="")
    step = round(config.seconds_per_row * 1e6)
    ad, user = (f"coalesce({name(column)}, 'none')" for column in (config.ad_column, config.user_column))
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW raw_impressions AS SELECT {user} AS user_id, {ad} AS ad_id, {ad} AS title, "
        f"label AS click, make_timestamp(CAST(row_number() OVER () * {step} AS BIGINT)) AS shown_at, "
        "* EXCLUDE (label) FROM raw_log"
    )
    types = dict.fromkeys(INTEGERS, "number") | dict.fromkeys(CATEGORIES, "string")
    names = {"click": "label", "ad_id": config.ad_column, "user_id": config.user_column}
    reading = Reading(types=types, own_names=names, has_real_moments=False)
    return RawTables(impressions=RawTable("raw_impressions", tuple(files), reading))
