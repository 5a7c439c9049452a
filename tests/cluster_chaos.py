"""Ends processes (-9) below this one in the midst of a run: a worker, the raylet of a node, or a whole node."""

import os
import signal
import threading
import time
from pathlib import Path

from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


def below(pid):
    """All that a process started, and what those did."""
    try:
        lines = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
    return [found for line in lines for child in map(int, line.split()) for found in (child, *below(child))]


def workers():
    """adrec's workers of the cluster that this process started."""
    return [pid for pid in below(os.getpid()) if _line(pid).startswith((b"ray::Worker", b"ray::Machine"))]


def trainers():
    """Processes of a training that torchrun started below this one."""
    return [pid for pid in below(os.getpid()) if b"adrec.stages.training.on_cluster" in _line(pid).split(b"\0")[:4]]


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:g} seconds")


class Killer(threading.Thread):
    """After `seconds`, and when there is a worker (and `when()`), ends one of `what`: process (of a training), worker, raylet,
    node. In a node's place another comes.

    As a context: left when the run is over, whether anything was killed or not.
    """

    def __init__(self, cluster, seconds, what="worker", when=workers):
        super().__init__(daemon=True)
        self.when = when
        self.cluster, self.seconds, self.what = cluster, seconds, what
        self.killed = 0
        self._over = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *fault):
        self._over.set()
        self.join()

    def run(self):
        self._over.wait(self.seconds)
        while not self._over.is_set() and not (self.when() and (there := trainers() if self.what == "process" else workers())):
            self._over.wait(0.05)
        if self._over.is_set():
            return
        self.killed += 1
        if self.what in ("process", "worker"):
            os.kill(there[self.killed % len(there)], signal.SIGKILL)
            return
        node = self.cluster.nodes.pop(0)
        if self.what == "raylet":
            os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster._shutdown_at_exit = False  # else it wants signals, which threads may not have; the fixture ends it
        self.cluster.nodes.append(self.cluster.add_node(num_cpus=1, **self.cluster.small))


def bytes_of(path, *, but=("config.yaml",)):
    """Of a file, or of a folder's files but those called `but`."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and file.name not in but)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def _line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
