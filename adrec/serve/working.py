"""The threads and queues of one server: who works on what, for how long somebody waits for it, and how all of it ends.

The event loop reads and writes alone. One thread runs the model, one explains with what processor time is left, one loads
bundles, two do what else takes moments; what needs the store has threads of its own (`storing`).
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Literal

from adrec.config.inference.serve import Batching, ServeConfig
from adrec.data.device import use_threads
from adrec.serve.batcher import Batcher
from adrec.serve.engine import Engine
from adrec.serve.storing import Stored
from adrec.serve.watch import Watch

Queue = Literal["score", "rank", "explain"]
_NICE = 10


class Working:
    """Around one engine, from `start` to `close`."""

    def __init__(self, config: ServeConfig, watch: Watch, engine: Engine | None) -> None:
        """`engine` None: it is made by `start`."""
        self._config, self._watch, self._engine = config, watch, engine
        self.ready = False
        """Whether requests are taken."""

    @property
    def engine(self) -> Engine:
        """What answers."""
        assert self._engine is not None, "requests come after the start"
        return self._engine

    @property
    def waiting(self) -> dict[str, int]:
        """Requests in each queue."""
        return {what: queue.waiting for what, queue in self._queues.items()}

    async def start(self) -> None:
        """Load the engine where there is none, and begin."""
        threads, explaining = self._config.threads, self._config.explaining
        self._side = ThreadPoolExecutor(2, "side")
        if self._engine is None:
            self._engine = await self.aside(Engine, self._config)
        self._model = ThreadPoolExecutor(1, "model", use_threads, (threads,))
        self._why = ThreadPoolExecutor(1, "explain", _in_the_background, (threads,))
        self._reload = ThreadPoolExecutor(1, "reload")
        self.stored = Stored(self._config)
        engine, batching = self._engine, self._config.batching
        alone = batching.model_copy(update={"max_items": 1, "max_wait_ms": 0, "max_queue": explaining.max_queue})
        self._seconds = {
            "score": batching.timeout_seconds,
            "rank": batching.timeout_seconds,
            "explain": explaining.timeout_seconds,
        }
        self._queues = {
            "score": self._queue("score", engine.score, self._model, batching),
            "rank": self._queue("rank", engine.rank, self._model, batching),
            "explain": self._queue("explain", lambda items: [engine.explain(item) for item in items], self._why, alone),
        }
        for queue in self._queues.values():
            queue.start()
        engine.follower.start()
        self.ready = True

    async def close(self) -> None:
        """Take nothing more, end what runs within `drain_seconds`, keep what must be kept."""
        self.ready = False
        await asyncio.gather(*(queue.close(self._config.drain_seconds) for queue in self._queues.values()))
        self._model.shutdown()
        for executor in (self._why, self._side, self._reload):
            executor.shutdown(cancel_futures=True)
        self.stored.close()
        self.engine.close()

    async def ask(self, what: Queue, item: Any) -> Any:
        """The engine's answer, after its turn. Raises OverloadedError, TimeoutError, or what answering raised."""
        return await self._queues[what].ask(item, self._seconds[what])

    async def aside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of something that takes moments."""
        return await asyncio.get_running_loop().run_in_executor(self._side, function, *arguments)

    async def loaded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of something that takes as long as a bundle takes to load: one at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._reload, function, *arguments)

    def _queue(
        self, what: Queue, handle: Callable[[Sequence[Any]], Sequence[Any]], executor: ThreadPoolExecutor, batching: Batching
    ) -> Batcher[Any, Any]:
        watch, turn = self._watch, nullcontext if what == "explain" else self.engine.turns.first

        def timed(items: Sequence[Any]) -> Sequence[Any]:
            started = time.perf_counter()
            with turn():
                answers = handle(items)
            watch.model.labels(what).observe(time.perf_counter() - started)
            return answers

        return Batcher(
            timed,
            executor,
            max_items=batching.max_items,
            max_wait_seconds=batching.max_wait_ms / 1000,
            max_queue=batching.max_queue,
            observe=lambda size: watch.batch.labels(what).observe(size),
        )


def _in_the_background(threads: int) -> None:
    """Make this thread give way: explanations take what processor time the answers leave."""
    use_threads(threads)
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
