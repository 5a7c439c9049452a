"""Where rows to score come from: chunks of a table with the Examples behind them, from a prepared split or the user's files."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adrec.config.inference.score import RowsConfig
from adrec.data.arrays import combined
from adrec.data.availability import Availability
from adrec.data.disk.tables import check_schema, iter_batches, open_dataset, parquet_schema, read_table
from adrec.data.examples import Examples
from adrec.data.features import FeatureSet
from adrec.data.prepared import Prepared, open_prepared
from adrec.errors import DataError
from adrec.inference.catalogs import Catalogs
from adrec.inference.known import Known, known_of, placed
from adrec.inference.own_tables import OwnTables, as_of_rows, stage_own, with_described
from adrec.inference.predictor import Predictor
from adrec.inference.rows import refuse_other_spaces
from adrec.prepare.own_files import LogForm, with_standard_input
from adrec.schema import ADS, NOBODY, PREPARED_IMPRESSIONS, USERS

INTERNAL = ("ad_index", "user_index", "history_index", "history_hours", "skipped_index", "history_length")
"""Columns of a prepared folder that mean nothing outside it."""


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


def count_rows(config: RowsConfig, own: OwnTables) -> int:
    """How many rows a config names. Raises DataError where a file is missing or broken."""
    if config.split is not None:
        assert config.prepared is not None
        files = open_prepared(config.prepared).split_files(config.split)
    else:
        assert own.rows is not None
        files = [own.rows]
    return sum(pq.read_metadata(file).num_rows for file in files if parquet_schema(file) is not None)


def stage_rows(config: RowsConfig, form: LogForm, features: Mapping[str, FeatureSet], folder: Path) -> OwnTables:
    """The user's own tables of a config, read into `folder`. Raises DataError where one cannot be."""
    if config.impressions is None:
        return OwnTables()
    prepared = open_prepared(config.prepared) if config.prepared is not None else None
    tables = {
        "impressions": config.impressions, "ads": config.ads, "users": config.users, "history": config.history,
    }  # fmt: skip
    return stage_own(form, features, folder, tables, columns=config.columns, prepared=prepared)


def open_source(config: RowsConfig, predictor: Predictor, own: OwnTables | None = None) -> Source:
    """The rows that a config names; `own` are its tables where they are read already. Raises DataError where a file is missing
    or broken.
    """
    prepared = open_prepared(config.prepared) if config.prepared is not None else None
    if prepared is not None:
        refuse_other_spaces(prepared, predictor.packed.features, _own_tables(config) if config.split is None else ())
    if config.split is not None:
        assert prepared is not None
        return PreparedSource(prepared, config.split, predictor, config.chunk_rows)
    return TableSource(config, prepared, predictor, own)


class PreparedSource:
    """A split of a prepared folder, with the history and counters that preprocess attached."""

    def __init__(self, prepared: Prepared, split: str, predictor: Predictor, chunk_rows: int) -> None:
        self.prepared, self.split, self.predictor, self.chunk_rows = prepared, split, predictor, chunk_rows
        self.catalogs = predictor.catalogs(prepared.ads(), prepared.users())
        self.ads = ads = prepared.ads()
        described = ("category", "language", "bid", "advertiser_id") if prepared.has.ad else ()
        self.of_ad = ads.select([name for name in described if name in ads.column_names])

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """What `evaluate` slices by is joined from the ads."""
        folder = self.prepared.path / "impressions" / self.split
        if not self.prepared.split_files(self.split):
            raise DataError(f"{folder}: the split '{self.split}' has no rows. Change the split in the preprocess config.")
        check_schema(parquet_schema(self.prepared.split_files(self.split)[0]), PREPARED_IMPRESSIONS, where=str(folder))
        for table in _tables(folder, start, stop, self.chunk_rows):
            examples = self.predictor.examples_of(table)
            rows = table.select([name for name in table.column_names if name not in INTERNAL])
            rows = rows.set_column(rows.column_names.index("request_id"), "request_id", without_lone(table["request_id"]))
            for name in self.of_ad.column_names:
                if name not in rows.column_names:
                    rows = rows.append_column(name, self.of_ad[name].take(table["ad_index"]))
            yield Chunk(rows, table, examples)

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

    def __init__(
        self, config: RowsConfig, prepared: Prepared | None, predictor: Predictor, own: OwnTables | None = None
    ) -> None:
        assert config.impressions is not None
        self.predictor, self.chunk_rows, self.where = predictor, config.chunk_rows, config.impressions.name
        if own is None:
            self._folder = tempfile.TemporaryDirectory(prefix="adrec-rows-")  # goes with this source
            folder = Path(self._folder.name)
            spooled = config.model_copy(update={"impressions": with_standard_input(config.impressions, folder)})
            own = stage_rows(spooled, predictor.packed.form, predictor.packed.features, folder)
        assert own.rows is not None
        self.path = own.rows
        ads = read_table(own.ads) if own.ads is not None else prepared.ads() if prepared is not None else None
        users = read_table(own.users) if own.users is not None else prepared.users() if prepared is not None else None
        ads = with_described(ads, own.row_ads, ADS, predictor.packed)
        users = with_described(users, own.row_users, USERS, predictor.packed)
        if ads is None:
            assert not predictor.packed.has.ad
            ads = pa.table({"ad_id": [NOBODY]})
        self.ads = ads
        self._available = prepared.availability() if prepared is not None and config.ads is None else None
        asked = self._users()
        ads_from = config.ads.name if config.ads is not None else str(config.prepared or self.where)
        self.catalogs = predictor.catalogs(ads, users, asked, where=ads_from)
        clicks = read_table(own.history) if own.history is not None else None
        where = config.history.name if config.history is not None else "history"
        self.known = known_of(prepared, self.catalogs.ad_table, clicks, asked_users=asked, where=where, own=_own_tables(config))

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """Chunks in file order."""
        form = self.predictor.packed.form
        for rows in _tables(self.path, start, stop, self.chunk_rows):
            table = as_of_rows(rows, self.predictor.described, form)
            ads, users, has = self.catalogs.ads.ids, self.catalogs.users.ids, self.predictor.packed.has
            user, ad = placed(table, ads, users, has, where=self.where, first_row=start)
            attached = self.predictor.attached(table, self.catalogs, self.known, user, ad)
            yield Chunk(rows, attached, self.predictor.examples_of(attached))
            start += rows.num_rows

    def known_then(self) -> Known:
        """What attaches the rows' past."""
        return self.known

    def availability(self) -> Availability:
        """By the user's own ads where they are given, else as preprocess found it."""
        return self._available if self._available is not None else Availability.of_ads(self.ads)

    def _users(self) -> pa.Array:
        """Distinct users of all rows."""
        users: list[pa.Array] = []
        if "user_id" not in open_dataset(self.path).schema.names:
            return pa.array([NOBODY])
        for batch in iter_batches(self.path, columns=["user_id"], batch_rows=1 << 20):
            users = [pc.unique(pa.concat_arrays([*users, pc.fill_null(batch.column("user_id"), NOBODY)]))]
        return users[0] if users else pa.array([], pa.string())


def _own_tables(config: RowsConfig) -> list[str]:
    return [label for label in ("ads", "users") if getattr(config, label) is not None]


def without_lone(requests: pa.ChunkedArray) -> pa.Array:
    """Names of requests, null where preprocess gave a row one of its own: `@` and its number."""
    names = combined(requests)
    return pc.if_else(pc.match_substring_regex(names, r"^@\d+$"), pa.scalar(None, names.type), names)


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
