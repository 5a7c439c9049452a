"""Live events → the same counters and histories that preprocess makes of a log: a click moves them within a second."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from adrec.asof.events import EventRows
from adrec.asof.history import EventLog
from adrec.asof.spec import CLICKED, CONVERTED, LABELLED, SHOWN
from adrec.data.arrays import places
from adrec.schema import as_of_column
from adrec.serve.live import Live
from adrec.serve.store import Event


def learn(live: Live, events: Sequence[Event]) -> None:
    """Take in events that happened after the log's end; those inside it are in the log already, those of unknown ads nowhere.

    An impression counts as shown and not clicked until its click arrives, at the click's own moment.
    """
    asof = live.ranker.known.asof
    assert asof is not None, "a server always has one, if only of a log to come"
    last = asof.last_moment
    ads = np.array([live.row_of_ad.get(event.ad_id, -1) for event in events], np.int64)
    times = np.array([event.at for event in events], np.int64)
    kept = np.flatnonzero((ads >= 0) & (times > (last if last is not None else np.iinfo(np.int64).min)))
    if not len(kept):
        return
    ads, times, chosen = ads[kept], times[kept], [events[place] for place in kept.tolist()]
    clicked = np.array([event.kind == "click" for event in chosen])
    ids = pa.array([event.user_id for event in chosen], pa.string())
    names = ids.unique()
    row = places(names, live.users["user_id"])
    users = live.users.take(pa.array(row, mask=row < 0))
    users = users.set_column(users.column_names.index("user_id"), "user_id", names)
    keys = asof.keys(users)
    user = places(ids, names)
    known = [name for name in asof.row_columns if as_of_column(name) is not None]
    rows = _context(chosen, [name for name in asof.row_columns if name not in known])
    described = live.ranker.known.attributes.columns(
        known, ads=live.ranker.catalogs.ad_table, users=users, ad=ads, user=user, moments=times
    )
    for name, values in described.items():
        rows = rows.append_column(name, values)
    codes = keys.codes(user, ads, rows)
    weights = {
        SHOWN: (~clicked).astype(np.int64),
        LABELLED: (~clicked).astype(np.int64),
        CLICKED: clicked.astype(np.int64),
        CONVERTED: np.zeros(len(chosen), np.int64),
    }
    who = codes["user"]
    asof.record(
        EventRows(times, codes, weights),
        EventLog.of(who[clicked], ads[clicked], times[clicked]),
        EventLog.of(who[~clicked], ads[~clicked], times[~clicked]) if asof.max_skipped else EventLog.empty(),
    )


def _context(events: Sequence[Event], columns: Sequence[str]) -> pa.Table:
    """The columns of the impressions by which counters are kept, as far as events say them."""
    contexts = [json.loads(event.context) if event.context else {} for event in events]
    own: dict[str, list[Any]] = {
        "position": [event.position for event in events], "scenario": [event.scenario for event in events],
    }  # fmt: skip
    values = {name: own.get(name) or [context.get(name) for context in contexts] for name in columns}
    return pa.table(
        {name: pa.array([None if cell is None else str(cell) for cell in cells], pa.string()) for name, cells in values.items()}
    )
