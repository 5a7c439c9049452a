"""What the server must not forget, in SQLite or in Redis: events and changed ads."""

from adrec.serve.store.contract import (
    KINDS,
    NOTHING_KEPT,
    Erased,
    Event,
    Recorded,
    Slice,
    Store,
    StoreError,
    Totals,
    events_table,
)
from adrec.serve.store.opening import open_store

__all__ = [
    "KINDS", "NOTHING_KEPT", "Erased", "Event", "Recorded", "Slice", "Store", "StoreError", "Totals", "events_table",
    "open_store",
]  # fmt: skip
