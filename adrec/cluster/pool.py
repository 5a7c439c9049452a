"""Workers on a cluster, and tasks for them: each task's result comes once, whatever happens to the workers.

A thread here stands for each worker there: it places the worker, gives it one task after another, and places a new one where
it was lost. No task is given out before somebody asks for results, and few results wait (backpressure): memory is that of a
few parts. A task whose result was not received is given to the next worker; what was received is never made again.
"""

import queue
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from adrec.cluster.files import Inventory, blocks_of, distinct, inventory
from adrec.cluster.session import PlacedWorker, Session, session, workers_of
from adrec.cluster.worker import Factory, Fault, Worker, raised
from adrec.config.cluster import ClusterConfig
from adrec.errors import ResourceError
from adrec.terminal import Terminal

MOST_LOSSES = 6
"""Workers that one task may cost before it is held to be the reason."""
MANY = 1 << 12
"""More tasks than a cluster has workers: where their number is not known, as many start as it holds."""
_QUIET_SECONDS = 60.0
"""After which a run whose workers find no place says so."""
_TURN_SECONDS = 0.2


class _Task(NamedTuple):
    number: int
    """in the order of the tasks"""
    value: Any
    losses: int = 0


class _Lost(NamedTuple):
    """The end of a thread: a fault, or None where there are no more tasks."""

    error: BaseException | None


@dataclass
class _Shared:
    """What the threads of one run share."""

    waiting: "queue.Queue[_Task]"
    results: "queue.Queue[tuple[_Task, Any] | _Lost]"
    again: "queue.SimpleQueue[_Task]" = field(default_factory=queue.SimpleQueue)
    """tasks whose worker was lost: any other may take them, before new ones"""
    stopped: threading.Event = field(default_factory=threading.Event)


