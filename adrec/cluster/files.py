"""Files that workers read: as they lie on a disk that all nodes share, fetched from their store, or sent over the network.

A node that sees a file under the same name, with the same size and moment of change, reads it there. An address of object
storage is fetched by each node for itself into its own mirror. Whatever else is sent once to each node, block by block.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from adrec.data.remote.fetching import fetch
from adrec.urls import address_of, local_of, mirror

BLOCK = 16 * 2**20
"""Bytes that travel at once."""


class Inventory(NamedTuple):
    """One input: a file or a folder, and what is in it."""

    path: str
    address: str | None
    files: tuple[tuple[str, int, int], ...]
    """relative name ('' for a file itself), bytes, moment of change"""

    def is_same(self) -> bool:
        """Whether this machine sees the same under the same name."""
        root = Path(self.path)
        for name, size, changed in self.files:
            try:
                stat = (root / name if name else root).stat()
            except OSError:
                return False
            if (stat.st_size, stat.st_mtime_ns) != (size, changed):
                return False
        return bool(self.files)


def inventory(path: Path) -> Inventory:
    """What `path` holds now."""
    names = [""] if path.is_file() else sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    stats = [(name, (path / name if name else path).stat()) for name in names]
    return Inventory(str(path), address_of(path), tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


def is_here(wanted: Inventory) -> str | None:
    """The place of an input on this machine; None where it must be sent. Raises where its store cannot be reached."""
    if wanted.is_same():
        return wanted.path
    if wanted.address is None:
        return None
    mirror().mkdir(parents=True, exist_ok=True)
    with FileLock(mirror() / ".cluster.lock"):  # the workers of a node share its mirror
        fetch(wanted.address)
    return str(local_of(wanted.address))


def blocks_of(wanted: Inventory) -> Iterator[tuple[str, int, bytes]]:
    """(file, offset, bytes) of everything in an input, in order; an empty file is one empty block."""
    for name, size, _ in wanted.files:
        with open(Path(wanted.path) / name if name else wanted.path, "rb") as handle:
            for offset in range(0, max(size, 1), BLOCK):
                yield name, offset, handle.read(BLOCK)


def relocated(value: Any, places: Mapping[str, str]) -> Any:
    """Plain values with every path at or below a key of `places` moved to where that is."""
    if not places:
        return value
    if isinstance(value, dict):
        return {key: relocated(item, places) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = (relocated(item, places) for item in value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, str):
        for root, place in places.items():
            if value == root or value.startswith(root + os.sep):
                return place + value[len(root) :]
    return value


def distinct(paths: Iterable[Path | None]) -> list[Path]:
    """The paths that exist, none inside another."""
    there = sorted({path for path in paths if path is not None and path != path.parent and path.exists()})
    return [path for path in there if not any(path != other and path.is_relative_to(other) for other in there)]
