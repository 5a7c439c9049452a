"""What runs on each node of a training: a worker that starts torchrun there, and, in torchrun's processes, what they report.

Neither outlives what started it: a process whose parent is gone ends within a second, so no two trainings write one output.
"""

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from adrec.cluster.files import Inventory
from adrec.cluster.relay import Relay
from adrec.cluster.worker import Fault, Worker, fault_of
from adrec.data.disk.lock import Owner, this_process
from adrec.data.disk.writing import write_aside
from adrec.errors import Interrupted

_PARENT = "ADREC_PARENT"
_EVENTS = "events.jsonl"
_LOG_TAIL = 2_000
"""Characters of what the processes printed that a message may quote."""


class Outcome(NamedTuple):
    """How one process ended."""

    result: Any = None
    fault: Fault | None = None
    interrupted: str | None = None
    """what a signal's end left to say"""


class Look(NamedTuple):
    """What happened on a machine since the last look."""

    lines: list[str]
    """of the first process's `Relay`"""
    code: int | None
    """exit status of torchrun, None while it runs"""


class Machine(Worker):
    """One machine of a training; Ray makes an actor of it."""

    def __init__(self, parent: str) -> None:
        super().__init__(parent)
        self.agent: subprocess.Popen[bytes] | None = None
        self._read = 0

    def unseen(self, needed: Sequence[Inventory]) -> list[str]:
        """Inputs that do not lie on this node as they are named."""
        return [each.path for each in needed if not each.is_same()]

    def free_port(self) -> int:
        """A port that nobody here listens at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], call: bytes) -> None:
        """Start torchrun with `arguments`, and behind them two paths: of `call`, a pickle of what the processes do, and of the
        folder that they report into. What ran before is ended.
        """
        self.end()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        (self.scratch / "call").write_bytes(call)
        self._read = 0
        with open(self.scratch / "log", "wb") as log:
            self.agent = subprocess.Popen(
                [sys.executable, "-m", "adrec.cluster.machine", *arguments, str(self.scratch / "call"), str(self.scratch)],
                env={**os.environ, **environment, _PARENT: str(os.getpid())}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def look(self) -> Look:
        """What happened since the last look."""
        assert self.agent is not None, "start comes first"
        code = self.agent.poll()  # before the file is read: nothing is written after it
        lines: list[str] = []
        with suppress(FileNotFoundError), open(self.scratch / _EVENTS, "rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
            lines = whole.decode("utf-8").splitlines() if whole else []
            self._read += len(whole) + bool(whole)
        return Look(lines, code)

    def outcomes(self) -> list[bytes]:
        """How the processes ended that said so: pickles of `Outcome`."""
        return [path.read_bytes() for path in self.scratch.glob("outcome-*")]

    def log(self) -> str:
        """The end of what torchrun and the processes printed."""
        with suppress(FileNotFoundError):
            return (self.scratch / "log").read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]
        return ""

    def interrupt(self, number: int) -> None:
        """Send a signal to each process of the training; they end in their own way, and torchrun with them."""
        for path in self.scratch.glob("process-*"):
            owner: Owner = pickle.loads(path.read_bytes())
            if not owner.is_gone:  # nor is its number another process's now
                with suppress(ProcessLookupError):
                    os.kill(owner.process, number)

    def end(self) -> None:
        """End torchrun and its processes at once."""
        if self.agent is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.agent.pid, signal.SIGKILL)
        self.interrupt(signal.SIGKILL)
        self.agent.wait()
        self.agent = None

    def tidy(self) -> None:
        """Leave nothing on the node."""
        self.end()
        super().tidy()


def report(work: Callable[[Any, Relay], Any]) -> int:
    """In a process of torchrun, whose last arguments are the call and a folder: do `work` with the call, say how it ended.

    The exit status of the process. The first one has the result; the others end by SystemExit.
    """
    end_with_parent()
    call, folder = (Path(argument) for argument in sys.argv[-2:])
    with write_aside(folder / f"process-{os.getpid()}") as aside:
        aside.write_bytes(pickle.dumps(this_process()))
    try:
        outcome = Outcome(work(pickle.loads(call.read_bytes()), Relay(folder / _EVENTS)))
    except SystemExit as ended:
        if ended.code:
            raise
        return 0
    except KeyboardInterrupt as stopped:
        outcome = Outcome(interrupted=str(stopped) if isinstance(stopped, Interrupted) else "")
    except Exception as error:
        outcome = Outcome(fault=fault_of(error))
    with write_aside(folder / f"outcome-{os.environ['RANK']}") as aside:
        aside.write_bytes(pickle.dumps(outcome))
    return int(outcome.fault is not None or outcome.interrupted is not None)


def end_with_parent() -> None:
    """End this process when the one that started it has ended, however that happened."""
    parent = int(os.environ.get(_PARENT, os.getppid()))
    os.environ[_PARENT] = str(os.getpid())  # of those that are started here

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    from torch.distributed.run import main

    main(sys.argv[1:])
