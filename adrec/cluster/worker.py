"""What runs in a worker: it gets the files that it needs, builds its work once, and then makes one part after another."""

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adrec import __version__
from adrec.cluster.files import Inventory, is_here, relocated
from adrec.errors import AdrecError, concealed, is_concealed

Work = Callable[[Any], Any]
"""From a task to its result."""
Factory = Callable[[Any, Path], Work]
"""From a payload of plain values and a scratch folder to the work. A function of a module, which every node has."""


class Fault(NamedTuple):
    """What a worker could not do, and would not do better elsewhere."""

    error: Exception | None
    """a fault the user can mend"""
    text: str = ""
    """of any other: where it came from, without its message where data is personal"""
    is_concealed: bool = False


class Worker:
    """One process of a node; Ray makes an actor of it."""

    def __init__(self, parent: str) -> None:
        """`parent`: which session it belongs to; names what it leaves on the node's disk."""
        self.folder = Path(tempfile.gettempdir()) / f"adrec-{parent}"
        self.scratch = self.folder / f"worker-{os.getpid()}"
        self.work: Work | None = None
        self.moved: dict[str, str] = {}

    def about(self) -> tuple[str, str, str]:
        """Ray's id of the node, its address, and adrec's version there."""
        import ray

        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return ray.get_runtime_context().get_node_id(), address, __version__

    def places(self, needed: Sequence[Inventory]) -> list[str | None] | Fault:
        """Where each of the inputs lies on this node: as it is named, fetched from its store, or None: to be sent."""
        try:
            return [is_here(inventory) for inventory in needed]
        except AdrecError as error:
            return fault_of(error)

    def receive(self, number: str, name: str, offset: int, block: Any) -> str:
        """Take in one block of a file of input `number`; the place of the input on this node."""
        root = self.folder / f"input-{number}"
        file = root / name if name else root
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "r+b" if offset else "wb") as handle:
            handle.seek(offset)
            handle.write(memoryview(block))
        return str(root)

    def begin(self, factory: Factory, payload: Any, places: Mapping[str, str], threads: int) -> Fault | None:
        """Build the work. `places`: inputs as the driver names them → as this node does."""
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
            if "torch" in sys.modules:  # the work is torch's
                from adrec.data.device import use_threads

                use_threads(threads)
            self.work, self.moved = factory(relocated(payload, places), self.scratch), dict(places)
        except Exception as error:
            return fault_of(error)
        return None

    def do(self, task: Any) -> Any:
        """The result of one task, or a Fault."""
        assert self.work is not None, "begin comes first"
        try:
            return self.work(relocated(task, self.moved))
        except Exception as error:
            return fault_of(error)

    def tidy(self) -> None:
        """Leave nothing on the node."""
        shutil.rmtree(self.folder, ignore_errors=True)


def fault_of(error: Exception) -> Fault:
    """What a worker says of an error."""
    if isinstance(error, AdrecError):
        return Fault(type(error)(str(error)), is_concealed=is_concealed(error))
    if isinstance(error, OSError) and error.errno is not None:
        return Fault(OSError(error.errno, error.strerror or "", error.filename), is_concealed=is_concealed(error))
    hidden = is_concealed(error)
    lines = traceback.format_tb(error.__traceback__) if hidden else traceback.format_exception(error)
    return Fault(None, "".join([*lines, type(error).__name__ if hidden else ""]), hidden)


def raised(fault: Fault, where: str) -> None:
    """Raise on the driver what a worker said, with where it happened."""
    with concealed(fault.is_concealed):
        if isinstance(fault.error, AdrecError):
            raise type(fault.error)(f"{fault.error} ({where})")
        if fault.error is not None:
            raise fault.error
        raise RuntimeError(f"{where}:\n{fault.text}")
