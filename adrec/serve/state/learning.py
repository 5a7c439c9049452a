"""Live events → the same counters and histories that preprocess makes of a log: a click moves them within a second.

Everything is done to a slice of events at once, by the step that preprocess uses: about a microsecond an event and counter.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.asof.events import EventRows
from adrec.asof.history import EventLog
from adrec.asof.reader import AsOf
from adrec.asof.spec import CLICKED, CONVERTED, LABELLED, SHOWN
from adrec.data.arrays import combined, places
from adrec.schema import as_of_column
from adrec.serve.intake.columns import text_of
from adrec.serve.state.live import Live

_OWN = ("position", "scenario")


def learn(live: Live, asof: AsOf, events: pa.Table, ads: np.ndarray) -> None:
    """Take in N events of ads `ads` (N,), rows of the catalogue, -1 where it lacks them: those are counted nowhere.

    Events within the log are in it already. An impression counts as shown and not clicked until its click arrives, at the
    click's own moment; a conversion counts at its own.
    """
    last = asof.last_moment
    times = events["at"].to_numpy()
    behind = np.flatnonzero((ads >= 0) & (times > (last if last is not None else np.iinfo(np.int64).min)))
    if not len(behind):
        return
    events, ads, times = events.take(pa.array(behind)), ads[behind], times[behind]
    codes = codes_of_events(live, asof, events, ads)
    is_kind = {kind: pc.equal(events["kind"], kind).to_numpy() for kind in ("impression", "click", "conversion")}
    weights = {
        kind: is_kind[event].astype(np.int64)
        for kind, event in ((SHOWN, "impression"), (LABELLED, "impression"), (CLICKED, "click"), (CONVERTED, "conversion"))
    }
    shown, clicked = (
        EventLog.of(codes["user"][mine], ads[mine], times[mine]) for mine in (is_kind["impression"], is_kind["click"])
    )
    asof.record(EventRows(times, codes, weights), clicked, shown if asof.max_skipped else EventLog.empty())


def codes_of_events(live: Live, asof: AsOf, events: pa.Table, ads: np.ndarray) -> dict[str, np.ndarray]:
    """What N events of ads `ads` (N,), rows of the catalogue, are counted by: name of a key → codes (N,)."""
    ids = combined(events["user_id"]).dictionary_encode()
    users, user = _described(live, asof, ids.dictionary), ids.indices.to_numpy().astype(np.int64)
    rows = _context(events, [name for name in asof.row_columns if as_of_column(name) is None])
    described = [name for name in asof.row_columns if as_of_column(name) is not None]
    attributes = live.ranker.known.attributes
    for name, values in attributes.columns(
        described, ads=live.ranker.catalogs.ad_table, users=users, ad=ads, user=user, moments=events["at"].to_numpy()
    ).items():
        rows = rows.append_column(name, values)
    return asof.keys(users).codes(user, ads, rows)


def _described(live: Live, asof: AsOf, names: pa.Array) -> pa.Table:
    """The users of these names with what counters are kept by; of unknown ones nothing is known."""
    row = places(names, live.users["user_id"])
    wanted = [name for name in live.users.column_names if name in asof.user_columns]
    rows = pa.array(row, mask=row < 0)
    return pa.table({"user_id": names, **{name: live.users[name].take(rows) for name in wanted}})


def _context(events: pa.Table, columns: list[str]) -> pa.Table:
    """The columns of the impressions by which counters are kept, as far as events say them."""
    further = [name for name in columns if name not in _OWN]
    made = {name: events[name].cast(pa.string()) for name in columns if name in _OWN}
    if further:
        contexts = combined(events["context"]).dictionary_encode()
        distinct = [_parsed(text) for text in contexts.dictionary.tolist()]
        for name in further:
            cells = [None if (cell := context.get(name)) is None else text_of(cell) for context in distinct]
            made[name] = pa.array(cells, pa.string()).take(contexts.indices)
    return pa.table(made) if made else pa.table({"": pa.nulls(len(events))})


def _parsed(text: str) -> dict[str, object]:
    """What an event said of its impression; nothing where somebody else wrote the row."""
    try:
        context = json.loads(text)
    except ValueError:
        return {}
    return context if isinstance(context, dict) else {}
