"""Counters of new rows from what an earlier preprocess run carried over, without taking the rows in.

Each row sees the log up to its end and nothing of the rows beside it, so its counters do not depend on how rows are batched.
Clicks and conversions that were still to come when the state was saved are seen from the next preprocess run on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.asof.keys import KeyColumns
from adrec.asof.partitions import integers
from adrec.asof.spec import KeyCounters, counter_names, history_matches, make_key, measure_counters, plan_keys
from adrec.asof.spool import moments
from adrec.asof.state import Arrays, load_state, within
from adrec.config.features import CounterSpec, HistoryConfig

Ints = NDArray[np.int64]


class PastReader:
    """Reads the folder that `Past.save` wrote.

    `ads` and `users` are the tables that new rows point into, in the order of their index; `known_ads` (A,) and
    `known_users` (U,) give the same ad's and user's index in the prepared folder, -1 where it is new.
    """

    def __init__(
        self,
        folder: Path,
        *,
        counters: Sequence[CounterSpec],
        history: HistoryConfig,
        ads: pa.Table,
        users: pa.Table,
        known_ads: Ints,
        known_users: Ints,
    ) -> None:
        """Raises DataError when the folder is missing or was made with other counters or history settings."""
        self.specs, self.history = list(counters), history
        self._ads, self._known_ads, self._known_users = ads, known_ads, known_users
        plans = plan_keys(self.specs, user_clicks=True)
        overall = [KeyCounters(plan) for plan in plans if not plan.of_user]
        carried = load_state(folder, overall, history, plans, parts=1)
        of_user = [KeyCounters(plan) for plan in plans if plan.of_user]
        parts = [carried.part(number) for number in range(carried.parts)]
        for counter in of_user:
            counter.restore(_merged([within(part, f"counter/{'+'.join(counter.plan.by)}/") for part in parts]))
        self._counters = [*overall, *of_user]
        self.last_moment = carried.last_moment
        names = {name for plan in plans for name in plan.by} | {name for spec in self.specs for name in spec.by}
        self._keys = KeyColumns({"user", "ad", *names}, ads, users, carried.books)

    def attach(self, table: pa.Table) -> pa.Table:
        """The table with its counter columns, float32; those it already has stay.

        Reads `user_index`, `ad_index`, `shown_at`, `history_index` and the columns named in `by`. One that is absent counts as
        missing; where the ads lack it, its history measures are NaN. Rows shown before the end of the log get NaN throughout:
        what was known then is no longer told apart.
        """
        names = [name for name in counter_names(self.specs) if name not in table.column_names]
        if not names or not table.num_rows:
            return table
        batch = table.combine_chunks().to_batches()[0]
        user, ad, time = integers(batch, "user_index"), integers(batch, "ad_index"), moments(table)
        absent = np.full(len(time), -1, dtype=np.int64)
        of_row = {
            name: self._keys.row_codes(name, batch) if self._keys.has(name, batch) else absent for name in self._keys.of_row
        }
        codes = self._keys.codes(user, ad, of_row)
        codes.update(user=self._known_users[user], ad=self._known_ads[ad])
        sums: Arrays = {}
        for counter in self._counters:
            sums.update(counter.peek(make_key([codes[name] for name in counter.plan.by], len(time)), time))
        offsets, values = _newest(batch.column("history_index"), self.history.max_clicks)

        def history_measure(name: str, measure: str) -> NDArray[np.float64]:
            if not self._keys.in_ads(name):
                return np.full(len(time), np.nan)
            return history_matches(self._keys.of_ad(name, self._ads.num_rows), ad, offsets, values, measure)

        found = measure_counters(self.specs, sums, time, history_measure)
        too_early = time < (self.last_moment if self.last_moment is not None else np.iinfo(np.int64).min)
        for name in names:
            found[name][too_early] = np.nan
            table = table.append_column(name, pa.array(found[name]))
        return table


def _merged(parts: Sequence[Arrays]) -> Arrays:
    """States of one counter over distinct keys as one state, keys ascending."""
    parts = [part for part in parts if part]
    merged: Arrays = {}
    for prefix in ("sums/", "firsts/"):
        some = [within(part, prefix) for part in parts if f"{prefix}keys" in part]
        if some:
            order = np.argsort(np.concatenate([part["keys"] for part in some]), kind="stable")
            merged.update({prefix + name: np.concatenate([part[name] for part in some])[order] for name in some[0]})
    return merged


def _newest(lists: pa.Array, limit: int) -> tuple[Ints, NDArray[np.int32]]:
    """Offsets (N + 1,) and values of lists cut to their newest `limit`; a null is empty."""
    lengths = np.asarray(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
    values = np.asarray(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.int32)
    kept = np.minimum(lengths, limit)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(kept)])
    from_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(values))
    return offsets, values[from_end <= np.repeat(kept, lengths)]
