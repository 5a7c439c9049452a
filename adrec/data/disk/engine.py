"""The out-of-core engine: one DuckDB database in the work folder, which spills joins and sorts to disk."""

import ctypes
import glob
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from adrec.errors import AdrecError, DataError, ResourceError, without_cells

_SHARE_OF_MEMORY, _LEAST_MEMORY_GB, _ENGINE_SHARE = 0.25, 0.4, 0.6


@contextmanager
def open_engine(folder: Path, *, memory_limit_gb: float | None = None, threads: int = 0) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a database in `folder` (made where missing); its faults leave as AdrecErrors.

    `memory_limit_gb` None is `default_memory_gb()`.
    Time zone UTC, network extensions off, insertion order kept, so that equal inputs give equal outputs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{int(_engine_share(memory_limit_gb or default_memory_gb()) * 1000)}MB",
        "threads": threads or os.cpu_count() or 1,
        "temp_directory": str(folder / "spill"),
        "allocator_background_threads": True,
        "autoinstall_known_extensions": False,
        "disable_parquet_prefetching": True,  # it reads a whole row group at once, however wide
        "preserve_insertion_order": True,
    }
    with readable_faults():
        connection = duckdb.connect(str(folder / "work.duckdb"), config=settings)
        try:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("PRAGMA disable_checkpoint_on_shutdown")  # nobody opens it again
            yield connection
        finally:
            connection.close()


@contextmanager
def making_room(connection: duckdb.DuckDBPyConnection, memory_limit_gb: float | None, held: int) -> Iterator[None]:
    """While the caller holds `held` bytes the engine takes so much less of its share, but for the least it can work with."""
    share = _engine_share(memory_limit_gb or default_memory_gb())
    connection.execute(f"SET memory_limit = '{int(max(share - held / 1e9, min(share, _LEAST_MEMORY_GB)) * 1000)}MB'")
    try:
        yield
    finally:
        connection.execute(f"SET memory_limit = '{int(share * 1000)}MB'")


def default_memory_gb() -> float:
    """A quarter of the memory of the machine, or of the container where it has less; at least 0.4."""
    return max(_LEAST_MEMORY_GB, memory_bytes() * _SHARE_OF_MEMORY / 1e9)


def _engine_share(limit_gb: float) -> float:
    """What joins and sorts may take of a run's memory: batches, states and fits stand beside them."""
    return max(limit_gb * _ENGINE_SHARE, min(limit_gb, _LEAST_MEMORY_GB))


def memory_bytes() -> int:
    """Memory that this process may have: the machine's, or the limit of the control group that it runs in."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [4 << 30]
    for limit in _group_limits():
        with suppress(OSError, ValueError):  # no such file, or the word `max`
            found.append(int(limit.read_text(encoding="ascii")))
    return min(found)


def _group_limits() -> Iterator[Path]:
    """Files that may hold a limit: of the process's own group and the groups above it, version 2, then version 1."""
    groups = {"": "/"}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            groups |= dict.fromkeys(controllers.split(","), group)
    for root, group, file in (
        (Path("/sys/fs/cgroup"), groups[""], "memory.max"),
        (Path("/sys/fs/cgroup/memory"), groups.get("memory", "/"), "memory.limit_in_bytes"),
    ):
        own = root / group.lstrip("/")
        yield from (folder / file for folder in (own, *own.parents) if folder.is_relative_to(root))


@contextmanager
def open_memory_engine(memory_limit_gb: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """An engine for a first look at the inputs; what is too large for it goes to the temporary folder."""
    with readable_faults(), tempfile.TemporaryDirectory(prefix="adrec-") as spill:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{int((memory_limit_gb or max(default_memory_gb(), 1.0)) * 1000)}MB",
            "temp_directory": spill,
            "autoinstall_known_extensions": False,
            "disable_parquet_prefetching": True,  # it reads a whole row group at once, however wide
        }
        connection = duckdb.connect(config=settings)
        try:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection
        finally:
            connection.close()


@contextmanager
def readable_faults(where: str = "") -> Iterator[None]:
    """Turn DuckDB's faults into one line each. With `where`, a file is being read, and any fault but of our SQL is its."""
    try:
        yield
    except AdrecError:
        raise
    except duckdb.OutOfMemoryException as error:
        raise ResourceError(f"out of memory in a join or sort ({_line(error)}). Raise memory_limit_gb.") from None
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException):
        raise
    except duckdb.Error as error:
        text = _line(error)
        if "No space left" in text:
            raise ResourceError(f"the disk is full ({text}). Free some space and run the same command again.") from None
        if where:
            raise DataError(f"{where}: cannot be read ({text}). Mend that place, or write the file again.") from None
        if isinstance(error, duckdb.IOException | duckdb.InvalidInputException | duckdb.DataError):
            raise DataError(f"{text}. Mend that place, or write the file again.") from None
        raise


def stream(connection: duckdb.DuckDBPyConnection, query: str, *, batch_rows: int = 65_536) -> Iterator[pa.RecordBatch]:
    """Result of `query` in record batches, never whole in memory."""
    yield from connection.sql(query).to_arrow_reader(batch_rows)


def fetch(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """Result of `query` as one Arrow table: for small results."""
    return connection.sql(query).to_arrow_table()


def one_row(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    """The first row of a small result, by column name; all None where there is none."""
    cursor = connection.execute(query)
    names = [column[0] for column in cursor.description or ()]
    rows = cursor.fetchall()  # a result left half read would block the connection
    return dict(zip(names, rows[0] if rows else [None] * len(names), strict=True))


def name(identifier: str) -> str:
    """A quoted SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def text(value: str) -> str:
    """A quoted SQL string."""
    return "'" + value.replace("'", "''") + "'"


def moment_sql(moment: datetime) -> str:
    """An aware moment as the engine holds them: naive, in UTC."""
    return f"TIMESTAMP {text(f'{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}')}"


def parquet(*files: Path, options: str = "") -> str:
    """SQL that reads Parquet files, whose names may look like patterns; `options` are more arguments of the reader."""
    listed = ", ".join(text(glob.escape(str(file))) for file in files)
    return f"read_parquet([{listed}]{', ' if options else ''}{options})"


def columns_of(connection: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    """Column name -> DuckDB type of a table or view."""
    return {row[0]: row[1] for row in connection.execute(f"DESCRIBE {relation}").fetchall()}


def create_plain(connection: duckdb.DuckDBPyConnection, table: str, kinds: Mapping[str, str]) -> None:
    """An empty table of columns, by their DuckDB type, that are not compressed: for one that is written and read once.

    To compress half a million rows takes as long as to read them from Parquet.
    """
    columns = ", ".join(f"{name(column)} {kind} USING COMPRESSION uncompressed" for column, kind in kinds.items())
    connection.execute(f"CREATE OR REPLACE TABLE {table} ({columns})")


def give_back_memory() -> None:
    """Hand freed memory back to the system. glibc keeps the holes that large arrays leave, more of them the longer a run is."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


_REASONS = ("Expected Number", "Value with", "Invalid unicode", "Maximum line size", "The CSV")


def _line(error: BaseException) -> str:
    """The gist of a message of many lines, without the row that it quotes: that may be personal."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    at = re.search(r"CSV Error on Line: (\d+)", lines[0])
    if at is not None:
        why = next((line for line in lines if line.startswith(_REASONS)), "it is no row of this table")
        return f"line {int(at.group(1)):,}: {without_cells(why)[:200]}"
    return without_cells(lines[0])[:240]
