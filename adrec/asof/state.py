"""What is known at the end of a log: sums by key, clicks, skips, and what is still to come.

`step` takes events and tells, `peek` tells, `add` takes events in any order (a server's), `merge` joins two states of other
events, `forget` drops a user. Saved as plain arrays that are mapped and not read: a state of any size opens at once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adrec.asof.event_layers import LayeredLog
from adrec.asof.events import EventRows
from adrec.asof.keys import make_key
from adrec.asof.layers import load_sums, save_sums
from adrec.asof.spec import FIRST, KeyPlan
from adrec.asof.sums import KeyedSums
from adrec.errors import DataError
from adrec.specs import HistorySpec

Ints = NDArray[np.int64]
Arrays = dict[str, NDArray[np.generic]]
VERSION = 3
_READ = (2, 3)
"""Versions that can be read: before 3 a log had no layers."""
PENDING = "pending.parquet"
_LOOSE_LIVE = 2_048
_AGAIN = "Run 'adrec preprocess' again."


@dataclass
class State:
    """Sums of `plans`, logs of clicks and skips, and events whose moment lies behind the last row."""

    plans: Sequence[KeyPlan]
    sums: dict[tuple[str, ...], KeyedSums] = field(default_factory=dict)
    clicks: LayeredLog = field(default_factory=LayeredLog)
    skips: LayeredLog = field(default_factory=LayeredLog)
    pending: pa.Table | None = None
    """clicks and conversions after `last_moment`, as `Log.events` tells them"""
    last_moment: int | None = None
    """of the rows that were taken in, microseconds"""

    def __post_init__(self) -> None:
        self.sums = self.sums or {plan.by: plan.new_sums() for plan in self.plans}

    def step(self, rows: EventRows, counted: NDArray[np.bool_] | None = None, plans: Sequence[KeyPlan] | None = None) -> Arrays:
        """Sums before each of N rows (in order of time) by their names, then take in those that are `counted`.

        `plans`: only these. No row may come before an event of an earlier step.
        """
        found: Arrays = {}
        count = len(rows.time)
        for plan in self.plans if plans is None else plans:
            key = make_key(plan.by, rows.codes, count)
            found |= plan.named(self.sums[plan.by].step(key, rows.time, plan.weights(rows.weights, count), counted))
        return found

    def peek(self, codes: Mapping[str, Ints], times: Ints) -> Arrays:
        """Sums before `times` (N,) for rows that come after everything that was taken in; the state stays as it is."""
        found: Arrays = {}
        for plan in self.plans:
            found |= plan.named(self.sums[plan.by].peek(make_key(plan.by, codes, len(times)), times))
        return found

    def add(self, rows: EventRows) -> None:
        """Take in events in any order of time."""
        self.merge(self.gathered(rows))

    def gathered(self, rows: EventRows) -> "State":
        """The sums of other events by themselves, in any order of time: `merge` takes them in."""
        own, order = State(self.plans), np.argsort(rows.time, kind="stable")
        own.step(rows.take(order))
        return own

    def merge(self, other: "State") -> None:
        """Take in the state of other events over the same ads. Raises DataError where it sums other things."""
        if list(self.plans) != list(other.plans):
            raise DataError("states of other counters cannot be merged. Prepare both with the same `counters`.")
        for plan in self.plans:
            self.sums[plan.by].merge(other.sums[plan.by])
        self.clicks, self.skips = self.clicks.merged(other.clicks), self.skips.merged(other.skips)
        pending = [side.pending for side in (self, other) if side.pending is not None]
        self.pending = pa.concat_tables(pending) if pending else None
        moments = [side.last_moment for side in (self, other) if side.last_moment is not None]
        self.last_moment = max(moments, default=None)

    def forget(self, user_index: int, rows: Mapping[str, Ints]) -> None:
        """Drop what is kept by one user. rows: codes of all impressions of that user, by which the keys are known."""
        for plan in self.plans:
            if plan.of_user:
                self.sums[plan.by].forget(make_key(plan.by, rows, len(rows["user"])))
        self.clicks, self.skips = (log.without(np.unique(rows["user"])) for log in (self.clicks, self.skips))
        if self.pending is not None:
            self.pending = self.pending.filter(pc.not_equal(self.pending["user_index"], user_index))

    # ------------------------------------------------------------------------------------------- on disk

    def save(self, folder: Path, history: HistorySpec) -> None:
        """Write everything but the logs, which whoever makes them writes to `folder` itself."""
        folder.mkdir(parents=True, exist_ok=True)
        for plan in self.plans:
            save_sums(self.sums[plan.by], folder / sums_name(plan))
        if self.pending is not None:
            pq.write_table(self.pending, folder / PENDING)
        save_about(folder, self.plans, history, self.last_moment)

    @classmethod
    def load(cls, folder: Path, plans: Sequence[KeyPlan], history: HistorySpec) -> "State":
        """Open a saved state. Raises DataError where it is missing, broken, or was made with other settings."""
        try:
            about = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: no usable state ({error}). {_AGAIN}") from None
        settings = about.get("settings") or {}
        if settings.get("version") not in _READ or {**settings, "version": VERSION} != settings_of(plans, history):
            raise DataError(f"{folder}: made with other counters or history settings. {_AGAIN}")
        state = cls(plans, last_moment=about["last_moment"])
        for plan in plans:
            load_sums(state.sums[plan.by], folder / sums_name(plan))
        state.clicks, state.skips = (LayeredLog.load(folder / kind) for kind in ("clicks", "skips"))
        state.pending = _load_pending(folder)
        return state


def new_state(plans: Sequence[KeyPlan]) -> State:
    """A state that takes in a few events at a time, for ever: what changes is put away early."""
    state = State(plans)
    for sums in state.sums.values():
        sums.most_loose = _LOOSE_LIVE
    return state


def add_sums(sums: Arrays, others: Arrays, rows: Ints) -> None:
    """Add to `sums` (N,) those of other events under the same keys, `others` (R,), at `rows` (R,)."""
    for key, values in others.items():
        if key.endswith(FIRST):
            sums[key][rows] = np.minimum(sums[key][rows], values)
        else:
            sums[key][rows] += values  # type: ignore[misc]


def sums_name(plan: KeyPlan) -> str:
    """Folder of a plan's sums."""
    return f"sums-{'+'.join(plan.by) or 'all'}"


def save_about(folder: Path, plans: Sequence[KeyPlan], history: HistorySpec, last_moment: int | None) -> None:
    """What the state was made with."""
    about = {"settings": settings_of(plans, history), "last_moment": last_moment}
    (folder / "state.json").write_text(json.dumps(about, indent=2), encoding="utf-8")


def settings_of(plans: Sequence[KeyPlan], history: HistorySpec) -> dict[str, Any]:
    """What decides whether a state may be gone on from."""
    described = [[list(plan.by), list(plan.events), list(plan.half_lives), plan.first] for plan in plans]
    return {"version": VERSION, "history": asdict(history), "keys": described}


def _load_pending(folder: Path) -> pa.Table | None:
    file = folder / PENDING
    if not file.is_file():
        return None
    try:
        pending = pq.read_table(file)
        return pending if pending.num_rows else None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: no usable state ({error}). {_AGAIN}") from None
