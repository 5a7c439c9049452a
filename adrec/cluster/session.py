"""A connection to Ray for the length of a command: one that runs, or a local one that ends with the command.

Ray is imported here and in `pool.py` alone, when a config asks for a cluster: no other command pays for it (3 seconds).
"""

import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

from adrec import __version__
from adrec.cluster.worker import Worker
from adrec.config.cluster import ClusterConfig
from adrec.errors import ResourceError, install_hint, reason_of

LOCAL_OBJECT_STORE = 200 * 2**20
"""Bytes of shared memory that a local Ray takes: only finished parts on their way pass through it."""
_TIDY_SECONDS = 2.0


class PlacedWorker(NamedTuple):
    """A worker that stands on a node."""

    actor: Any
    node: str
    """Ray's id of it"""
    address: str


class Session:
    """A connection, and the workers that wait in it for their next work: a process takes seconds to start."""

    def __init__(self, ray: Any, cluster: ClusterConfig) -> None:
        self.ray, self.cluster = ray, cluster
        self.name = uuid.uuid4().hex[:12]
        self._idle: list[PlacedWorker] = []
        self._lock = threading.Lock()

    def actor(self, kind: type[Worker], cluster: ClusterConfig) -> Any:
        """A new worker, which stands when it answers."""
        wanted = needs(cluster)
        made = self.ray.remote(
            num_cpus=wanted["CPU"], num_gpus=wanted.get("GPU", 0), memory=wanted.get("memory"), scheduling_strategy="SPREAD",
            max_restarts=0, max_task_retries=0,
        )(kind)  # fmt: skip
        return made.remote(self.name)

    def standing(self, actor: Any) -> PlacedWorker:
        """The worker, when it stands. Raises ResourceError where its node has another adrec."""
        node, address, version = self.ray.get(actor.about.remote())
        if version != __version__:
            raise ResourceError(
                f"cluster: node {address} has adrec {version}, and this machine {__version__}. Install the same."
            )
        return PlacedWorker(actor, node, str(address))

    def take(self, cluster: ClusterConfig) -> PlacedWorker | None:
        """A worker that waits, where it has what `cluster` asks for; it may have died since."""
        with self._lock:
            return self._idle.pop() if self._idle and self._suits(cluster) else None

    def keep(self, workers: Iterable[PlacedWorker], cluster: ClusterConfig) -> None:
        """Let workers that have done their work wait for more."""
        workers = list(workers)
        if not self._suits(cluster):
            self.end([worker.actor for worker in workers])
            return
        with self._lock:
            self._idle += workers

    def _suits(self, cluster: ClusterConfig) -> bool:
        """Whether workers that wait have what `cluster` asks for."""
        return needs(cluster) == needs(self.cluster)

    def end(self, actors: list[Any]) -> None:
        """End workers, and take away what they left on their nodes."""
        if not actors:
            return
        tidy = [actor.tidy.remote() for actor in actors]
        with suppress(Exception):  # of workers that are gone
            self.ray.wait(tidy, num_returns=len(tidy), timeout=_TIDY_SECONDS)
        for actor in actors:
            with suppress(Exception):
                self.ray.kill(actor)

    def close(self) -> None:
        """End all that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
        self.end([worker.actor for worker in idle])


_open: Session | None = None
"""The one of this process."""


@contextmanager
def session(cluster: ClusterConfig) -> Iterator[Session]:
    """A connection to Ray. Raises ResourceError where Ray is not installed or the address does not answer.

    One inside another is the same; what was started here is stopped at the end, after a fault too.
    """
    global _open
    if _open is not None:
        yield _open
        return
    if find_spec("ray") is None:
        raise ResourceError(f"cluster: Ray is not installed. Run: {install_hint('cluster')}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TQDM", "0")
    import ray
    import ray._private.worker

    # What befalls its nodes Ray prints on standard output, which is for results (`--json`, rows into a pipe).
    ray._private.worker.print_to_stdstream = lambda *said, **more: None
    was_connected = ray.is_initialized()
    if not was_connected:
        _connect(ray, cluster)
    _open = Session(ray, cluster)
    try:
        yield _open
    finally:
        _open.close()
        _open = None
        if not was_connected:
            ray.shutdown()


def workers_of(ray: Any, cluster: ClusterConfig, most: int) -> int:
    """How many workers to start for `most` parts. Raises ResourceError where no node could ever hold one."""
    wanted = needs(cluster)
    rooms = [
        min(int((node["Resources"].get(name, 0.0) + 1e-9) / amount) for name, amount in wanted.items())
        for node in ray.nodes()
        if node["Alive"]
    ]
    if not sum(rooms) and cluster.address == "local":
        asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
        raise ResourceError(
            f"cluster: this machine has no room for a worker of {asked}. Lower cluster.cpus, .gpus, .memory_gb."
        )
    # A cluster that grows on demand has none of its nodes yet.
    return max(1, min(cluster.workers or max(1, sum(rooms)), most))


def needs(cluster: ClusterConfig) -> dict[str, float]:
    """What one worker takes, by Ray's names."""
    wanted = {"CPU": cluster.cpus}
    if cluster.gpus:
        wanted["GPU"] = cluster.gpus
    if cluster.memory_gb is not None:
        wanted["memory"] = cluster.memory_gb * 2**30
    return wanted


def _connect(ray: Any, cluster: ClusterConfig) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address == "local":
        room = {} if cluster.workers is None else {"num_cpus": max(1, -(-int(cluster.workers * cluster.cpus * 1000) // 1000))}
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE, **room}
    else:
        options["address"] = cluster.address
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        ray.shutdown()
        raise ResourceError(
            f"cluster: no Ray answers at '{cluster.address}' ({reason_of(error)}). Look at the address, or start one:"
            " ray start --head."
        ) from None
    finally:
        if is_main:  # Ray takes the signal for itself; a command ends in its own way
            signal.signal(signal.SIGTERM, before)
