"""Files of the log staged by workers of a cluster, one file a task: read, typed, checked, pseudonymised there.

The command plans the one query that types the rows; each worker runs it over its file and sends back the typed rows as
Parquet, which are put together here in the order of the files: table, faults and notes are those of one machine. What the
command needs of the files by itself is their columns, and the cells that it quotes in messages.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from adrec.cluster.files import Inventory, inventory, is_here
from adrec.cluster.pool import Pool
from adrec.config.cluster import ClusterConfig
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.data.sources import TablesSource
from adrec.data.disk.engine import columns_of, name, open_engine, parquet, readable_faults, text
from adrec.errors import ResourceError, concealed, is_concealed
from adrec.prepare.output.fingerprint import digest_of
from adrec.prepare.sources.base import RawTable
from adrec.prepare.sources.files import source_names
from adrec.prepare.sources.malformed import ROWS_A_FILE, refuse_lone_quotes, set_lines_aside
from adrec.prepare.sources.opening import with_members
from adrec.prepare.sources.tables import open_table
from adrec.prepare.staging.privacy import Privacy
from adrec.terminal import Terminal

_SOURCE = ("source_file", "source_row", "source_order")


class PartStager:
    """Creates the table of the impressions from parts that workers make."""

    def __init__(
        self, config: PreprocessConfig, cluster: ClusterConfig, folder: Path, terminal: Terminal, *, skip: int = 0
    ) -> None:
        """`folder`: scratch space; `skip`: files of the log that were staged by an earlier run."""
        self.config, self.cluster, self.folder, self.terminal, self.skip = config, cluster, folder, terminal, skip

    def __call__(self, connection: duckdb.DuckDBPyConnection, raw: RawTable, target: str, query: str) -> None:
        """See `validate.Create`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = self.folder / "known_ads.parquet"
        has_ads = " ads known " in query
        if has_ads:
            connection.execute(f"COPY (SELECT ad_id, ad_index FROM ads) TO {text(str(known))} (FORMAT parquet)")
        shape = f"SELECT * FROM ({query}) LIMIT 0"
        connection.execute(f"CREATE OR REPLACE TABLE {target} AS {shape}")
        kinds = columns_of(connection, target)
        values = ", ".join(f"CAST({name(column)} AS {kind}) AS {name(column)}" for column, kind in kinds.items())
        tasks = self._tasks(raw)
        payload = {
            "config": self.config.model_copy(update={"cluster": None}).model_dump(mode="json"),
            "query": query, "view": raw.view, "stored": columns_of(connection, raw.view),
            "known": str(known) if has_ads else None, "concealed": is_concealed(),
        }  # fmt: skip
        privacy = self.config.privacy
        reads = [known, privacy.forgotten]
        is_broken, part = False, self.folder / "part.parquet"
        with (
            Pool(self.cluster, staging_worker, payload, self.terminal, reads=reads, of="file") as pool,
            self.terminal.progress("staging on the cluster", len(tasks), unit="files") as advance,
        ):
            for made, has_bad_lines in pool.in_order(tasks, len(tasks)):
                part.write_bytes(memoryview(made))
                connection.execute(f"INSERT INTO {target} SELECT {values} FROM {parquet(part)}")
                is_broken = is_broken or has_bad_lines
                advance()
        shutil.rmtree(self.folder)
        if is_broken:  # which lines, for the messages and rejected.parquet
            set_lines_aside(connection, raw.files)

    def _tasks(self, raw: RawTable) -> list[dict[str, Any]]:
        """A file each (an archive with its members), with what its rows are called and where their numbers begin."""
        table = list(raw.files)
        names = source_names(with_members(table))
        tasks, first = [], 0
        for number, file in enumerate(table):
            members = with_members([file])
            called = [names[member] for member in members]
            if number >= self.skip:
                tasks.append({"name": called[0], "file": inventory(file), "called": called, "first": first})
            first += len(members)
        return tasks


