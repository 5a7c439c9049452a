"""One training on several nodes of a cluster: Ray finds the nodes, torchrun on each starts the processes.

All start together and end together. Where a process, a worker or a node is lost, the others are ended, a worker is placed anew
where there is room, and all start again; what they then go on from is their own affair. A fault of one is the fault of all.
"""

import pickle
import signal
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from adrec.cluster.files import distinct, inventory
from adrec.cluster.machine import Machine, Outcome
from adrec.cluster.relay import Replay
from adrec.cluster.session import PlacedWorker, Session, session, workers_of
from adrec.cluster.worker import raised
from adrec.config.cluster import ClusterConfig
from adrec.errors import Interrupted, PeerLostError, ResourceError, reason_of
from adrec.ranks import OWN_STORES, RUN
from adrec.terminal import Terminal

MOST_LOSSES = 6
"""Times in a row that all may have to start again soon after they began."""
SOON_SECONDS = 600.0
_TURN_SECONDS = 0.5
_QUIET_SECONDS = 60.0
"""After which a training that finds no place says so."""
_LAST_WORDS_SECONDS = 15.0
"""What the others get to say what was wrong, when one has ended."""
_CHECKPOINT_SECONDS = 120.0
"""What processes get to end in their own way after a signal."""


class _LostError(Exception):
    """A machine or a process is gone, for no reason that it could name."""


class Machines(NamedTuple):
    """What a training runs on, and what it is called with."""

    cluster: ClusterConfig
    nodes: int
    devices: int
    """processes of each node"""
    module: str
    """what each process runs, by `machine.report`"""
    reads: Iterable[Path]
    """what every node must see as this machine does"""


def run_on(machines: Machines, call: Any, terminal: Terminal) -> Any:
    """The result of the first process. Raises what a process raised, with its node; ResourceError where it cannot be placed."""
    with session(machines.cluster) as opened, _Training(machines, call, opened, terminal) as training:
        losses = 0
        while True:
            began = time.monotonic()
            try:
                return training.attempt()
            except _LostError as lost:
                losses = losses + 1 if time.monotonic() - began < SOON_SECONDS else 1
                if losses >= MOST_LOSSES:
                    raise ResourceError(
                        f"cluster: the training ended {losses} times soon after it began ({lost}). Run the same command again"
                        " to go on, with more cluster.memory_gb or smaller batches where memory was short."
                    ) from None
                terminal.warn(f"cluster: {lost}; all start again from the last checkpoint. ({losses})")


