"""Outputs in object stores: brought down before a run, published after it, so that no reader ever sees half of one.

A folder is uploaded under a name of its own, then moved to its place file by file by the store itself, the JSON files at its
top, which say that it is whole, last. Meanwhile a record in the folder says that it is being replaced, and `fetch` refuses it.
"""

import fnmatch
import json
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyarrow import fs

from adrec.data.disk.outputs import OutputKind, is_stray
from adrec.data.remote.fetching import Advance, facts_of, fetch_all, forget_others, is_unchanged, remember, remove
from adrec.data.remote.stores import ASIDE, RECORD, THREADS, RemoteFile, identity, inside, listed, store_of, told
from adrec.errors import ResourceError
from adrec.urls import WEB, address_of, local_of

_TRIES = 3
"""Of an upload that came to nothing: Arrow does not always say that a store refused a piece."""
_LARGEST_MOVE = 5_000_000_000
"""Bytes that stores copy in one call."""


def bring_down(address: str, kind: OutputKind) -> None:
    """Make the mirror of the output at `address` what the store holds, nothing where it holds nothing.

    Raises ResourceError where something lies there that is no earlier output of `kind`, without fetching it.
    """
    if address.startswith(WEB):
        raise ResourceError(f"{address}: a web server is only read. Name a folder of an object store, or of this machine.")
    if "/" not in inside(address).strip("/"):
        raise ResourceError(f"{address}: is a whole bucket. Name a place in it.")
    local = local_of(address)
    files = listed(address, is_output=True)
    system, place = store_of(address)
    if not files or _being_replaced(system, place):  # what is half replaced is nobody's: it is written anew
        remove(local)
        return
    _refuse_strangers(address, kind, files)
    fetch_all(files, lambda steps=1, note="": None)
    forget_others(address, files)


def publish(local: Path, advance: Advance = lambda steps=1, note="": None) -> int:
    """Upload the file or folder `local` of the mirror to its address, in place of what is there; the number of files.

    A run that was killed in the middle is finished by calling this again. Raises ResourceError.
    """
    address = address_of(local)
    assert address is not None
    system, place = store_of(address)
    with told(address):
        if _is_published(local):
            return 0
        if local.is_file():
            _put_whole(system, local, place)
            remember(local, identity(system, place, local.stat().st_size))
            advance(1)
            return 1
        return _publish_folder(system, place, local, advance)


def publish_or_withdraw(local: Path) -> None:
    """What lies at the address of the file `local` becomes what the mirror has: that file, or nothing."""
    if local.is_file():
        publish(local)
        return
    address = address_of(local)
    assert address is not None
    system, place = store_of(address)
    with told(address):
        if system.get_file_info(place).type == fs.FileType.File:
            system.delete_file(place)


def _refuse_strangers(address: str, kind: OutputKind, files: Sequence[RemoteFile]) -> None:
    """By the names of the files and the JSON files at the top, which are small and say what a folder is."""
    names = [file.address.removeprefix(f"{address.rstrip('/')}/") for file in files]
    is_file = len(files) == 1 and files[0].address == address
    if is_file == kind.is_folder:
        here = "file" if is_file else "folder"
        raise ResourceError(f"{address}: is a {here}, and the output is {kind.what}. Name another output.")
    if is_file:
        return  # the guard of this machine reads it when it has come
    tops = [file for file, name in zip(files, names, strict=True) if "/" not in name and name.endswith(".json")]
    if not tops and not callable(kind.holds) and all(_fits(name, kind.holds) for name in names):
        return
    fetch_all(tops, lambda steps=1, note="": None)
    try:
        known = kind.holds if isinstance(kind.holds, tuple) else tuple(kind.holds(local_of(address)))
    except (OSError, ValueError, KeyError, TypeError):
        known = ()
    strange = next((name for name in names if not _fits(name, known)), None)
    if strange is not None:
        raise ResourceError(
            f"{address}: holds {strange}, and is not {kind.what} that adrec wrote. Name another output, or move it away."
        )


def _fits(name: str, known: Sequence[str]) -> bool:
    return is_stray(Path(name)) or any(fnmatch.fnmatchcase(name, pattern) for pattern in known)


