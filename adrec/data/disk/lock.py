"""One command at a time writes an output, also where several machines share its disk: a lock file lies beside the output.

The file appears whole or not at all (a hard link), and says who holds it: machine, process, start of the process. A lock whose
process has ended on this machine is taken over. Of other machines that cannot be known, so the message says how to remove it;
but where a training on a cluster starts anew, its earlier processes have ended wherever they were.
"""

import errno
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from adrec.errors import ResourceError
from adrec.ranks import RUN


@dataclass(frozen=True)
class Owner:
    """A process of a machine. `started` tells it from a later process of the same number."""

    host: str
    machine: str
    process: int
    started: str

    @property
    def is_local(self) -> bool:
        """Whether it is a process of this machine."""
        return (self.host, self.machine) == (platform.node(), _machine())

    @property
    def is_gone(self) -> bool:
        """True where it is known that the process has ended; never of other machines."""
        return self.is_local and not _runs(self.process, self.started)


def this_process() -> Owner:
    """The owner of what this process writes."""
    return Owner(platform.node(), _machine(), os.getpid(), _start(os.getpid()))


@contextmanager
def output_lock(output: Path) -> Iterator[None]:
    """Hold `output` for the block. Raises ResourceError where another command holds it, or nothing can be written beside it."""
    lock = lock_path(output)
    made = [folder for folder in lock.parents if not folder.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with _one_taker(lock):
            _take(lock, output)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.EEXIST}:
            raise ResourceError(f"{output}: a file stands where a folder is needed. Choose another output.") from None
        raise ResourceError(f"{output}: cannot be written ({error.strerror}). Choose another output.") from None
    try:
        yield
    finally:
        with suppress(OSError):  # someone removed it by hand
            lock.unlink()
        for folder in made:  # of a command that failed before it wrote anything
            with suppress(OSError):
                folder.rmdir()


def lock_path(output: Path) -> Path:
    """Where the lock of an output lies."""
    return output.with_name(f".{output.name}.lock")


def _take(lock: Path, output: Path) -> None:
    facts = {**asdict(this_process()), "run": os.environ.get(RUN, ""), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    mine = lock.with_name(f"{lock.name}.{os.getpid()}")
    try:
        mine.write_text(json.dumps(facts), encoding="utf-8")
        for _ in range(3):
            try:
                _link(mine, lock)
                return
            except FileExistsError:
                if not _is_left_behind(lock):
                    raise ResourceError(_refusal(output, lock)) from None
                lock.unlink(missing_ok=True)
    finally:
        mine.unlink(missing_ok=True)
    raise ResourceError(_refusal(output, lock))


def _link(mine: Path, lock: Path) -> None:
    """Make the lock out of `mine` in one step. Raises FileExistsError where there is one."""
    try:
        os.link(mine, lock)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        with open(lock, "x", encoding="utf-8") as handle:
            handle.write(mine.read_text(encoding="utf-8"))


class _Held(NamedTuple):
    """What a lock says."""

    owner: Owner
    since: str
    run: str
    """the training on a cluster that it is of; empty for any other command"""


def _read(lock: Path) -> _Held | None:
    """What the lock says; None where it is not there, or says nothing."""
    try:
        facts = json.loads(lock.read_text(encoding="utf-8"))
        owner = Owner(*(facts[name] for name in ("host", "machine", "process", "started")))
        return _Held(owner, str(facts["since"]), str(facts.get("run", "")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_left_behind(lock: Path) -> bool:
    held = _read(lock)
    if held is None:
        return not lock.exists()
    return held.owner.is_gone or (bool(held.run) and held.run == os.environ.get(RUN))


def _refusal(output: Path, lock: Path) -> str:
    held = _read(lock)
    if held is not None and held.owner.is_local:
        return (
            f"{output}: another adrec command is writing there (process {held.owner.process}, since {held.since})."
            " Wait until it ends, or name another output."
        )
    who = "it does not say which"
    if held is not None:
        who = f"process {held.owner.process} on {held.owner.host}, since {held.since}"
    return f"{output}: another adrec command is writing there ({who}). If it no longer runs, remove {lock} and start again."


@contextmanager
def _one_taker(lock: Path) -> Iterator[None]:
    """Processes of this machine look at a lock one after the other, or two of them could take over the same one."""
    from filelock import FileLock

    user = os.getuid() if hasattr(os, "getuid") else ""
    digest = hashlib.sha256(os.fsencode(lock.parent.resolve() / lock.name)).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"adrec-{user}-{digest}.lock", timeout=60):
        yield


@cache
def _machine() -> str:
    with suppress(OSError):
        return Path("/etc/machine-id").read_text(encoding="utf-8").strip()
    return ""


def _start(process: int) -> str:
    """When a process started, in whatever unit the system has; `ended` of one that nobody waits for; empty where unknown."""
    try:
        # Behind the name, which may hold spaces and brackets, the start is the 20th field (proc(5)).
        facts = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
        return "ended" if facts[0] in "ZX" else facts[19]
    except (OSError, IndexError):
        return ""


def _runs(process: int, started: str) -> bool:
    with suppress(PermissionError):  # another user's process is one too
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    now = _start(process)
    return not (now and started) or now == started