def can_share(config: PreprocessConfig) -> bool:
    """Whether the files of the log can be staged one by one: the adapters of public sets read theirs together."""
    return isinstance(config.source, TablesSource)


def staging_worker(payload: dict[str, Any], scratch: Path) -> Callable[[dict[str, Any]], tuple[NDArray[np.uint8], bool]]:
    """In a worker of a cluster: from a file to its typed rows, and whether lines of it could not be read."""
    config = PreprocessConfig.model_validate(payload["config"])
    assert isinstance(config.source, TablesSource), "can_share says so"
    table = config.source.impressions

    def stage(task: dict[str, Any]) -> tuple[NDArray[np.uint8], bool]:
        folder, made = scratch / "engine", scratch / "part.parquet"
        shutil.rmtree(folder, ignore_errors=True)
        file = seen(task["file"])
        with (
            concealed(payload["concealed"]),
            open_engine(folder, memory_limit_gb=config.memory_limit_gb, threads=config.threads) as connection,
            readable_faults(str(file)),
        ):
            Privacy(connection, config.privacy)
            if payload["known"] is not None:
                connection.execute(f"CREATE VIEW ads AS SELECT * FROM {parquet(Path(payload['known']))}")
            own = table.model_copy(update={"files": [str(file)]})
            raw = open_table(connection, "raw_part", own)
            refuse_lone_quotes(connection, raw.files)
            rows = _as_in_the_table(connection, payload["stored"], task["called"], task["first"])
            connection.execute(f"CREATE TEMP VIEW {payload['view']} AS {rows}")
            copy = f"COPY ({payload['query']}) TO {text(str(made))} (FORMAT parquet, COMPRESSION zstd)"
            has_bad_lines = False
            try:
                connection.execute(copy)
            except (duckdb.InvalidInputException, duckdb.IOException):
                if not set_lines_aside(connection, raw.files):
                    raise
                has_bad_lines = True
                connection.execute(copy)
        result = np.fromfile(made, np.uint8)
        made.unlink()
        return result, has_bad_lines

    return stage


def digests_on_cluster(cluster: ClusterConfig, files: Sequence[Path], terminal: Terminal) -> dict[Path, str]:
    """Digests of files, each read by one worker."""
    tasks = [{"name": file.name, "file": inventory(file)} for file in files]
    with Pool(cluster, digesting_worker, None, terminal, of="file") as pool:
        return dict(zip(files, pool.in_order(tasks, len(tasks)), strict=True))


def digesting_worker(payload: None, scratch: Path) -> Callable[[dict[str, Any]], str]:
    """In a worker of a cluster: from a file to its digest."""
    return lambda task: digest_of(seen(task["file"]))


def seen(wanted: Inventory) -> Path:
    """A file of the log as this node has it. Raises ResourceError where it does not: a log is never sent."""
    place = is_here(wanted)
    if place is None:
        raise ResourceError(
            f"{wanted.path}: this node does not see the file as it is. Put the log on a disk that all nodes share, or in a"
            " store (s3://...)."
        )
    return Path(place)


def _as_in_the_table(connection: duckdb.DuckDBPyConnection, stored: dict[str, str], called: Sequence[str], first: int) -> str:
    """SQL of the rows of view `raw_part` as the view over all files would give them."""
    found = columns_of(connection, "raw_part")
    cells = [
        f"{name(column)}" if found.get(column) == kind
        else f"CAST({name(column) if column in found else 'NULL'} AS {kind}) AS {name(column)}"
        for column, kind in stored.items()
        if column not in _SOURCE
    ]  # fmt: skip
    listed = ", ".join(map(text, called))
    return (
        f"SELECT {', '.join(cells)}, [{listed}][source_order // {ROWS_A_FILE} + 1] AS source_file, source_row, "
        f"source_order + {first * ROWS_A_FILE} AS source_order FROM raw_part"
    )
