"""Where rows to score come from: chunks of a table with the Examples behind them, from a prepared split or the user's files."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adrec.config.score import RowsConfig
from adrec.data.arrays import combined
from adrec.data.availability import Availability
from adrec.data.disk.tables import check_schema, iter_batches, open_dataset, parquet_files, parquet_schema, read_table
from adrec.data.examples import Examples
from adrec.data.prepared import Prepared, open_prepared
from adrec.errors import DataError
from adrec.inference.known import Known, known_of, own_rows, placed
from adrec.inference.predictor import Catalogs, Predictor
from adrec.prepare.staging.canonical import canonical_rows
from adrec.schema import IMPRESSIONS, PREPARED_IMPRESSIONS, TableSpec

INTERNAL = ("ad_index", "user_index", "history_index", "history_hours", "skipped_index", "history_length")
"""Columns of a prepared folder that mean nothing outside it."""


WHO = TableSpec("impressions", (IMPRESSIONS["user_id"],))


class Chunk(NamedTuple):
    """Some rows in order: the columns to keep, the rows as prepared impressions, and the arrays that the model reads."""

    table: pa.Table
    rows: pa.Table
    examples: Examples


class Source(Protocol):
    """Rows to score."""

    catalogs: Catalogs
    ads: pa.Table

    def known_then(self) -> Known:
        """What answers for the past of other pairs than the rows'."""

    def availability(self) -> Availability:
        """From when to when each ad of the catalogue may be shown."""

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """Rows `start` up to `stop` (the end where None) in order; one empty chunk where there are none."""


def count_rows(config: RowsConfig) -> int:
    """How many rows a config names. Raises DataError where a file is missing or broken."""
    if config.split is not None:
        assert config.prepared is not None
        files = open_prepared(config.prepared).split_files(config.split)
    else:
        assert config.impressions is not None
        files = parquet_files(config.impressions)
    return sum(pq.read_metadata(file).num_rows for file in files if parquet_schema(file) is not None)


def open_source(config: RowsConfig, predictor: Predictor) -> Source:
    """The rows that a config names. Raises DataError where a file is missing or broken."""
    prepared = open_prepared(config.prepared) if config.prepared is not None else None
    if config.split is not None:
        assert prepared is not None
        return PreparedSource(prepared, config.split, predictor, config.chunk_rows)
    return TableSource(config, prepared, predictor)


class PreparedSource:
    """A split of a prepared folder, with the history and counters that preprocess attached."""

    def __init__(self, prepared: Prepared, split: str, predictor: Predictor, chunk_rows: int) -> None:
        self.prepared, self.split, self.predictor, self.chunk_rows = prepared, split, predictor, chunk_rows
        self.catalogs = predictor.catalogs(prepared.ads(), prepared.users())
        self.ads = ads = prepared.ads()
        self.of_ad = ads.select([name for name in ("category", "language", "bid", "advertiser_id") if name in ads.column_names])

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """What `evaluate` slices by is joined from the ads."""
        folder = self.prepared.path / "impressions" / self.split
        if not self.prepared.split_files(self.split):
            raise DataError(f"{folder}: the split '{self.split}' has no rows. Change the split in the preprocess config.")
        check_schema(parquet_schema(self.prepared.split_files(self.split)[0]), PREPARED_IMPRESSIONS, where=str(folder))
        for table in _tables(folder, start, stop, self.chunk_rows):
            examples = self.predictor.examples_of(table)
            kept = table.select([name for name in table.column_names if name not in INTERNAL])
            joined = self.of_ad.take(table["ad_index"])
            for name in joined.column_names:
                if name not in kept.column_names:
                    kept = kept.append_column(name, joined[name])
            yield Chunk(kept, table, examples)

    def known_then(self) -> Known:
        """What the folder's log knows, of the split's users."""
        users = combined(self.prepared.users()["user_id"])
        rows = [batch["user_index"] for batch in self.prepared.iter(self.split, ["user_index"], 1 << 20)]
        asked = users.take(pc.unique(pa.chunked_array(rows))) if rows else users.slice(0, 0)
        return known_of(self.prepared, self.catalogs.ad_table, asked_users=asked)

    def availability(self) -> Availability:
        """As preprocess found it."""
        return self.prepared.availability()


class TableSource:
    """The user's own rows. What they do not bring of the past is what the prepared folder's log knew at their moments, or,
    for histories, a click log of the user's own."""

    def __init__(self, config: RowsConfig, prepared: Prepared | None, predictor: Predictor) -> None:
        assert config.impressions is not None
        self.path, self.predictor, self.chunk_rows = config.impressions, predictor, config.chunk_rows
        own = [name for name in ("ads", "users") if getattr(config, name) is not None]
        ads = read_table(config.ads) if config.ads is not None else None
        users = read_table(config.users) if config.users is not None else None
        if prepared is not None:
            ads = prepared.ads() if ads is None else ads
            users = prepared.users() if users is None else users
        assert ads is not None
        self.ads = ads
        self._available = prepared.availability() if prepared is not None and config.ads is None else None
        asked = self._users()
        self.catalogs = predictor.catalogs(ads, users, asked, where=str(config.ads or config.prepared))
        clicks = read_table(config.history) if config.history is not None else None
        self.known = known_of(prepared, self.catalogs.ad_table, clicks, asked_users=asked, where=str(config.history), own=own)

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """Chunks in file order."""
        features = self.predictor.packed.features["impressions"]
        for rows in _tables(self.path, start, stop, self.chunk_rows):
            table = own_rows(rows, features, where=str(self.path), first_row=start)
            user, ad = placed(table, self.catalogs.ads.ids, self.catalogs.users.ids, where=str(self.path), first_row=start)
            attached = self.predictor.attached(table, self.catalogs, self.known, user, ad)
            yield Chunk(table, attached, self.predictor.examples_of(attached))
            start += table.num_rows

    def known_then(self) -> Known:
        """What attaches the rows' past."""
        return self.known

    def availability(self) -> Availability:
        """By the user's own ads where they are given, else as preprocess found it."""
        return self._available if self._available is not None else Availability.of_ads(self.ads)

    def _users(self) -> pa.Array:
        """Distinct users of all rows."""
        found: list[pa.Array] = []
        schema = parquet_schema(parquet_files(self.path)[0])
        if "user_id" not in schema.names:
            return pa.array([], pa.string())  # the missing column is reported with all others
        row = 0
        for batch in iter_batches(self.path, columns=["user_id"], batch_rows=1 << 20):
            ids = canonical_rows(pa.Table.from_batches([batch]), WHO, where=str(self.path), first_row=row)["user_id"]
            found = [pc.unique(pa.concat_arrays([*found, combined(ids)]))]
            row += batch.num_rows
        return found[0] if found else pa.array([], pa.string())


def _tables(path: Path, start: int, stop: int | None, chunk_rows: int) -> Iterator[pa.Table]:
    """Rows `start` up to `stop`, each table of `chunk_rows` rows but the last; one empty table where there are none."""
    held: list[pa.RecordBatch] = []
    rows, found = 0, False
    for batch in iter_batches(path, batch_rows=chunk_rows, start=start, stop=stop):
        room = chunk_rows - rows
        held.append(batch.slice(0, room))
        rows += held[-1].num_rows
        if rows == chunk_rows:
            yield pa.Table.from_batches(held).combine_chunks()
            found, rest = True, batch.slice(room)
            held, rows = [rest] if rest.num_rows else [], rest.num_rows
    if held:
        yield pa.Table.from_batches(held).combine_chunks()
    elif not found:
        yield open_dataset(path).schema.empty_table()
