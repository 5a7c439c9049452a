"""Append new files of impressions to an earlier output, or say why everything must be built anew.

`append: exact` gives what a rebuild from all files gives, byte for byte in the data columns, because every number that old
rows hold (row_id, ad_index, user_index, history, counters, part) stays what it was; where it would not, CannotAppendError says
why. `append: fast` keeps these numbers and says what a rebuild would have changed. Either costs what the new files cost, plus
copies of what is kept by key (ads, users, sums); the impressions of before are linked, not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from adrec.config.data.preprocess import LeaveLastOutSplit, PreprocessConfig, RandomSplit, RollingSplit, Split, TimeSplit
from adrec.data.disk.engine import columns_of, name, one_row, parquet, text
from adrec.data.disk.writing import link_file
from adrec.data.prepared import STATE, shards_of
from adrec.data.shape import LogShape
from adrec.data.vectors import stored_columns
from adrec.prepare.log.carried import FOLDER, known_requests
from adrec.prepare.log.splits import held_bounds, rolling_bounds
from adrec.prepare.log.versions import written_versions
from adrec.prepare.sources import RawTables
from adrec.prepare.staging.validate import UNKNOWN_AD
from adrec.schema import ADS, KNOWN_FROM, SPLITS, USERS, WEIGHT, TableSpec


class CannotAppendError(Exception):
    """Not a fault: the run builds everything instead."""


@dataclass(frozen=True)
class Earlier:
    """The output that is appended to."""

    folder: Path
    manifest: dict[str, Any]
    files: int
    """files of impressions that it holds already"""
    is_exact: bool = True
    same_tables: frozenset[str] = frozenset()
    """tables beside the impressions whose files are those of before"""
    kept: list[str] = field(default_factory=list)
    """what is kept from before though a rebuild would give something else, in words"""

    def keep(self, why: str, kept: str) -> None:
        """Note that something is `kept`; where the append must be exact, raise CannotAppendError with `why`."""
        if self.is_exact:
            raise CannotAppendError(why)
        self.kept.append(kept)

    def counts(self, label: str) -> tuple[int, int]:
        """Source rows read and rejected before; tables other than the impressions are read anew."""
        found = self.manifest["source_rows"][label] if label == "impressions" else {"rows": 0, "rejected": 0}
        return found["rows"], found["rejected"]

    @property
    def state(self) -> Path:
        """What counters and histories carry on."""
        return self.folder / STATE

    @property
    def files_of_impressions(self) -> list[Path]:
        """All its shards."""
        return [file for split in SPLITS for file in shards_of(self.folder, split)]

    def table(self, spec: TableSpec) -> str:
        """SQL of a table beside the impressions as it was, with `file_row_number`, which is its index."""
        return parquet(self.folder / spec.file, options="file_row_number = true")


def plan_append(
    connection: duckdb.DuckDBPyConnection,
    config: PreprocessConfig,
    raw: RawTables,
    inputs: list[dict[str, Any]],
    *,
    config_digest: str,
    manifest: dict[str, Any],
    extra_users: Sequence[str] = (),
) -> Earlier:
    """The earlier output, if `inputs` are its inputs and more impressions. Raises CannotAppendError."""
    if manifest.get("config") != config_digest:
        raise CannotAppendError("the config has changed")
    old, new = (_digests(listed, "impressions") for listed in (manifest["inputs"], inputs))
    if new[: len(old)] != old:
        raise CannotAppendError("files have changed or gone")
    same = frozenset(table for table in raw.tables if _digests(manifest["inputs"], table) == _digests(inputs, table))
    earlier = Earlier(config.output, manifest, len(old), is_exact=config.append == "exact", same_tables=same)
    if config.append == "never":
        raise CannotAppendError("append is set to never")
    if earlier.is_exact and manifest.get("kept"):
        raise CannotAppendError("fast appends kept what a rebuild gives otherwise")
    if not (earlier.folder / FOLDER).is_dir():
        raise CannotAppendError("the earlier output does not say what an append goes on from")
    if raw.events:
        earlier.keep(
            f"{' and '.join(raw.events)} come in files of their own, and may be of earlier rows",
            f"the labels of earlier rows, whatever {' and '.join(raw.events)} came in later",
        )
    if len(new) == len(old):
        raise CannotAppendError("tables beside the impressions have changed")
    if not LogShape.of(manifest).time:
        raise CannotAppendError("the log names no moments, and only later rows can be appended")
    if not raw.can_skip:
        raise CannotAppendError("this source is always read whole")
    if raw.ads is None:
        raise CannotAppendError("the impressions describe the ads, and may describe old ones anew")
    described = {*extra_users, "interests"} & set(columns_of(connection, raw.impressions.view))
    if raw.users is None and described:
        raise CannotAppendError("the impressions describe the users, and may describe old ones anew")
    _check_split(config.split, earlier)
    return earlier


def split_of(connection: duckdb.DuckDBPyConnection, config: PreprocessConfig, earlier: Earlier | None) -> Split:
    """The split of new rows: rolling bounds as they are now, and bounds by shares of the rows stay where they were."""
    if isinstance(config.split, RollingSplit):
        return rolling_bounds(connection, config.split)
    if earlier is None or not isinstance(config.split, TimeSplit):
        return config.split
    return held_bounds(config.split, earlier.manifest["cuts"])


def keep_numbers(connection: duckdb.DuckDBPyConnection, earlier: Earlier, spec: TableSpec) -> None:
    """Number table `spec.name` as before: earlier rows keep their index, new ones go behind, in their order.

    Exact appends need that the new table says so itself; else those inserted between others go behind too, and those that
    have gone stay as they were.
    """
    key, index = str(spec.key), spec.index
    joined = f"FROM {spec.name} t FULL JOIN {earlier.table(spec)} o USING ({key})"
    counts = one_row(
        connection,
        f"SELECT count_if(t.{index} IS NULL) AS gone, count_if(t.{index} <> o.file_row_number) AS moved, "
        f"count(o.file_row_number) AS old {joined}",
    )
    if counts["gone"]:
        earlier.keep(f"earlier {spec.name} have gone", f"{spec.name} that the table no longer has, as they were")
    if counts["moved"]:
        what = f"the numbers of the {spec.name}; new ones go behind, whatever their place in the table"
        earlier.keep(f"{spec.name} were put before earlier ones", what)
    if not counts["gone"] and not counts["moved"]:
        return
    if counts["gone"] and stored_columns(earlier.folder, spec.name):
        raise CannotAppendError(f"earlier {spec.name} have gone, and their vectors with them")
    theirs = columns_of(connection, f"SELECT * FROM {earlier.table(spec)}")
    columns = []
    for column, kind in columns_of(connection, spec.name).items():
        if column in {key, index}:
            continue
        before = without_zone(f"o.{name(column)}", theirs[column]) if column in theirs else "NULL"
        columns.append(f"CASE WHEN t.{key} IS NULL THEN CAST({before} AS {kind}) ELSE t.{name(column)} END AS {name(column)}")
    behind = f"{counts['old']} + row_number() OVER (PARTITION BY o.{key} IS NULL ORDER BY t.{index}) - 1"
    place = f"coalesce(o.file_row_number, {behind})"
    connection.execute(
        f"CREATE OR REPLACE TABLE {spec.name} AS SELECT {', '.join([f'CAST({place} AS INTEGER) AS {index}', key, *columns])} "
        f"FROM {spec.name} t FULL JOIN {earlier.table(spec)} o USING ({key}) ORDER BY {index}"
    )


def check_known(earlier: Earlier, new_ads: int) -> None:
    """New ads may be those that earlier rows were rejected for, or that earlier given histories left out."""
    if not new_ads:
        return
    if any(item["reason"] == UNKNOWN_AD for item in earlier.manifest["rejected"]["reasons"]):
        what = "rows that were rejected for an ad that was unknown then"
        earlier.keep("earlier rows were rejected for ads that may be known now", what)
    if earlier.manifest["history"]["unknown_items"]:
        what = "given histories without the ads that were unknown then"
        earlier.keep("earlier histories hold ids of ads that may be known now", what)


def check_catalogue(connection: duckdb.DuckDBPyConnection, earlier: Earlier) -> None:
    """New ads might have been drawn beside earlier clicks, as negatives, had they been in the table then."""
    if one_row(connection, "SELECT count(*) AS n FROM ads")["n"] != earlier.manifest["ads"]:
        what = "negatives of earlier clicks, drawn from the ads that there were"
        earlier.keep("the ads have become more, from which negatives are drawn", what)


def check_described(
    connection: duckdb.DuckDBPyConnection, earlier: Earlier, folder: Path, spec: TableSpec, by: Sequence[str]
) -> None:
    """Earlier ads (or users) must have the values that their counters were kept by. Both tables are written."""
    now = parquet(folder / spec.file, options="file_row_number = true")
    ours, theirs = (columns_of(connection, f"SELECT * FROM {table}") for table in (now, earlier.table(spec)))
    for column in (column for column in by if column in ours):
        if column not in theirs:
            raise CannotAppendError(f"the {spec.name} have a column '{column}' now, which counters are kept by")
        found = one_row(
            connection,
            f"SELECT count(*) AS n FROM {now} t JOIN {earlier.table(spec)} o USING (file_row_number) "
            f"WHERE t.{name(column)} IS DISTINCT FROM o.{name(column)}",
        )["n"]
        if found:
            what = f"counters of earlier rows, by the '{column}' that their {spec.name} had then"
            earlier.keep(f"'{column}' of earlier {spec.name} has changed, which counters are kept by", what)


def check_events(connection: duckdb.DuckDBPyConnection, earlier: Earlier) -> None:
    """Raise CannotAppendError where a new row is not later than all old ones, or a column is of another type.

    A new row that goes on with an old request is another request's in a fast append.
    """
    last = earlier.manifest["last"].removesuffix("Z")
    if one_row(connection, f"SELECT min(shown_at) <= TIMESTAMP {text(last)} AS early FROM events")["early"]:
        raise CannotAppendError("new rows are not all later than those before")
    shard = next(file for split in SPLITS for file in shards_of(earlier.folder, split))
    theirs = columns_of(connection, f"SELECT * FROM {parquet(shard)}")
    ours = columns_of(connection, "events")
    for column, kind in theirs.items():
        # The type of a text file's column is guessed from its values: a new file may suggest another.
        if column in ours and ours[column] != kind.removesuffix(" WITH TIME ZONE"):
            raise CannotAppendError(f"column '{column}' is of another type in the new files")
    others = (set(ours) - set(theirs)) - {"request", "started", "part", "history"}
    if others:
        raise CannotAppendError(f"column '{min(others)}' is in the new files only")
    if WEIGHT in theirs and WEIGHT not in ours:
        raise CannotAppendError("the new files are a row an impression, those before are counts")
    again = known_requests(connection, earlier.folder)
    if again:
        earlier.keep(
            "a request goes on in the new files", "requests that go on in new files, whose new rows are a request of their own"
        )


def check_versions(connection: duckdb.DuckDBPyConnection, earlier: Earlier, versioned: Mapping[str, Sequence[str]]) -> None:
    """Raise CannotAppendError where the earlier rows would know other versions of ads or users than they do."""
    last = earlier.manifest["last"].removesuffix("Z")
    for spec in (ADS, USERS):
        file, columns = earlier.folder / f"{spec.versions}.parquet", versioned.get(spec.name, ())
        if file.is_file() != bool(columns):
            raise CannotAppendError(f"other columns of the {spec.name} change than before")
        if not columns:
            continue
        old = f"SELECT * FROM read_parquet({text(str(file))})"
        if list(columns_of(connection, old))[2:] != list(columns):
            raise CannotAppendError(f"other columns of the {spec.name} change than before")
        known = f"WHERE {KNOWN_FROM} IS NULL OR timezone('UTC', {KNOWN_FROM}) <= TIMESTAMP {text(last)}"
        sides = [f"SELECT * FROM ({query}) {known}" for query in (old, written_versions(spec, columns))]
        for one, other in (sides, sides[::-1]):
            if connection.execute(f"({one}) EXCEPT ({other}) LIMIT 1").fetchall():
                what = f"what earlier rows knew of the {spec.name} then"
                earlier.keep(f"earlier versions of the {spec.name} have changed", what)


def link_shards(earlier: Earlier, folder: Path, splits: Sequence[str] = SPLITS) -> None:
    """The earlier shards of `splits` in the new folder, by hard link where the disk can do that."""
    for split in splits:
        for file in shards_of(earlier.folder, split):
            link_file(file, folder / "impressions" / split / file.name)


def without_zone(value: str, kind: str) -> str:
    """A moment as the engine holds it: without its zone, in UTC."""
    return f"timezone('UTC', {value})" if kind.endswith("TIME ZONE") else value


def _digests(inputs: Sequence[Mapping[str, Any]], table: str) -> list[str]:
    """Of the files of a table, in order."""
    return [item["digest"] for item in inputs if item["table"] == table]


def _check_split(split: Split, earlier: Earlier) -> None:
    """Whether old rows keep their part."""
    moves = "new rows move old ones to another part of this split"
    if isinstance(split, LeaveLastOutSplit):
        raise CannotAppendError(moves)
    if isinstance(split, RandomSplit):
        earlier.keep(moves, "the part of each row; new rows are drawn by themselves")
    elif isinstance(split, TimeSplit) and split.test_from is None and (split.valid_fraction or split.test_fraction):
        earlier.keep(
            moves, "the moments at which validation and test begin; shares of the rows are no longer those of the config"
        )
