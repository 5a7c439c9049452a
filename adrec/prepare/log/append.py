"""Append new files of impressions to an earlier output, or say why everything must be built anew.

An append gives what a rebuild from all files gives, byte for byte in the data columns, because every number that old rows
hold (row_id, ad_index, user_index, history, counters, part) stays what it was. Where it would not, CannotAppendError says why.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from adrec.config.preprocess import ColdSplit, ColumnSplit, PreprocessConfig, TimeSplit, UserSplit
from adrec.data.engine import columns_of, name, one_row, text
from adrec.data.prepared import STATE, shards_of
from adrec.prepare.sources import RawTables
from adrec.schema import SPLITS


class CannotAppendError(Exception):
    """Not a fault: the run builds everything instead."""


@dataclass(frozen=True)
class Earlier:
    """The output that is appended to."""

    folder: Path
    manifest: dict[str, Any]
    files: int
    """files of impressions that it holds already"""

    def counts(self, label: str) -> tuple[int, int]:
        """Source rows read and rejected before; tables other than the impressions are read anew."""
        found = self.manifest["source_rows"][label] if label == "impressions" else {"rows": 0, "rejected": 0}
        return found["rows"], found["rejected"]

    @property
    def state(self) -> Path:
        """What counters and histories carry on."""
        return self.folder / STATE


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
    if not raw.can_skip:
        raise CannotAppendError("this source is always read whole")
    if raw.ads is None:
        raise CannotAppendError("the impressions describe the ads, and may describe old ones anew")
    described = {*extra_users, "interests"} & set(columns_of(connection, raw.impressions.view))
    if raw.users is None and described:
        raise CannotAppendError("the impressions describe the users, and may describe old ones anew")
    stable = isinstance(config.split, UserSplit | ColdSplit | ColumnSplit) or (
        isinstance(config.split, TimeSplit) and config.split.test_from is not None
    )
    if not stable:
        raise CannotAppendError("new rows move old ones to another part of this split")
    old, new = (
        [item["digest"] for item in listed if item["table"] == "impressions"] for listed in (manifest["inputs"], inputs)
    )
    if new[: len(old)] != old or len(new) == len(old):
        raise CannotAppendError("files have changed or gone")
    return Earlier(config.output, manifest, len(old))


def add_earlier_users(connection: duckdb.DuckDBPyConnection, earlier: Earlier) -> int:
    """Users of the earlier output that the users table lacks go behind it, in their order. Returns how many."""
    before = int(one_row(connection, "SELECT count(*) AS n FROM users")["n"])
    connection.execute(
        f"INSERT INTO users BY NAME SELECT CAST({before} + row_number() OVER (ORDER BY file_row_number) - 1 AS INTEGER) "
        f"AS user_index, user_id FROM read_parquet({_file(earlier, 'users')}, file_row_number = true) "
        "WHERE user_id NOT IN (SELECT user_id FROM users) ORDER BY file_row_number"
    )
    return int(one_row(connection, "SELECT count(*) AS n FROM users")["n"]) - before


def check_ads(connection: duckdb.DuckDBPyConnection, earlier: Earlier) -> None:
    """Raise CannotAppendError unless the earlier ads open the new table, unchanged."""
    _check_prefix(connection, earlier, "ads", "ad_index")


def check_users(connection: duckdb.DuckDBPyConnection, earlier: Earlier) -> None:
    """Raise CannotAppendError unless the earlier users open the new table, unchanged."""
    _check_prefix(connection, earlier, "users", "user_index")


def check_events(connection: duckdb.DuckDBPyConnection, earlier: Earlier) -> None:
    """Raise CannotAppendError where a new row is not later than all old ones, or goes on with an old request."""
    last = earlier.manifest["last"].removesuffix("Z")
    if one_row(connection, f"SELECT min(shown_at) <= TIMESTAMP {text(last)} AS early FROM events")["early"]:
        raise CannotAppendError("new rows are not all later than those before")
    shards = [str(file) for split in SPLITS for file in shards_of(earlier.folder, split)]
    listed = ", ".join(map(text, shards))
    theirs = columns_of(connection, f"SELECT * FROM read_parquet({text(shards[0])})")
    ours = columns_of(connection, "events")
    for column, kind in theirs.items():
        # The type of a text file's column is guessed from its values: a new file may suggest another.
        if column in ours and ours[column] != kind.removesuffix(" WITH TIME ZONE"):
            raise CannotAppendError(f"column '{column}' is of another type in the new files")
    if "request_id" not in ours:
        return
    again = f"SELECT request_id FROM events WHERE request_id IN (SELECT request_id FROM read_parquet([{listed}])) LIMIT 1"
    if connection.execute(again).fetchall():
        raise CannotAppendError("a request goes on in the new files")


def link_shards(earlier: Earlier, folder: Path) -> dict[str, int]:
    """The earlier shards in the new folder, by hard link where the disk can do that. Returns their number by split."""
    numbers = {}
    for split in SPLITS:
        files = shards_of(earlier.folder, split)
        numbers[split] = len(files)
        for file in files:
            target = folder / "impressions" / split / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, target)
            except OSError:
                shutil.copyfile(file, target)
    return numbers


def _check_prefix(connection: duckdb.DuckDBPyConnection, earlier: Earlier, table: str, index: str) -> None:
    old = f"(SELECT * FROM read_parquet({_file(earlier, table)}, file_row_number = true))"
    ours = [column for column in columns_of(connection, table) if column != index]
    theirs = columns_of(connection, f"SELECT * FROM {old}")
    if any(column not in theirs for column in ours):
        raise CannotAppendError(f"the {table} have other columns")
    same = " AND ".join(
        f"n.{name(column)} IS NOT DISTINCT FROM " + (f"timezone('UTC', o.{name(column)})" if "TIME ZONE" in theirs[column] else
                                                     f"o.{name(column)}")
        for column in ours
    )  # fmt: skip
    found = one_row(
        connection,
        f"SELECT count(*) AS old, count_if(n.{index} IS NULL OR NOT ({same})) AS changed FROM {old} o "
        f"LEFT JOIN {table} n ON n.{index} = o.file_row_number",
    )
    if found["changed"]:
        raise CannotAppendError(f"earlier {table} have changed")


def _file(earlier: Earlier, table: str) -> str:
    return text(str(earlier.folder / f"{table}.parquet"))
