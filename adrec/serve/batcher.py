"""Micro-batching: requests that arrive together go through the model together.

A pass takes what waits, at most `max_items`, and waits at most `max_wait` for company. One pass runs at a time, in a
thread of its own, so that the event loop keeps answering. The queue is bounded: beyond it callers get OverloadedError at once.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class OverloadedError(Exception):
    """The queue is full. `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the server is busy")
        self.retry_after = retry_after


class Batcher(Generic[Item, Answer]):
    """`handle(items)` gives an answer, or an exception, for each item; it runs in `executor`."""

    def __init__(
        self,
        handle: Callable[[Sequence[Item]], Sequence[Answer | Exception]],
        executor: ThreadPoolExecutor,
        *,
        max_items: int,
        max_wait_seconds: float,
        max_queue: int,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._handle, self._executor, self._observe = handle, executor, observe
        self._max_items, self._max_wait, self._max_queue = max_items, max_wait_seconds, max_queue
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Answer]]] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None
        self._closed = False
        self._busy = 0

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._queue.qsize()

    def start(self) -> None:
        """Begin to work; call it inside the running event loop."""
        self._worker = asyncio.create_task(self._work())

    async def ask(self, item: Item, timeout_seconds: float) -> Answer:
        """The answer for one item. Raises OverloadedError, TimeoutError, or what handling the item raised."""
        if self._closed or self._queue.qsize() >= self._max_queue:
            raise OverloadedError(retry_after=1)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, future))
        return await asyncio.wait_for(future, timeout_seconds)

    async def close(self, timeout_seconds: float) -> None:
        """Take nothing more, finish what waits (at most so long), and stop."""
        self._closed = True
        end = asyncio.get_running_loop().time() + timeout_seconds
        while (self._queue.qsize() or self._busy) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            self._busy = 1
            until = loop.time() + self._max_wait
            while len(batch) < self._max_items:
                if not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                    continue
                left = until - loop.time()
                if left <= 0:
                    break
                try:
                    batch.append(await asyncio.wait_for(self._queue.get(), left))
                except TimeoutError:
                    break
            batch = [(item, future) for item, future in batch if not future.done()]  # callers that gave up
            if batch:
                await self._run(batch)
            self._busy = 0

    async def _run(self, batch: list[tuple[Item, "asyncio.Future[Answer]"]]) -> None:
        self._observe(len(batch))
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._executor, self._handle, [item for item, _ in batch])
        except Exception as error:  # the callers get it; the worker goes on
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
