"""The checkpoint of a run in object storage, beside its output's address: any machine that starts the command again goes on.

A run whose output is an address works in the local mirror of it (`adrec.urls`). What a continuation needs is published after
each checkpoint, the checkpoint last, and removed with the work folder. The store's run is the run: a machine that has an older
one of its own takes the store's.
"""

import shutil
from pathlib import Path

from pyarrow import fs

from adrec.data.remote.fetching import fetch_all, remove
from adrec.data.remote.publishing import publish
from adrec.data.remote.stores import listed, store_of, told
from adrec.errors import ResourceError
from adrec.terminal import Terminal
from adrec.training.loop.callbacks import BEST_WEIGHTS, LAST_CHECKPOINT
from adrec.urls import address_of

RUN_FILE = "run.json"
READY = ".ready"
"""Says for which start of all processes the folder is ready."""


def take_over(folder: Path) -> None:
    """Where a store holds a run for `folder`, it is the one that lies there afterwards. Raises ResourceError."""
    address = address_of(folder)
    if address is not None and LAST_CHECKPOINT in _stored(address):
        mirror_run(folder)


def mirror_run(folder: Path) -> None:
    """The run in `folder` is the store's afterwards, and none where the store has none. Raises ResourceError."""
    address = address_of(folder)
    assert address is not None
    found = _stored(address)
    for file in _run_files(folder):
        if file.name not in found:
            remove(file)
    wanted = [file for file in listed(address) if file.local.name in found and file.local.parent == folder]
    fetch_all(wanted, lambda steps=1, note="": None)


def store_run(folder: Path) -> None:
    """The store's run is that of `folder` afterwards, if its output is an address. Raises ResourceError."""
    address = address_of(folder)
    if address is None:
        return
    here = _run_files(folder)
    for file in here:
        publish(file)
    _delete(address, _stored(address) - {file.name for file in here})


def store_run_or_warn(folder: Path, terminal: Terminal) -> None:
    """As `store_run`; a store that does not answer costs this checkpoint there, and not the training."""
    try:
        store_run(folder)
    except ResourceError as error:
        terminal.warn(f"{error} The checkpoint is on this machine alone; the next one is tried again.")


def say_ready(folder: Path, attempt: str) -> None:
    """Say in `folder`, and in its store, that it is ready for this start of all processes."""
    file = folder / READY
    file.write_text(attempt, encoding="utf-8")
    if address_of(folder) is not None:
        publish(file)


def is_ready(folder: Path, attempt: str) -> bool:
    """Whether `folder` is ready for this start; where only its store says so, the run is fetched. Raises ResourceError."""
    try:
        if (folder / READY).read_text(encoding="utf-8") == attempt:
            return True
    except OSError:
        pass
    address = address_of(folder)
    if address is None:
        return False
    system, place = store_of(address)
    with told(address):
        if system.get_file_info(f"{place}/{READY}").type != fs.FileType.File:
            return False
        with system.open_input_stream(f"{place}/{READY}") as stream:
            if stream.read().decode() != attempt:
                return False
    folder.mkdir(parents=True, exist_ok=True)
    mirror_run(folder)
    return True


def close_work(folder: Path, terminal: Terminal) -> None:
    """Remove a work folder, and what a store holds of its runs: one that does not answer costs no finished training."""
    shutil.rmtree(folder, ignore_errors=True)
    address = address_of(folder)
    if address is None:
        return
    remove(folder)
    try:
        system, place = store_of(address)
        with told(address):
            if system.get_file_info(place).type == fs.FileType.Directory:
                system.delete_dir(place)
    except ResourceError as error:
        terminal.warn(f"{error} What it holds of the finished training's checkpoints stays there.")


def _run_files(folder: Path) -> list[Path]:
    """What a continuation needs, the checkpoint last: it names the others."""
    names = (RUN_FILE, LAST_CHECKPOINT)
    record, last = (folder / name for name in names)
    return [file for file in (record, *sorted(folder.glob(BEST_WEIGHTS)), last) if file.is_file()]


def _stored(address: str) -> set[str]:
    """Names of the run's files that a store holds."""
    system, place = store_of(address)
    with told(address):
        found = system.get_file_info(fs.FileSelector(place, allow_not_found=True))
    names = {info.base_name for info in found if info.type == fs.FileType.File}
    return {name for name in names if name in (RUN_FILE, LAST_CHECKPOINT) or Path(name).match(BEST_WEIGHTS)}


def _delete(address: str, names: set[str]) -> None:
    system, place = store_of(address)
    with told(address):
        for name in sorted(names):
            system.delete_file(f"{place}/{name}")
