"""Remote files in the local mirror (adrec.urls), fetched where their identity is another than that of the copy.

The identity is the ETag, or size and moment of change where a store has none. Memory is a few megabytes a thread. Facts of the
copies lie in a tree of their own (`index`), so that a mirrored folder holds nothing but what the store holds.
"""

import glob
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyarrow import fs

from adrec.data.remote.stores import THREADS, RemoteFile, listed, opened, store_of, told
from adrec.errors import DataError, ResourceError
from adrec.urls import VARIABLE, WEB, local_of, mirror

Advance = Callable[..., None]


def fetch(address: str, advance: Advance = lambda steps=1, note="": None) -> list[RemoteFile]:
    """Make the mirror of `address` (a file, a folder or a pattern) what the store holds, and return its files.

    Raises DataError where there is nothing, ResourceError where it cannot be reached or is being replaced at the moment.
    """
    for _ in range(2):  # what was replaced meanwhile is fetched once more
        files = listed(address)
        if not files:
            raise DataError(f"{address}: no such file, folder or bucket. Look at the address.")
        fetch_all(files, advance)
        if address.startswith(WEB) or [file.identity for file in listed(address)] == [file.identity for file in files]:
            forget_others(address, files)
            return files
    raise ResourceError(f"{address}: changes while it is read. Run the command again when its writer is done.")


def fetch_all(files: Sequence[RemoteFile], advance: Advance) -> None:
    """Fetch those of `files` that are not here. Raises ResourceError where the disk has no room for them."""
    missing = [file for file in files if not is_here(file)]
    need = sum(max(file.size, 0) for file in missing)
    mirror().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(mirror()).free
    if need > free:
        raise ResourceError(
            f"{missing[0].address}: {need / 1e9:.1f} GB to fetch, and {mirror()} has room for {free / 1e9:.1f}. Free some "
            f"space, or name another disk in ${VARIABLE}."
        )
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(_fetch_one, missing):
            advance(1)


def _fetch_one(file: RemoteFile) -> None:
    local = file.local
    if local.is_dir():
        shutil.rmtree(local)
    local.parent.mkdir(parents=True, exist_ok=True)
    aside = local.with_name(f".{local.name[:200]}.{uuid.uuid4().hex[:8]}.fetching")
    try:
        with told(file.address):
            if file.address.startswith(WEB):
                with opened(file.address, "GET") as answer, open(aside, "wb") as target:
                    shutil.copyfileobj(answer, target, 1 << 20)
            else:
                system, place = store_of(file.address)
                fs.copy_files(
                    place, str(aside), source_filesystem=system, destination_filesystem=fs.LocalFileSystem(), chunk_size=1 << 22
                )
        if file.size >= 0 and aside.stat().st_size != file.size:
            raise ResourceError(f"{file.address}: {aside.stat().st_size:,} of {file.size:,} bytes came. Run the command again.")
        os.replace(aside, local)
    finally:
        aside.unlink(missing_ok=True)
    remember(local, file.identity)


def is_here(file: RemoteFile) -> bool:
    """Whether the copy is that of this version of the object."""
    return is_unchanged(file.local) and _facts(file.local)["identity"] == file.identity


def is_unchanged(local: Path) -> bool:
    """Whether a file of the mirror is as it was when it was fetched or published."""
    if not local.is_file() or not _facts_file(local).is_file():
        return False
    stat = local.stat()
    return bool(_facts(local)["local"] == [stat.st_size, stat.st_mtime_ns])


def _facts(local: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(_facts_file(local).read_text(encoding="utf-8"))
    return read


def remember(local: Path, identity: str) -> None:
    """Note of which version of its object the copy is."""
    facts, stat = _facts_file(local), local.stat()
    facts.parent.mkdir(parents=True, exist_ok=True)
    aside = facts.with_name(f"{facts.name}.{uuid.uuid4().hex[:8]}")
    aside.write_text(json.dumps({"identity": identity, "local": [stat.st_size, stat.st_mtime_ns]}), encoding="utf-8")
    os.replace(aside, facts)


def facts_of(local: Path) -> Path:
    """Where the facts of a copy lie, or those of a folder's."""
    return mirror() / "index" / local.relative_to(mirror())


def _facts_file(local: Path) -> Path:
    place = facts_of(local)
    return place.with_name(f"{place.name}.json")


def forget_others(address: str, files: Sequence[RemoteFile]) -> None:
    """Remove copies of what the store no longer holds behind `address`."""
    if address.startswith(WEB):
        return
    wanted = {file.local for file in files}
    local = local_of(address)
    if glob.has_magic(str(local.relative_to(mirror()))):
        here = [path for path in mirror().glob(str(local.relative_to(mirror()))) if path.is_file()]
    else:
        here = [path for path in local.rglob("*") if path.is_file()] if local.is_dir() else []
    for path in here:
        if path not in wanted:
            path.unlink()
            _facts_file(path).unlink(missing_ok=True)


def remove(local: Path) -> None:
    """Remove a file or folder of the mirror, and its facts."""
    for path in (local, facts_of(local)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    _facts_file(local).unlink(missing_ok=True)
