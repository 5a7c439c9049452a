"""MIND in its official files: behaviors.tsv and news.tsv (Wu et al. 2020), and a translated view of the news."""

import duckdb

from adrec.config.preprocess import MindSource
from adrec.prepare.sources.base import RawTable, RawTables, Reading
from adrec.prepare.sources.files import find_files, read_files

_BEHAVIORS = ("request_id", "user_id", "shown_at", "history", "candidates")
_NEWS = ("ad_id", "category", "subcategory", "title", "description", "url", "title_entities", "abstract_entities")
_TIME = "%m/%d/%Y %I:%M:%S %p"


def open_mind(connection: duckdb.DuckDBPyConnection, config: MindSource) -> RawTables:
    """A candidate `N1-0` becomes one impression, at the position at which it is listed."""
    behaviors = find_files(config.behaviors)
    news = find_files(config.news)
    read_files(connection, "raw_behaviors", behaviors, format="tsv", header=_BEHAVIORS, quote="")
    read_files(connection, "raw_news", news, format="tsv", header=_NEWS, quote="")
    # The row number of an impression is that of its line. MIND shuffles the candidates, so their order is no position.
    connection.execute("""
        CREATE OR REPLACE TEMP VIEW raw_impressions AS
        SELECT request_id, user_id, shown_at, history, regexp_replace(candidate, '-[^-]*$', '') AS ad_id,
               CASE WHEN contains(candidate, '-') THEN regexp_extract(candidate, '-([^-]*)$', 1) END AS click,
               source_file, source_row, row_number() OVER () AS source_order
        FROM (
            SELECT * EXCLUDE (candidates, history), list_filter(string_split(history, ' '), lambda x: x <> '') AS history,
                   unnest(list_filter(string_split(candidates, ' '), lambda x: x <> '')) AS candidate
            FROM raw_behaviors
        )""")
    files = list(news)
    if config.translation is None:
        connection.execute(
            "CREATE OR REPLACE TEMP VIEW raw_ads AS SELECT * EXCLUDE (url, title_entities, abstract_entities) FROM raw_news"
        )
    else:
        translation = find_files(str(config.translation))
        read_files(connection, "raw_translation", translation, format="tsv", quote="")
        connection.execute("""
            CREATE OR REPLACE TEMP VIEW raw_ads AS
            SELECT n.ad_id, n.category, n.subcategory, t.title, t.abstract AS description, n.source_file, n.source_row, n.source_order
            FROM raw_news n JOIN raw_translation t ON t.nid = n.ad_id""")
        files += translation
    return RawTables(
        impressions=RawTable("raw_impressions", tuple(behaviors), Reading(time_format=_TIME)),
        ads=RawTable("raw_ads", tuple(files)),
    )
