"""Work for the workers of the cluster's tests: apart, so that workers import it without pytest. And a pool without workers."""

import os
import pickle
import signal
import tempfile
import time
from pathlib import Path

from adrec.errors import DataError


def squares(payload, scratch):
    """Squares numbers. Numbers under `deadly` end the worker the first time; those under `wrong` are refused."""
    folder = Path(payload["folder"])

    def work(number):
        mark = folder / f"died-{number}"
        if number in payload.get("deadly", ()) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number in payload.get("always", ()):
            os._exit(1)
        if number in payload.get("wrong", ()):
            raise DataError(f"log.csv: row {number}: 'shown_at' is empty. Fill it.")
        if number in payload.get("buggy", ()):
            raise KeyError(number)
        with open(folder / f"made-{number}", "a") as made:
            made.write(f"{os.getpid()}\n")
        time.sleep(payload.get("seconds", 0.0))
        if "bundle" not in payload:
            return number * number
        return number * number, payload["bundle"], Path(payload["bundle"], "weights").read_bytes()

    return work


class InlinePool:
    """In the place of `adrec.cluster.pool.Pool`: the same work in this process, everything on its way pickled."""

    def __init__(self, cluster, factory, payload, terminal, *, reads=(), of="part"):
        self.factory, self.payload, self.reads = pickle.loads(pickle.dumps(factory)), payload, list(reads)
        self.tasks = []

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory()
        self._work = self.factory(pickle.loads(pickle.dumps(self.payload)), Path(self._folder.name))
        return self

    def __exit__(self, *fault):
        self._folder.cleanup()

    def workers(self, most):
        return 3

    def each(self, tasks, most=None, *, at_once=False):
        for task in tasks:
            self.tasks.append(task)
            yield task, pickle.loads(pickle.dumps(self._work(pickle.loads(pickle.dumps(task)))))

    def in_order(self, tasks, most):
        for _, result in self.each(tasks):
            yield result
