"""Keeps up with the store: what this server and others over the same store recorded is counted within a fraction of a second.

One thread follows; requests never read the store. A store that hangs or fails is told by `fault`, and costs nobody else.
"""

import json
import logging
import threading
import time
from collections.abc import Callable

from adrec.errors import reason_of
from adrec.serve.store import StoreError

_logger = logging.getLogger("adrec.serve")
POLL_SECONDS = 0.2
_PROBE_SECONDS = 5.0
_PROBE_AGAIN_SECONDS = 1.0


class Follower:
    """`follow` takes in what is new and returns the number of the last event; `probe` tries to write."""

    def __init__(self, follow: Callable[[], int], probe: Callable[[], None], *, patience_seconds: float = 10.0) -> None:
        """`patience_seconds`: whoever is at work for longer waits for a store that hangs."""
        self._follow, self._probe, self._patience = follow, probe, patience_seconds
        self._began: float | None = None
        """when the work in progress began"""
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._last = 0
        self._fault: str | None = None

    @property
    def fault(self) -> str | None:
        """Why the store cannot be used now."""
        began = self._began
        if began is not None and time.monotonic() - began > self._patience:
            return f"the store has not answered for {time.monotonic() - began:.0f} seconds"
        return self._fault

    def start(self) -> None:
        """Follow in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; waits for the slice in progress, but not for a store that hangs."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(self._patience)

    def reach(self, number: int, seconds: float) -> bool:
        """Wait until the event of a number is counted, at most so long. Without a thread it is done here."""
        if self._thread is None:
            self.once()
            return True
        self._wake.set()
        with self._changed:
            return self._changed.wait_for(lambda: self._last >= number, seconds)

    def once(self) -> None:
        """Take in what there is. Raises StoreError."""
        with self._lock:
            last = self._follow()
        with self._changed:
            self._last = last
            self._changed.notify_all()

    def _run(self) -> None:
        probed = time.monotonic()
        while not self._stopped:
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()
            self._began = time.monotonic()
            try:
                self.once()
                self._began = time.monotonic()
                due = _PROBE_AGAIN_SECONDS if self._fault else _PROBE_SECONDS
                if time.monotonic() - probed > due:
                    probed = time.monotonic()
                    self._probe()
                    self._fault = None
            except Exception as error:  # the thread goes on: it is the only one that counts
                self._fault = str(error) if isinstance(error, StoreError) else f"events are not counted ({reason_of(error)})"
                _logger.warning(json.dumps({"store_fault": self._fault}))
                time.sleep(POLL_SECONDS)
            finally:
                self._began = None


class Background:
    """Work that is started again and again, at most once at a time; a fault of it is logged, and the next start tries again."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._work, self._name = work, name
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it is under way."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def join(self) -> None:
        """Wait for its end."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            _logger.warning(json.dumps({"failed": self._name, "error": str(error) or type(error).__name__}))
