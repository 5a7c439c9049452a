"""Ads and users with their texts, written in batches, or linked where they are those of an earlier output."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adrec.data.disk.engine import columns_of, name, one_row, parquet, stream
from adrec.data.disk.writing import link_file
from adrec.data.vectors import VectorWriter, as_arrow, file_of
from adrec.prepare.output.corpus import insert_texts, insert_written
from adrec.prepare.output.later import later_rows
from adrec.prepare.staging.convert import width_of
from adrec.prepare.text.clean import template_columns
from adrec.prepare.text.maker import TextMaker, language_where_written
from adrec.schema import TableSpec, TextSpec, entity_tables

_BATCH_ROWS = 8_192
"""Rows at once where they bring vectors along."""
_LATER = "later than the cut"
"""Column of a query's result: whether the row exists only after the cut."""
_OLD = ("text of before", "words of before", "language of before")
"""Columns of a query's result: what an earlier output has."""


@dataclass(frozen=True)
class Encoded:
    """A column of vectors that is made of another column, batch by batch."""

    name: str
    width: int
    column: str
    """of the table, or of the texts made of it"""
    encode: Callable[[pa.Array], NDArray[np.float32]]
    """(N,) cells → (N, width), NaN where nothing is known"""


def write_tables(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    maker: TextMaker,
    *,
    cut: datetime | None = None,
    earlier: Path | None = None,
    precisions: Mapping[str, Mapping[str, str]] | None = None,
    encoded: Mapping[str, Sequence[Encoded]] | None = None,
    unchanged: Collection[str] = (),
) -> dict[str, int]:
    """A file of the prepared folder for each table beside the impressions that there is. Returns their rows.

    Columns of vectors are files of their own (`adrec.data.vectors`): `precisions` says of each table which these are, and in
    what precision they are kept; `encoded` says which more are made of other columns.

    Texts that exist only after `cut` are marked so. Texts of `earlier`, the prepared folder that is appended to, are taken
    over where what they are made of is the same. The files of tables that are `unchanged` are linked.
    """
    present = {table for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    later = {spec.name: later_rows(connection, spec, cut) for spec in entity_tables() if spec.name in present}
    return {
        spec.name: _write(
            connection,
            folder,
            spec,
            maker,
            *later[spec.name],
            earlier,
            (precisions or {}).get(spec.name, {}),
            (encoded or {}).get(spec.name, ()),
            is_unchanged=spec.name in unchanged,
        )
        for spec in entity_tables()
        if spec.name in present
    }


def canonical(batch: pa.RecordBatch, spec: TableSpec) -> pa.RecordBatch:
    """Contract columns first and of contract type, extra ones behind; naive UTC timestamps become aware."""
    names = [column for column in spec.names if column in batch.schema.names]
    names += [column for column in batch.schema.names if column not in names]
    arrays = []
    for column in names:
        values = batch.column(column)
        if column in spec:
            values = values.cast(spec[column].type)
        elif pa.types.is_timestamp(values.type):
            values = values.cast(pa.timestamp("us", tz="UTC"))
        arrays.append(values)
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _write(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    spec: TableSpec,
    maker: TextMaker,
    later: str,
    join: str,
    earlier: Path | None,
    precisions: Mapping[str, str],
    encoded: Sequence[Encoded],
    *,
    is_unchanged: bool,
) -> int:
    """`later` is SQL over the table as t and what `join` adds."""
    kinds = columns_of(connection, spec.name)
    columns = [column for column in kinds if column != spec.index]
    vectors = [column for column in columns if column in precisions]
    columns = [column for column in columns if column not in precisions]
    selected = ", ".join(f"t.{name(column)}" for column in columns)
    rows = int(one_row(connection, f"SELECT count(*) AS n FROM {spec.name}")["n"])
    before, before_join = _earlier_texts(connection, spec, maker, earlier)
    if is_unchanged and earlier is not None and not encoded and (spec.text is None or before):
        link_file(earlier / spec.file, folder / spec.file)
        if spec.text is not None:
            insert_written(connection, folder / spec.file, spec, spec.text, later, join)
        return rows
    query = (
        f"SELECT {selected}, {later} AS {name(_LATER)}{before} FROM {spec.name} t {join} {before_join} ORDER BY t.{spec.index}"
    )
    apart = {
        column: VectorWriter(file_of(folder, spec.name, column), rows, width_of(kinds[column]), precisions[column])
        for column in vectors
    }
    made_of = [
        (item, VectorWriter(file_of(folder, spec.name, item.name), rows, item.width, precisions.get(item.name, "float32")))
        for item in encoded
    ]
    dropped = {item.column for item in encoded if kinds.get(item.column) == "BLOB"}

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in stream(connection.cursor(), query, batch_rows=_BATCH_ROWS if encoded else 65_536):
            made = _texts(connection, spec.stored, spec.text, maker, batch) if spec.text is not None else {}
            for item, writer in made_of:
                source = made.get(item.column, batch.column(item.column) if item.column in batch.schema.names else None)
                found = item.encode(source) if source is not None else np.full((batch.num_rows, item.width), np.nan, np.float32)
                writer.add(as_arrow(np.ascontiguousarray(found, np.float32)), where=item.name)
            kept = {column: batch.column(column) for column in columns if column not in made and column not in dropped}
            yield canonical(pa.RecordBatch.from_pydict(kept | made), spec.stored)

    try:
        _write_vectors(connection, spec, apart)
        return write_batches(folder / spec.file, batches())
    finally:
        for writer in (*apart.values(), *(writer for _, writer in made_of)):
            writer.close()


def _write_vectors(connection: duckdb.DuckDBPyConnection, spec: TableSpec, writers: Mapping[str, VectorWriter]) -> None:
    """The columns of vectors, each row at its place: to sort them would take memory for all of them."""
    if not writers:
        return
    wanted = ", ".join(name(column) for column in writers)
    for batch in stream(connection.cursor(), f"SELECT {spec.index}, {wanted} FROM {spec.name}", batch_rows=_BATCH_ROWS):
        rows = batch.column(spec.index).to_numpy()
        for column, writer in writers.items():
            writer.put(rows, batch.column(column), where=f"{spec.name}: column '{column}'")


def _texts(
    connection: duckdb.DuckDBPyConnection, stored: TableSpec, spec: TextSpec, maker: TextMaker, batch: pa.RecordBatch
) -> dict[str, pa.Array]:
    """Text, words and language of the rows by column; the texts join the corpus."""
    whole, words, languages = _rendered(maker, getattr(maker.settings, spec.template), batch)
    insert_texts(connection, spec.kind, whole, words, languages, batch.column(_LATER))
    made = {"text": whole, "segmented": words}
    if stored[spec.language].required:
        made[spec.language] = languages
    elif spec.language not in batch.schema.names:  # else the log itself knows better
        made[spec.language] = language_where_written(whole, languages)
    return made


def _earlier_texts(
    connection: duckdb.DuckDBPyConnection, spec: TableSpec, maker: TextMaker, earlier: Path | None
) -> tuple[str, str]:
    """SQL of the columns `_OLD` and the join that they need: the text of `earlier`, null where it is not the same again."""
    if spec.text is None or earlier is None:
        return "", ""
    ours = columns_of(connection, spec.name)
    if spec.text.language in ours and not spec.stored[spec.text.language].required:
        return "", ""  # the log's own language is no language of the text
    old = f"SELECT * FROM {parquet(earlier / spec.file, options='file_row_number = true')}"
    theirs = {column: kind.removesuffix(" WITH TIME ZONE") for column, kind in columns_of(connection, old).items()}
    used = sorted(template_columns(getattr(maker.settings, spec.text.template)))
    if any(ours.get(column) != theirs.get(column) for column in used):
        return "", ""
    same = " AND ".join(f"t.{name(column)} IS NOT DISTINCT FROM o.{name(column)}" for column in used if column in ours)
    kept = ("text", "segmented", spec.text.language)
    columns = "".join(
        f", CASE WHEN {same or 'true'} THEN o.{name(at)} END AS {name(to)}" for at, to in zip(kept, _OLD, strict=True)
    )
    return columns, f"LEFT JOIN ({old}) o ON o.file_row_number = t.{spec.index}"


def _rendered(maker: TextMaker, template: str, batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array, pa.Array]:
    """TextMaker.render, but for rows that bring their earlier text."""
    if _OLD[0] not in batch.schema.names:
        return maker.render(template, batch)
    whole, words, languages = (batch.column(column) for column in _OLD)
    fresh = whole.is_null()
    if not pc.any(fresh).as_py():
        return whole, words, languages
    made = maker.render(template, batch.filter(fresh))
    return tuple(pc.replace_with_mask(old, fresh, new) for old, new in zip((whole, words, languages), made, strict=True))


def write_batches(path: Path, batches: Iterator[pa.RecordBatch], *, on_rows: Callable[[int], None] | None = None) -> int:
    """One Parquet file from batches of one schema. Returns the rows."""
    writer, rows = None, 0
    try:
        for batch in batches:
            writer = writer or pq.ParquetWriter(path, batch.schema, compression="zstd")
            writer.write_batch(batch)
            rows += batch.num_rows
            if on_rows is not None:
                on_rows(batch.num_rows)
    finally:
        if writer is not None:
            writer.close()
    return rows
