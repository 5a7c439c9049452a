"""Write aside, then rename: a kill at any moment leaves an earlier output whole, and only what adrec wrote is replaced.

What is written aside is named for its process, so that no run deletes what another, living one is writing.
"""

import ctypes
import errno
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from adrec.data.disk.lock import Owner, this_process
from adrec.data.disk.outputs import OutputKind, followed, guard_output, is_stray
from adrec.errors import ResourceError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FOREIGN_DAYS = 7
"""Days after which what another machine left aside is taken for dead."""


@contextmanager
def write_aside(path: Path, kind: OutputKind | None = None) -> Iterator[Path]:
    """Yield a path beside `path` for a file; on success it replaces `path` (a link's target), on failure it is removed.

    `kind` None is for files inside adrec's own folders. Raises ResourceError when the folder cannot be written, the disk is
    full, or `path` is something that adrec did not write as this `kind`.
    """
    target = _target(path, kind)
    with _writing(target) as aside:
        yield aside
        with open(aside, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(aside, _target(path, kind))


def put_file(finished: Path, path: Path, kind: OutputKind) -> None:
    """Rename a finished file of the same disk to the output `path`, as write_aside does at its end."""
    os.replace(finished, guard_output(path, kind))


@contextmanager
def folder_aside(path: Path, kind: OutputKind) -> Iterator[Path]:
    """Yield a new empty folder beside `path`; on success it takes the place of `path` (a link's target) in one step.

    An earlier folder at `path` stays whole and readable until then, and after any failure or kill.
    Raises ResourceError when the parent cannot be written, the disk is full, or `path` is not an earlier output of `kind`.
    """
    restore(followed(path))
    with _writing(guard_output(path, kind)) as aside:
        aside.mkdir()
        yield aside
        _give_folder_rights(aside)
        target = guard_output(path, kind)  # hours may have gone by
        if target.exists():
            _carry_strays(target, aside)
            _exchange(aside, target)
        else:
            os.rename(aside, target)


def restore(path: Path) -> None:
    """Put back what stood at `path` before a run that was killed between two renames."""
    for name in (f".{path.name}.previous", f".{path.name}.previous.aside"):  # the second is of versions before this one
        previous = path.with_name(name)
        if previous.is_symlink() or not previous.exists():
            continue
        if path.exists():
            _remove(previous)
        else:
            os.rename(previous, path)


def _target(path: Path, kind: OutputKind | None) -> Path:
    return followed(path) if kind is None else guard_output(path, kind)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    aside = _aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield aside
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ResourceError(f"{path}: the disk is full. Free some space and run the same command again.") from None
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
            raise ResourceError(f"{path}: cannot be written ({error.strerror}). Choose another output.") from None
        if error.errno in {errno.ENOTDIR, errno.EEXIST}:
            raise ResourceError(f"{path}: a file stands where a folder is needed. Choose another output.") from None
        raise
    finally:
        _remove(aside)


def _aside(path: Path) -> Path:
    owner = this_process()
    return path.with_name(f".{path.name}.{_host(owner)}-{owner.process}-{owner.started}-{uuid.uuid4().hex[:6]}.aside")


def _host(owner: Owner) -> str:
    return sha256(f"{owner.host} {owner.machine}".encode()).hexdigest()[:8]


def _give_folder_rights(folder: Path) -> None:
    """Whoever may read the folder may read its files: safetensors writes for the owner alone, and servers run as others."""
    rights = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(rights)


def _carry_strays(old: Path, new: Path) -> None:
    """What a file manager keeps in a folder stays there, as far as the new one has the place for it."""
    for file in old.rglob("*"):
        if is_stray(file) and file.is_file() and not file.is_symlink():
            there = new / file.relative_to(old)
            if there.parent.is_dir() and not there.exists():
                shutil.copy2(file, there)


def _remove_leftovers(path: Path) -> None:
    """Delete what ended runs left beside `path`; what a living process, or one of another machine, writes stays."""
    me = this_process()
    pattern = re.compile(re.escape(f".{path.name}.") + r"([0-9a-f]{8})(?:-(\d+)-(\d*)-[0-9a-f]{6})?\.aside")
    with suppress(FileNotFoundError):
        for leftover in path.parent.iterdir():
            match = pattern.fullmatch(leftover.name)
            if match is None:
                continue
            if match[2] is not None and match[1] == _host(me):
                is_dead = Owner(me.host, me.machine, int(match[2]), match[3]).is_gone
            else:  # another machine's, or of a version that did not name its process
                is_dead = _days_old(leftover) > (_FOREIGN_DAYS if match[2] is not None else 1)
            if is_dead:
                _remove(leftover)


def _days_old(path: Path) -> float:
    try:
        return (time.time() - path.stat().st_mtime) / 86_400
    except OSError:
        return 0.0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        # What cannot be removed (a file stands where its folder should be) was never written.
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _exchange(aside: Path, path: Path) -> None:
    """Swap two folders in one step; where the system cannot, by two renames, which `restore` completes after a kill."""
    if _swap(aside, path):
        return
    previous = path.with_name(f".{path.name}.previous")
    _remove(previous)
    os.rename(path, previous)
    os.rename(aside, path)
    _remove(previous)


def _swap(aside: Path, path: Path) -> bool:
    """renameat2 of Linux; False where the system or the disk does not have it."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    return bool(libc.renameat2(_AT_FDCWD, os.fsencode(aside), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE) == 0)


def link_file(file: Path, target: Path) -> None:
    """The same file in another place, by hard link where the disk can do that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