def _being_replaced(system: fs.FileSystem, place: str) -> bool:
    with told(place):
        return bool(system.get_file_info(f"{place}/{RECORD}").type == fs.FileType.File)


def _publish_folder(system: fs.FileSystem, place: str, local: Path, advance: Advance) -> int:
    names = sorted(path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file())
    last = [name for name in names if "/" not in name and name.endswith(".json")]
    first = [name for name in names if name not in set(last)]
    before = system.get_file_info(fs.FileSelector(place, recursive=True, allow_not_found=True))
    old = {info.path.removeprefix(f"{place}/") for info in before if info.type == fs.FileType.File}
    for leftover in {name.split("/")[0] for name in old if name.startswith(ASIDE)}:
        system.delete_dir(f"{place}/{leftover}")  # of a run that was killed
    old = {name for name in old if not name.startswith(ASIDE) and name != RECORD}
    aside = f"{place}/{ASIDE}{uuid.uuid4().hex[:8]}"
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(lambda name: _put(system, local / name, f"{aside}/{name}"), names):
            advance(1)
        # From here to the end nobody may read the folder; each step may be done again.
        _put_text(system, f"{place}/{RECORD}", json.dumps({"files": names}))
        for name in sorted(old & {*last}):
            system.delete_file(f"{place}/{name}")
        list(pool.map(lambda name: _move(system, f"{aside}/{name}", f"{place}/{name}"), first))
        for name in sorted(old - {*names}):
            if system.get_file_info(f"{place}/{name}").type == fs.FileType.File:
                system.delete_file(f"{place}/{name}")
        for name in last:
            _move(system, f"{aside}/{name}", f"{place}/{name}")
        system.delete_file(f"{place}/{RECORD}")
        if system.get_file_info(aside).type == fs.FileType.Directory:
            system.delete_dir(aside)  # stores with folders keep the empty one
        shutil.rmtree(facts_of(local), ignore_errors=True)
        tags = pool.map(lambda name: identity(system, f"{place}/{name}", (local / name).stat().st_size), names)
        for name, tag in zip(names, tags, strict=True):
            remember(local / name, tag)
    return len(names)


def _is_published(local: Path) -> bool:
    """Whether nothing changed since it was brought down or published."""
    if local.is_file():
        return is_unchanged(local)
    files = [path for path in local.rglob("*") if path.is_file()]
    known = len(list(facts_of(local).rglob("*.json"))) if facts_of(local).is_dir() else 0
    return len(files) == known and all(is_unchanged(file) for file in files)


def _put_whole(system: fs.FileSystem, local: Path, place: str) -> None:
    """One file: aside and moved, so that no cut copy ever has its name; beyond what stores move, a multipart upload is whole or
    nothing by itself."""
    if local.stat().st_size > _LARGEST_MOVE:
        _put(system, local, place)
        return
    folder, _, name = place.rpartition("/")
    aside = f"{folder}/{ASIDE}{uuid.uuid4().hex[:8]}-{name}"
    _put(system, local, aside)
    _move(system, aside, place)


def _move(system: fs.FileSystem, source: str, target: str) -> None:
    if isinstance(system, fs.HadoopFileSystem) and system.get_file_info(target).type == fs.FileType.File:
        system.delete_file(target)  # it does not move over anything
    system.move(source, target)


def _put(system: fs.FileSystem, local: Path, place: str) -> None:
    if isinstance(system, fs.HadoopFileSystem):
        system.create_dir(place.rpartition("/")[0], recursive=True)
    here = fs.LocalFileSystem()
    for _ in range(_TRIES):
        fs.copy_files(str(local), place, source_filesystem=here, destination_filesystem=system, chunk_size=1 << 22)
        if system.get_file_info(place).size == local.stat().st_size:
            return
    raise ResourceError(f"{local}: was not uploaded whole. Run the same command again to finish.")


def _put_text(system: fs.FileSystem, place: str, text: str) -> None:
    with system.open_output_stream(place) as stream:
        stream.write(text.encode())
