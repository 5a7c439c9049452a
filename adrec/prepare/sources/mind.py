"""MIND in its official files: behaviors.tsv and news.tsv (Wu et al. 2020), and a translated view of the news."""

from pathlib import Path

import duckdb

from adrec.config.data.sources import MindSource
from adrec.data.disk.engine import columns_of
from adrec.errors import DataError
from adrec.prepare.sources.base import RawTable, RawTables, Reading
from adrec.prepare.sources.files import find_files, read_files
from adrec.prepare.sources.malformed import ROWS_A_FILE

_BEHAVIORS = ("request_id", "user_id", "shown_at", "history", "candidates")
_NEWS = ("ad_id", "category", "subcategory", "title", "description", "url", "title_entities", "abstract_entities")
_TIME = "%m/%d/%Y %I:%M:%S %p"
_PLACES, _LINES = 1 << 17, 1 << 32
"""Candidates of a line and lines of a file that an order has room for; so it has for 16,384 files."""


def open_mind(connection: duckdb.DuckDBPyConnection, config: MindSource, skip: int = 0) -> RawTables:
    """A candidate `N1-0` becomes one impression. MIND shuffles the candidates, so their order is no position."""
    behaviors = find_files(config.behaviors)
    news = find_files(config.news)
    read_files(connection, "raw_behaviors", behaviors[skip:], all_files=behaviors, format="tsv", header=_BEHAVIORS, quote="")
    read_files(connection, "raw_news", news, format="tsv", header=_NEWS, quote="")
    # source_row is the line; an id or a click that cannot be split off is left to the checks.
    connection.execute(f"""
        CREATE OR REPLACE TEMP VIEW raw_impressions AS
        SELECT request_id, user_id, shown_at, history, regexp_replace(candidate.id, '-[^-]*$', '') AS ad_id,
               CASE WHEN contains(candidate.id, '-') THEN regexp_extract(candidate.id, '-([^-]*)$', 1) END AS click,
               source_file, source_row, ((source_order // {ROWS_A_FILE}) * {_LINES} + source_order % {ROWS_A_FILE}) * {_PLACES}
               + candidate.place AS source_order
        FROM (
            SELECT * EXCLUDE (candidates, history), list_filter(string_split(history, ' '), lambda x: x <> '') AS history,
                   unnest(list_transform(list_filter(string_split(candidates, ' '), lambda x: x <> ''),
                                         lambda x, i: {{'id': x, 'place': i}})) AS candidate
            FROM raw_behaviors
        )""")
    if config.translation is None:
        connection.execute(
            "CREATE OR REPLACE TEMP VIEW raw_ads AS SELECT * EXCLUDE (url, title_entities, abstract_entities) FROM raw_news"
        )
        translation = []
    else:
        translation = find_files(str(config.translation))
        read_files(connection, "raw_translation", translation, format="tsv", quote="")
        missing = [name for name in ("nid", "title", "abstract") if name not in columns_of(connection, "raw_translation")]
        if missing:
            raise DataError(
                f"{translation[0]}: column '{missing[0]}' is missing."
                " `source.translation` is a TSV with the header nid, title, abstract."
            )
        connection.execute("""
            CREATE OR REPLACE TEMP VIEW raw_ads AS
            SELECT n.ad_id, n.category, n.subcategory, t.title, t.abstract AS description,
                   n.source_file, n.source_row, n.source_order
            FROM raw_news n JOIN raw_translation t ON t.nid = n.ad_id""")
    entities, ad_links = _entities(connection, news) if config.entities else (None, None)
    return RawTables(
        impressions=RawTable("raw_impressions", tuple(behaviors), Reading(time_format=_TIME)),
        ads=RawTable("raw_ads", (*news, *translation)),
        entities=entities,
        ad_links=ad_links,
        can_skip=True,
    )


def _entities(connection: duckdb.DuckDBPyConnection, news: list[Path]) -> tuple[RawTable, RawTable]:
    """What news speak of: cells of `[{"Label": ..., "Type": ..., "WikidataId": ...}]`; other cells hold none."""
    shape = """'[{"Label": "VARCHAR", "Type": "VARCHAR", "WikidataId": "VARCHAR"}]'"""
    spoken = " UNION ALL ".join(
        f"SELECT ad_id, '{relation}' AS relation, unnest(from_json({column}, {shape})) AS item, source_file, source_row, "
        f"source_order, {part} AS part FROM raw_news WHERE json_valid({column}) AND json_type({column}) = 'ARRAY'"
        for part, (relation, column) in enumerate((("title", "title_entities"), ("abstract", "abstract_entities")))
    )
    connection.execute(f"""
        CREATE OR REPLACE TEMP VIEW spoken_of AS
        SELECT ad_id, relation, item.WikidataId AS entity_id, item.Label AS name, item.Type AS kind, source_file, source_row,
               row_number() OVER (ORDER BY source_order, part) AS source_order
        FROM ({spoken}) WHERE item.WikidataId IS NOT NULL""")
    connection.execute("CREATE OR REPLACE TEMP VIEW raw_ad_links AS SELECT * EXCLUDE (name, kind) FROM spoken_of")
    connection.execute("""
        CREATE OR REPLACE TEMP VIEW raw_entities AS
        SELECT entity_id, arg_min(name, source_order) AS name, arg_min(kind, source_order) AS kind,
               arg_min(source_file, source_order) AS source_file, arg_min(source_row, source_order) AS source_row,
               min(source_order) AS source_order
        FROM spoken_of GROUP BY entity_id""")
    return RawTable("raw_entities", tuple(news)), RawTable("raw_ad_links", tuple(news))
