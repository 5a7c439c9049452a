"""One command at a time writes into an output; a second one on this machine is refused, not left to mix with the first."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adrec.errors import ResourceError


@contextmanager
def writing_alone(output: Path | None) -> Iterator[None]:
    """Hold the lock of `output` (none: nothing to hold). The system lets it go when the process ends, however it ends.

    The lock lies in the temporary folder and not beside the output, which may not exist yet or may be on another machine's
    disk; commands on two machines do not see each other. Raises ResourceError where another command holds it.
    """
    if output is None or os.environ.get("LOCAL_RANK", "0") != "0":  # the other processes of one DDP run
        yield
        return
    from filelock import FileLock, Timeout

    user = os.getuid() if hasattr(os, "getuid") else ""
    digest = hashlib.sha256(f"{user}:{output.resolve()}".encode()).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"adrec-{digest}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ResourceError(
            f"{output}: another adrec command is writing there. Wait until it ends, or name another output."
        ) from None
    try:
        yield
    finally:
        lock.release()
