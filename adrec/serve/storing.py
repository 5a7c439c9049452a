"""Work that needs the store, in threads of its own and within a time: a store that hangs costs who asks, and nobody else."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from adrec.config.inference.serve import ServeConfig
from adrec.serve.batcher import OverloadedError
from adrec.serve.engine import COUNTED_SECONDS
from adrec.serve.store import StoreError

_CHANGE_SECONDS = 60.0
"""A changed ad may be one with a new column, for which the catalogue is made anew."""


class Stored:
    """What needs the store, in threads of its own: one that hangs costs who asks its time, and nobody else."""

    def __init__(self, config: ServeConfig) -> None:
        self._most = config.batching.max_queue
        changes = config.store_timeout_seconds + _CHANGE_SECONDS
        events = 2 * config.store_timeout_seconds + COUNTED_SECONDS
        self._lines = {
            "events": (ThreadPoolExecutor(2, "events"), events),
            "changes": (ThreadPoolExecutor(2, "changes"), changes),
        }
        self._waiting = dict.fromkeys(self._lines, 0)

    async def __call__(self, line: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function. Raises StoreError where it takes longer than the store may, OverloadedError where too many
        wait already.
        """
        executor, seconds = self._lines[line]
        if self._waiting[line] >= self._most:
            raise OverloadedError(retry_after=1)
        self._waiting[line] += 1
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(executor, function, *arguments), seconds)
        except TimeoutError:
            raise StoreError("The store does not answer in time. It may still do what was asked: send it again.") from None
        finally:
            self._waiting[line] -= 1

    def close(self) -> None:
        """Take nothing more; what hangs is left behind."""
        for executor, _ in self._lines.values():
            executor.shutdown(wait=False, cancel_futures=True)