class Pool:
    """Use as a context: connects. Workers stay from one call to the next, and in a session from one pool to the next; what was
    started here is stopped on leaving.
    """

    def __init__(
        self,
        cluster: ClusterConfig,
        factory: Factory,
        payload: Any,
        terminal: Terminal,
        *,
        reads: Iterable[Path | None] = (),
        of: str = "part",
    ) -> None:
        """`payload`: plain values for `factory`, in which paths at or below `reads` are moved to where a node has them.

        `of`: what a task is called in messages.
        """
        self.cluster, self.factory, self.payload, self.terminal, self.of = cluster, factory, payload, terminal, of
        self.reads = [inventory(path) for path in distinct(reads)]
        self.name = uuid.uuid4().hex[:12]
        self._ray: Any = None
        self._opened: AbstractContextManager[Session] | None = None
        self._session: Session
        self._nodes: dict[str, dict[str, str]] = {}
        self._node_locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()
        self._actors: dict[int, Any] = {}
        """slot → its worker, from the moment it is asked for"""
        self._begun: dict[int, PlacedWorker] = {}
        """slot → its worker, once the work is built there"""
        self.losses = 0
        """workers that were lost so far"""

    def __enter__(self) -> "Pool":
        self._opened = session(self.cluster)
        self._session = self._opened.__enter__()
        self._ray = self._session.ray
        return self

    def __exit__(self, *fault: Any) -> None:
        if fault[0] is None:
            self._drop_unbegun()
            self._session.keep(self._begun.values(), self.cluster)
        else:
            self._stop()
        assert self._opened is not None
        self._opened.__exit__(*fault)

    @property
    def _full(self) -> tuple[type[Exception], ...]:
        """What Ray says where it finds no room for a task or a result."""
        return self._ray.exceptions.OutOfDiskError, self._ray.exceptions.ObjectStoreFullError

    @property
    def ray(self) -> Any:
        """The module, connected."""
        return self._ray

    def workers(self, most: int) -> int:
        """How many work on so many tasks."""
        return workers_of(self._ray, self.cluster, most)

    def each(self, tasks: Iterable[Any], most: int | None = None, *, at_once: bool = False) -> Iterator[tuple[Any, Any]]:
        """(task, result) as they are finished. Raises what a worker could not do, with its part and node.

        `most`: how many tasks there are, where that is not their length. `at_once`: a task is taken from `tasks` when a worker
        is free for it, and not before.
        """
        most = len(tasks) if most is None and isinstance(tasks, Sequence) else most
        assert most is not None, "an iterator does not say how many tasks it holds"
        room = threading.Semaphore(self.workers(most)) if at_once and most else None
        for task, result in self._results(enumerate(tasks), most, room=room):
            if room is not None:
                room.release()
            yield task.value, result

    def in_order(self, tasks: Iterable[Any], most: int) -> Iterator[Any]:
        """Results in the order of `tasks`, of which there are at most `most` or so; a few are made ahead."""
        early: dict[int, Any] = {}
        wanted = 0
        room = threading.Semaphore(2 * self.workers(most) + 2)
        for task, result in self._results(enumerate(tasks), most, room=room):
            early[task.number] = result
            while wanted in early:
                yield early.pop(wanted)
                room.release()
                wanted += 1

    def _results(
        self, tasks: Iterator[tuple[int, Any]], most: int, room: threading.Semaphore | None
    ) -> Iterator[tuple[_Task, Any]]:
        if most == 0:
            return
        count = self.workers(most)
        shared = _Shared(queue.Queue(maxsize=count), queue.Queue(maxsize=count))
        feeder = threading.Thread(target=self._feed, args=(tasks, shared, room), daemon=True)
        threads = [threading.Thread(target=self._serve, args=(slot, shared), daemon=True) for slot in range(count)]
        received, given, finished = 0, None, False
        quiet = 0.0
        for thread in (feeder, *threads):
            thread.start()
        try:
            while given is None or received < given:
                try:
                    item = shared.results.get(timeout=_TURN_SECONDS)
                except queue.Empty:
                    quiet += _TURN_SECONDS
                    if quiet >= _QUIET_SECONDS and not self._begun:
                        self.terminal.warn("cluster: no node has room for a worker yet; waiting for one.")
                        quiet = -1e9
                    continue
                if isinstance(item, _Lost):
                    raise item.error if item.error is not None else RuntimeError("a thread ended without a word")
                task, result = item
                if task.number < 0:
                    given = result
                    continue
                if isinstance(result, _Refused):
                    raised(result.fault, result.where)
                received += 1
                yield task, result
            finished = True
        finally:
            shared.stopped.set()
            if finished:  # the others may have further tasks
                self._drop_unbegun()
            else:
                self._stop()
            for thread in (feeder, *threads):
                thread.join(timeout=10.0)

    def _feed(self, tasks: Iterator[tuple[int, Any]], shared: _Shared, room: threading.Semaphore | None) -> None:
        """Hand out tasks as there is room; at the end, say how many there were."""
        count = 0
        try:
            for number, value in tasks:
                while room is not None and not room.acquire(timeout=_TURN_SECONDS):
                    if shared.stopped.is_set():
                        return
                if not _put(shared.waiting, _Task(number, value), shared.stopped):
                    return
                count += 1
        except BaseException as error:
            # Not lost: it is raised where results are read.
            _put(shared.results, _Lost(error), shared.stopped)
            return
        _put(shared.results, (_Task(-1, None), count), shared.stopped)

    def _serve(self, slot: int, shared: _Shared) -> None:
        """One worker after another in this slot, one task after another."""
        losses_before_any = 0
        task: _Task | None = None
        try:
            while not shared.stopped.is_set():
                try:
                    where = (self._begun.get(slot) or self._place(slot)).address
                    losses_before_any = 0
                    while True:
                        task = _take(shared)
                        if task is None:
                            return
                        result = self._ray.get(self._actors[slot].do.remote(task.value))
                        if isinstance(result, Fault):
                            result = _Refused(result, f"{self.of} {_named(task.value)}, node {where}")
                        _put(shared.results, (task, result), shared.stopped)
                        task = None
                except (self._ray.exceptions.RayTaskError, *self._full) as error:
                    cause = getattr(error, "cause", error)
                    if isinstance(cause, self._full):
                        subject = f"{self.of} {_named(task.value)}, node {where}" if task is not None else "cluster"
                        raise ResourceError(
                            f"{subject}: the disk is too full for what Ray keeps on its way. Free some space there and run the"
                            " same command again."
                        ) from None
                    raise cause if isinstance(cause, OSError) else error from None
                except self._ray.exceptions.RayError as lost:
                    if shared.stopped.is_set():
                        return
                    self.losses += 1
                    self._drop(slot)
                    if task is None:
                        losses_before_any += 1
                        if losses_before_any >= MOST_LOSSES:
                            raise ResourceError(
                                f"cluster: {MOST_LOSSES} workers in a row ended before they had begun"
                                f" ({type(lost).__name__}), most likely for want of memory. Give each more"
                                " (cluster.memory_gb), or take fewer workers."
                            ) from None
                        continue
                    if task.losses + 1 >= MOST_LOSSES:
                        raise ResourceError(
                            f"{self.of} {_named(task.value)}: {MOST_LOSSES} workers ended at it ({type(lost).__name__}), most"
                            " likely for want of memory. Run the same command again to go on, with more cluster.memory_gb, or"
                            " smaller parts."
                        ) from None
                    shared.again.put(task._replace(losses=task.losses + 1))
                    task = None
        except BaseException as error:
            # Not lost: it is raised where results are read.
            if not shared.stopped.is_set():
                _put(shared.results, _Lost(error), shared.stopped)

    def _place(self, slot: int) -> PlacedWorker:
        """A worker with its files and its work."""
        ray = self._ray
        worker = self._session.take(self.cluster) or self._start(slot)
        with self._lock:
            self._actors[slot] = worker.actor
            lock = self._node_locks[worker.node]
        with lock:  # one worker of a node gets the files for all of them
            if worker.node not in self._nodes:
                self._nodes[worker.node] = self._bring(worker.actor, worker.address)
        threads = max(1, int(self.cluster.cpus))
        fault = ray.get(worker.actor.begin.remote(self.factory, self.payload, self._nodes[worker.node], threads))
        if isinstance(fault, Fault):
            raised(fault, f"node {worker.address}")
        with self._lock:
            self._begun[slot] = worker
        return worker

    def _start(self, slot: int) -> PlacedWorker:
        """A new process."""
        actor = self._session.actor(Worker, self.cluster)
        with self._lock:
            self._actors[slot] = actor
        return self._session.standing(actor)

    def _bring(self, actor: Any, address: str) -> dict[str, str]:
        """Input as it is named here → as the node has it, after sending what the node cannot see."""
        ray = self._ray
        found = ray.get(actor.places.remote(self.reads))
        if isinstance(found, Fault):
            raised(found, f"node {address}")
        places: dict[str, str] = {}
        for number, (wanted, place) in enumerate(zip(self.reads, found, strict=True)):
            if place is None:
                place = self._send(actor, number, wanted)
            if place != wanted.path:
                places[wanted.path] = place
        return places

    def _send(self, actor: Any, number: int, wanted: Inventory) -> str:
        place = ""
        for name, offset, block in blocks_of(wanted):
            place = self._ray.get(actor.receive.remote(f"{self.name}-{number}", name, offset, block))
        return place

    def _drop(self, slot: int) -> None:
        with self._lock:
            actor = self._actors.pop(slot, None)
            self._begun.pop(slot, None)
        if actor is not None:
            with suppress(Exception):  # it is gone already
                self._ray.kill(actor)

    def _drop_unbegun(self) -> None:
        """End workers that were still being placed when the last task was done."""
        with self._lock:
            slots = [slot for slot in self._actors if slot not in self._begun]
        for slot in slots:
            self._drop(slot)

    def _stop(self) -> None:
        """End every worker, and take away what they left on their nodes."""
        with self._lock:
            actors, begun = self._actors, self._begun
            self._actors, self._begun = {}, {}
        self._session.end([actor for slot, actor in actors.items() if slot in begun])
        for slot, actor in actors.items():
            if slot not in begun:
                with suppress(Exception):
                    self._ray.kill(actor)


class _Refused(NamedTuple):
    fault: Fault
    where: str


def _named(task: Any) -> str:
    """A task in a message: its number, or what it calls itself."""
    if isinstance(task, Mapping):
        return str(task.get("name", ""))
    return " ".join(map(str, task)) if isinstance(task, tuple) else str(task)


def _put(target: "queue.Queue[Any]", item: Any, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            target.put(item, timeout=_TURN_SECONDS)
        except queue.Full:
            continue
        return True
    return False


def _take(shared: _Shared) -> _Task | None:
    """The next task, lost ones first; None where the run has stopped."""
    while not shared.stopped.is_set():
        try:
            return shared.again.get_nowait()
        except queue.Empty:
            pass
        try:
            return shared.waiting.get(timeout=_TURN_SECONDS)
        except queue.Empty:
            continue
    return None