class _Training:
    """The workers of one training. Use as a context: they end with it."""

    def __init__(self, machines: Machines, call: Any, opened: Session, terminal: Terminal) -> None:
        self.machines, self.session, self.terminal, self.ray = machines, opened, terminal, opened.ray
        self.call = pickle.dumps(call)
        self.reads = [inventory(path) for path in distinct(machines.reads)]
        self.run = uuid.uuid4().hex[:12]
        self.attempts = 0
        self.workers: list[PlacedWorker | None] = [None] * machines.nodes

    def __enter__(self) -> "_Training":
        room = workers_of(self.ray, self.machines.cluster, self.machines.nodes)
        if room < self.machines.nodes and self.machines.cluster.address == "local":
            raise ResourceError(
                f"training.nodes is {self.machines.nodes}, and this machine has room for {room} workers. Lower cluster.cpus,"
                " .gpus or .memory_gb, or training.nodes."
            )
        return self

    def __exit__(self, *fault: Any) -> None:
        self.session.end([worker.actor for worker in self.workers if worker is not None])

    def attempt(self) -> Any:
        """Start everything, and wait for its end. Raises _LostError where all must start again."""
        self._place()
        self.attempts += 1
        workers = self._workers()
        host, port = workers[0].address, self._ask(0, "free_port")
        environment = {
            OWN_STORES: "1",
            RUN: self.run,
            "OMP_NUM_THREADS": str(max(1, int(self.machines.cluster.cpus) // self.machines.devices)),
        }
        for number in range(len(workers)):
            arguments = [
                "--nnodes", str(self.machines.nodes), "--nproc-per-node", str(self.machines.devices),
                "--node-rank", str(number), "--master-addr", host, "--master-port", str(port),
                "--rdzv-id", f"adrec-{self.run}-{self.attempts}", "--max-restarts", "0", "-m", self.machines.module,
            ]  # fmt: skip
            self._ask(number, "start", arguments, environment, self.call)
        try:
            return self._ended()
        except KeyboardInterrupt as stopped:
            number = stopped.exit_code - 128 if isinstance(stopped, Interrupted) else signal.SIGINT
            raise Interrupted(number, self._interrupted()) from None
        finally:
            for number in range(len(workers)):
                with suppress(_LostError):
                    self._ask(number, "end")

    def _place(self) -> None:
        """A worker for each machine that has none; each must see what is read."""
        missing = [number for number, worker in enumerate(self.workers) if worker is None]
        actors = {number: self.session.actor(Machine, self.machines.cluster) for number in missing}
        try:
            began = time.monotonic()
            waiting = [actor.about.remote() for actor in actors.values()]
            while len(self.ray.wait(waiting, num_returns=len(waiting), timeout=_TURN_SECONDS)[0]) < len(waiting):
                if time.monotonic() - began > _QUIET_SECONDS:
                    self.terminal.warn(f"cluster: no room yet for {self.machines.nodes} workers at a time; waiting for it.")
            for number in missing:
                self.workers[number] = self.session.standing(actors.pop(number))
        except self.ray.exceptions.RayError as lost:
            raise _LostError(f"a worker ended before it had begun ({reason_of(lost)})") from None
        finally:
            self.session.end(list(actors.values()))
        for number in missing:
            unseen = self._ask(number, "unseen", self.reads)
            if unseen:
                raise ResourceError(
                    f"{unseen[0]}: node {self._workers()[number].address} does not see it as this machine does. A training"
                    " reads and writes on a disk that all nodes share, or in object storage (s3://...)."
                )

    def _ended(self) -> Any:
        """Say what the first process says until all have ended; its result. Raises _LostError, or the fault of a process."""
        codes: list[int | None] = [None] * len(self.workers)
        deadline: float | None = None
        with Replay(self.terminal) as replay:
            while None in codes and (deadline is None or time.monotonic() < deadline):
                time.sleep(_TURN_SECONDS)
                for number in range(len(codes)):
                    look = self._ask(number, "look")
                    codes[number] = look.code
                    replay.say(look.lines)
                if deadline is None and any(codes):
                    deadline = time.monotonic() + _LAST_WORDS_SECONDS
        outcomes = [(number, outcome) for number in range(len(codes)) for outcome in self._outcomes(number)]
        for number, outcome in outcomes:
            if outcome.fault is not None and not isinstance(outcome.fault.error, PeerLostError):
                raised(outcome.fault, f"node {self._workers()[number].address}")
        if any(codes) or None in codes:
            raise _LostError(self._what_ended(codes))
        (result,) = [outcome for _, outcome in outcomes if outcome.result is not None]
        return result.result

    def _interrupted(self) -> str:
        """Have the processes end at a step, with a checkpoint; what they say of it."""
        outcomes: list[Outcome] = []
        with suppress(_LostError):
            for number in range(len(self.workers)):
                self._ask(number, "interrupt", int(signal.SIGTERM))
            deadline = time.monotonic() + _CHECKPOINT_SECONDS
            while time.monotonic() < deadline:
                if None not in [self._ask(number, "look").code for number in range(len(self.workers))]:
                    break
                time.sleep(_TURN_SECONDS)
            outcomes = self._outcomes(0)
        said = [outcome.interrupted.partition(": ")[2] for outcome in outcomes if outcome.interrupted]
        return said[0] if said else ""

    def _outcomes(self, number: int) -> list[Outcome]:
        return [pickle.loads(outcome) for outcome in self._ask(number, "outcomes")]

    def _what_ended(self, codes: list[int | None]) -> str:
        number = next((number for number, code in enumerate(codes) if code), 0)
        said = [line for line in self._ask(number, "log").splitlines() if line.strip()]
        where = self._workers()[number].address
        return f"a process on node {where} was lost" + (f" ({said[-1].strip()[:200]})" if said else "")

    def _ask(self, number: int, what: str, *arguments: Any) -> Any:
        """A machine's answer. Raises _LostError where there is none any more."""
        worker = self.workers[number]
        if worker is None:
            raise _LostError("a worker was lost")
        try:
            return self.ray.get(getattr(worker.actor, what).remote(*arguments))
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as lost:
            self.workers[number] = None
            raise _LostError(f"node {worker.address} was lost ({reason_of(lost)})") from None

    def _workers(self) -> list[PlacedWorker]:
        return [worker for worker in self.workers if worker is not None]
