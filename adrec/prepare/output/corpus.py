"""The corpus: each distinct text of ads, users and queries once, for tokenizer and pretraining."""

from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adrec.data.arrays import combined
from adrec.data.disk.engine import columns_of, create_plain, fetch, moment_sql, one_row, parquet, stream, text
from adrec.data.text.corpus import HELD_OUT
from adrec.prepare.text.clean import fill_template
from adrec.prepare.text.maker import TextMaker
from adrec.schema import TableSpec, TextSpec

_TEXTS = {"kind": "VARCHAR", "text": "VARCHAR", "segmented": "VARCHAR", "language": "VARCHAR", "later": "BOOLEAN"}
"""Columns of the table `texts`, by their DuckDB type: that of the text's table, the text, its words, and whether it exists
only after the cut."""


def add_queries(
    connection: duckdb.DuckDBPyConnection, maker: TextMaker, *, cut: datetime | None = None, earlier: Path | None = None
) -> None:
    """Table `queries`: distinct raw query, its text; the texts join the corpus. Nothing where there are no queries.

    Those that nobody searched for before `cut` are marked so. Words of the corpus `earlier` are taken over.
    """
    if "query" not in columns_of(connection, "events"):
        return
    connection.execute("CREATE OR REPLACE TABLE queries (query VARCHAR, text VARCHAR)")
    later = f"min(shown_at) >= {moment_sql(cut)}" if cut is not None else "false"
    found = f"SELECT query, {later} AS later FROM events WHERE query IS NOT NULL GROUP BY query ORDER BY query"
    for batch in stream(connection.cursor(), found):
        whole = pc.fill_null(fill_template("{query}", {"query": maker.clean(batch.column("query"))}, batch.num_rows), "")
        words, languages = _words(connection, maker, whole, earlier)
        _insert(connection, "queries", pa.table({"query": batch.column("query"), "text": whole}))
        insert_texts(connection, "query", whole, words, languages, batch.column("later"))


def _words(
    connection: duckdb.DuckDBPyConnection, maker: TextMaker, texts: pa.Array, earlier: Path | None
) -> tuple[pa.Array, pa.Array]:
    """TextMaker.words, but for texts that the corpus `earlier` has: a dictionary of Chinese is not opened for them."""
    if earlier is None:
        return maker.words(texts)
    connection.register("asked_texts", pa.table({"text": texts, "place": np.arange(len(texts))}))
    known = fetch(
        connection,
        f"SELECT c.segmented, c.language FROM asked_texts a LEFT JOIN {parquet(earlier)} c USING (text) ORDER BY a.place",
    )
    connection.unregister("asked_texts")
    words, languages = combined(known["segmented"]), combined(known["language"])
    fresh = words.is_null()
    if not pc.any(fresh).as_py():
        return words, languages
    made = maker.words(texts.filter(fresh))
    return pc.replace_with_mask(words, fresh, made[0]), pc.replace_with_mask(languages, fresh, made[1])


def write_corpus(
    connection: duckdb.DuckDBPyConnection, folder: Path, earlier: Path | None = None, *, cut: datetime | None = None
) -> int:
    """corpus.parquet: each distinct text once, ads before interests before queries.

    About 5 % are held out, by their hash, and so are all that exist only after the cut (`later`).

    `earlier` is the corpus of the output that is appended to: its queries stay, later ones until `cut` passes them (table
    `moved`). Returns the number of texts.
    """
    path = folder / "corpus.parquet"
    if earlier is not None:
        later = "later"
        if cut is not None and "query" in columns_of(connection, "moved"):
            known = f"SELECT query FROM moved WHERE query IS NOT NULL AND shown_at < {moment_sql(cut)}"
            later = f"later AND text NOT IN ({known}) AS later"
        old = f"SELECT kind, text, segmented, language, {later} FROM {parquet(earlier)} WHERE kind = 'query'"
        connection.execute(f"INSERT INTO texts {old}")
    # Queries go by their text, so that those of a new day fall into the places that a rebuild gives them.
    merged = (
        "SELECT text, arg_min(segmented, rowid) AS segmented, arg_min(language, rowid) AS language, "
        f"arg_min(kind, rowid) AS kind, {HELD_OUT} OR bool_and(later) AS held_out, "
        "bool_and(later) AS later, min(rowid) AS place "
        "FROM texts WHERE text <> '' GROUP BY text"
    )
    order = "kind = 'query', CASE WHEN kind = 'query' THEN 0 ELSE place END, text"
    connection.execute(
        f"COPY (SELECT * EXCLUDE (place) FROM ({merged}) ORDER BY {order}) "
        f"TO {text(str(path))} (FORMAT parquet, COMPRESSION zstd)"
    )
    return int(pq.read_metadata(path).num_rows)


def prepare_texts(connection: duckdb.DuckDBPyConnection) -> None:
    """The table that collects texts for the corpus."""
    create_plain(connection, "texts", _TEXTS)


def has_texts(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether any ad has a text."""
    found = one_row(connection, "SELECT count(*) AS n FROM texts WHERE kind = 'ad' AND text <> ''")
    return bool(found["n"])


def insert_texts(
    connection: duckdb.DuckDBPyConnection, kind: str, whole: pa.Array, words: pa.Array, languages: pa.Array, later: pa.Array
) -> None:
    """Texts of rows, in order, with their words, language, and whether they exist only after the cut: (rows,) each."""
    kinds = pa.array([kind]).take(pa.array([0] * len(whole), pa.int8()))
    _insert(connection, "texts", pa.Table.from_arrays([kinds, whole, words, languages, later], names=[*_TEXTS]))


def insert_written(
    connection: duckdb.DuckDBPyConnection, file: Path, spec: TableSpec, texts: TextSpec, later: str, join: str
) -> None:
    """The same of a `file` of table `spec` that was written before; `later` is SQL over its rows as t and what `join` adds."""
    rows = f"SELECT *, CAST(file_row_number AS INTEGER) AS {spec.index} FROM {parquet(file, options='file_row_number = true')}"
    connection.execute(
        f"INSERT INTO texts SELECT {text(texts.kind)}, t.text, arg_min(t.segmented, t.{spec.index}), "
        f"arg_min(t.{texts.language}, t.{spec.index}), bool_and({later}) FROM ({rows}) t {join} WHERE t.text <> '' "
        f"GROUP BY t.text ORDER BY min(t.{spec.index})"
    )


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    connection.register("inserted_rows", rows)
    connection.execute(f"INSERT INTO {table} SELECT * FROM inserted_rows")
    connection.unregister("inserted_rows")
