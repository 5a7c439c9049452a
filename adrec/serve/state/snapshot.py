"""Sums of events kept in the store with the number of the last event in them: a restart counts what came after alone.

A snapshot stands for what was summed under one definition: of another version of adrec, other counters, other files, or an
epoch in which events went away since, there is none, and all events are counted. Costs one copy of the sums (some 100 bytes an
event's key) every 100,000 events, or rarer where they are large; a thread of its own writes it.
"""

import hashlib
import json
import logging
import threading
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load, save

from adrec import __version__
from adrec.serve.state.live import Live
from adrec.serve.state.tally import Tally
from adrec.serve.state.world import World
from adrec.serve.store import Store, StoreError

_logger = logging.getLogger("adrec.serve")
VERSION = 2
_OFTEN = 100_000
"""Events from one snapshot to the next."""
_BYTES_AN_EVENT = 500
"""A snapshot of so many bytes for each event since the last is worth its writing."""


class Snapshots:
    """Those of one server. Its follower calls `follow` and, at the end, `close`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._writer: threading.Thread | None = None
        self._saved: Tally | None = None
        self._last, self._size = 0, 0
        """number of the last event in the newest snapshot of `_saved`, and the bytes of it"""

    def restore(self, tally: Tally, live: Live) -> bool:
        """Let a tally that has counted nothing go on from the snapshot; False, and it stays as it was, where there is none."""
        content = self._store.snapshot(tally.definition)
        if content is None:
            return False
        try:
            tally.go_on(live, load(content))
        except (SafetensorError, KeyError, ValueError, IndexError, TypeError) as error:
            _logger.warning(json.dumps({"snapshot_refused": type(error).__name__}))
            return False
        self._saved, self._last, self._size = tally, tally.last, len(content)
        return True

    def follow(self, tally: Tally, live: Live, at_least: int = _OFTEN) -> None:
        """Write a snapshot if one is due. Called by the thread that counts, or where none does."""
        since = tally.last - (self._last if self._saved is tally else 0)
        if since < max(at_least, self._size // _BYTES_AN_EVENT) or (self._writer is not None and self._writer.is_alive()):
            return
        content = save(tally.state(live))
        self._saved, self._last, self._size = tally, tally.last, len(content)
        self._writer = threading.Thread(
            target=self._write, args=(tally.definition, tally.epoch, content), name="snapshot", daemon=True
        )
        self._writer.start()

    def close(self) -> None:
        """Wait for what is being written."""
        if self._writer is not None:
            self._writer.join()

    def _write(self, definition: str, epoch: int, content: bytes) -> None:
        try:
            self._store.put_snapshot(definition, epoch, content)
        except StoreError as error:  # nothing is lost: the next start counts more
            _logger.warning(json.dumps({"store_fault": str(error)}))


def definition_of(world: World, live: Live, *, counts_lists: bool) -> str:
    """Of the sums of events over these files under these settings."""
    clock = live.ranker.clock
    facts: list[Any] = [
        VERSION, __version__, world.content, world.asof.settings, world.asof.max_skipped, clock.daily, clock.time_zone,
        live.ranker.campaign_column, counts_lists,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
