"""Who goes first where everybody needs the interpreter: answers. All else that the server does is done in their gaps.

Threads of Python share one interpreter, and a pass that shares it with an explanation, a changed ad or a reload takes twice as
long. So these stand back between any two of their steps (some milliseconds each) while a pass is under way: a pass then waits
for one step at most. Where there are no gaps they go on all the same, after `patience_seconds` a step.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Usable from any thread."""

    def __init__(self, patience_seconds: float = 0.1) -> None:
        self._patience = patience_seconds
        self._changed = threading.Condition()
        self._passes = 0

    @contextmanager
    def first(self) -> Iterator[None]:
        """A pass of the model: others stand back meanwhile."""
        with self._changed:
            self._passes += 1
        try:
            yield
        finally:
            with self._changed:
                self._passes -= 1
                self._changed.notify_all()

    def stand_back(self) -> None:
        """Wait for the end of the pass that is under way, if one is, but not for long."""
        if self._passes:
            with self._changed:
                self._changed.wait_for(lambda: not self._passes, self._patience)


def at_once() -> None:
    """Instead of `stand_back`, where nobody waits for an answer."""
