"""Iterate in a thread of its own, a little ahead of whoever asks: reading, computing and writing go on at the same time.

Arrow, numpy and torch let go of the interpreter while they work, so that two such threads keep two cores busy.
"""

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_PATIENCE_SECONDS = 0.1  # after which a thread that waits looks whether anybody still wants its items


@dataclass(frozen=True)
class _End:
    fault: BaseException | None = None


def ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The items in order, at most `depth` of them ready before they are asked for. Faults come out where they would have.

    Dropping the iterator stops its thread after the item in progress.
    """
    ready: queue.Queue[T | _End] = queue.Queue(depth)
    dropped = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, ready, dropped), daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.fault is not None:
                    raise item.fault
                return
            yield item
    finally:
        dropped.set()
        thread.join()


def _fill(items: Iterable[T], ready: "queue.Queue[T | _End]", dropped: threading.Event) -> None:
    end = _End()
    try:
        for item in items:
            if not _put(item, ready, dropped):
                return
    except BaseException as fault:
        # Not lost: whoever asks for the next item meets it.
        end = _End(fault)
    _put(end, ready, dropped)


def _put(item: T | _End, ready: "queue.Queue[T | _End]", dropped: threading.Event) -> bool:
    """False where nobody wants items any more."""
    while not dropped.is_set():
        try:
            ready.put(item, timeout=_PATIENCE_SECONDS)
        except queue.Full:
            continue
        return True
    return False
