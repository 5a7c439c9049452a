"""Counters of pairs that were never shown: what the prepared impressions last said about the same key before the moment.

A candidate ad needs the counters it would have had at the request. For each counter this takes the last earlier impression
that agrees on its key (the ad, its category, the user and the category, ...), lets what fades fade until the moment, and
counts shares of the history anew. It lags by that one impression itself. Keys over the slot cannot be known before the
list is made: those counters are missing. Memory: the counter columns of the prepared folder.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.asof.keys import KeyColumns
from adrec.asof.spec import counter_name, make_key
from adrec.asof.sums import MICROSECONDS_AN_HOUR
from adrec.config.features import CounterSpec
from adrec.data.examples import Examples
from adrec.data.prepared import Prepared
from adrec.schema import COUNTER_PREFIX, SPLITS

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_BEFORE_THE_LIST = {"position"}


class PastCounters:
    """Counters of (request, ad) pairs by the prepared folder `prepared`."""

    def __init__(self, prepared: Prepared) -> None:
        ads, users = prepared.ads(), prepared.users()
        self.columns = [name for name in prepared.columns if name.startswith(COUNTER_PREFIX)]
        self._ads, self._users = ads.num_rows, users.num_rows
        self._user_ids = users["user_id"].combine_chunks()
        specs = [spec for spec in prepared.counters() if not _BEFORE_THE_LIST & set(spec.by)]
        self._history_specs = [(spec, name) for spec, _, name in _measured(specs, self.columns, history=True)]
        names = {"ad", *(name for spec in specs for name in spec.by)}
        self._keys = KeyColumns(names, ads, users, {})
        self._ad_names = {name for name in names if name in {"ad", "advertiser"} or name in ads.column_names}
        self._user_names = {name for name in names if name == "user" or name in users.column_names} - self._ad_names
        wanted = ["user_index", "ad_index", "shown_at", *self._keys.of_row]
        table = _read(prepared, [*wanted, *self.columns])
        user, ad = (table[name].to_numpy().astype(np.int64) for name in ("user_index", "ad_index"))
        time = pc.cast(table["shown_at"], pa.int64()).to_numpy()
        codes = self._codes(user, ad, table)
        self._moments = np.unique(time)
        self._lookups = []
        for by in dict.fromkeys(tuple(spec.by) for spec in specs):
            columns = [found for found in _measured(specs, self.columns, history=False) if tuple(found[0].by) == by]
            if columns:
                key = make_key([codes[name] for name in by], len(time))
                values = np.stack([table[name].to_numpy(zero_copy_only=False) for _, _, name in columns], axis=1)
                self._lookups.append((by, columns, _LastRows(key, time, self._moments, values.astype(np.float32))))

    def of_pairs(self, requests: pa.Table, examples: Examples, row: Ints, ad: Ints, user: Ints) -> dict[str, Floats]:
        """Counter columns of N pairs: request `row` (N,) of `requests` with ad row `ad` (N,). NaN where nothing is known.

        user (N,) are rows of the prepared folder's users, -1 for others. Ads beyond those of the folder are new.
        """
        time = examples.shown_at[row]
        codes = self._codes(user, ad, requests, row)
        found: dict[str, Floats] = {name: np.full(len(row), np.nan) for name in self.columns}
        for by, columns, lookup in self._lookups:
            key = make_key([codes[name] for name in by], len(row))
            values, hours = lookup.before(key, time, self._moments)
            for column, (spec, half_life, name) in enumerate(columns):
                found[name] = _aged(values[:, column].astype(np.float64), hours, spec, half_life, name)
        lengths = np.diff(examples.history_offsets)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        for spec, name in self._history_specs:
            code = self._with_new(self._keys.of_ad(spec.by[0], self._ads), examples, ad)
            width = int(code.max(initial=0)) + 1
            clicked = code[examples.history_values]
            pairs, count = np.unique((owner * width + clicked)[clicked >= 0], return_counts=True)
            wanted = examples.history_of_row[row].astype(np.int64) * width + code[ad]
            place = np.minimum(np.searchsorted(pairs, wanted), max(len(pairs) - 1, 0))
            hit = (code[ad] >= 0) & ((pairs[place] == wanted) if len(pairs) else False)
            number = np.where(hit, count[place] if len(pairs) else 0, 0).astype(np.float64)
            if "history_share" in name:
                number = number / np.maximum(lengths[examples.history_of_row[row]], 1)
            found[name] = number
        return found

    def user_rows(self, ids: pa.Array) -> Ints:
        """(N,) rows of the prepared folder's users, -1 for others."""
        found = pc.fill_null(pc.index_in(ids, value_set=self._user_ids), -1)
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int64)

    def _with_new(self, code: Ints, examples: Examples, ad: Ints) -> Ints:
        """The codes of the folder's ads, and -1 for as many new ads as the rows name."""
        most = max(int(ad.max(initial=-1)), int(examples.history_values.max(initial=-1)))
        return np.concatenate([code, np.full(max(0, most + 1 - len(code)), -1, dtype=np.int64)])

    def _codes(self, user: Ints, ad: Ints, table: pa.Table, row: Ints | None = None) -> dict[str, Ints]:
        batch = pa.RecordBatch.from_arrays(
            [table[name].combine_chunks() for name in self._keys.of_row if name in table.column_names],
            names=[name for name in self._keys.of_row if name in table.column_names],
        )
        of_row = {}
        for name in self._keys.of_row:
            if name in table.column_names:
                codes = self._keys.row_codes(name, batch)
                of_row[name] = codes if row is None else codes[row]
            else:
                of_row[name] = np.full(len(user), -1, dtype=np.int64)
        known_user, known_ad = (user >= 0) & (user < self._users), ad < self._ads
        found = self._keys.codes(np.where(known_user, user, 0), np.where(known_ad, ad, 0), of_row)
        for names, known in ((self._ad_names, known_ad), (self._user_names, known_user)):
            found |= {name: np.where(known, found[name], -1) for name in names & found.keys()}
        return found


class _LastRows:
    """Rows by (key, moment), to find each key's last row strictly before a moment."""

    def __init__(self, key: Ints, time: Ints, moments: Ints, values: NDArray[np.float32]) -> None:
        self._names, code = np.unique(key, return_inverse=True)
        place = code.astype(np.int64) * (len(moments) + 1) + np.searchsorted(moments, time)
        order = np.argsort(place, kind="stable")
        self._place, self._time, self._values = place[order], time[order], values[order]

    def before(self, key: Ints, time: Ints, moments: Ints) -> tuple[NDArray[np.float32], Floats]:
        """(N, V) values and (N,) hours since that row; NaN where there is none."""
        code = np.minimum(np.searchsorted(self._names, key), len(self._names) - 1)
        first = code.astype(np.int64) * (len(moments) + 1)
        last = np.searchsorted(self._place, first + np.searchsorted(moments, time)) - 1
        known = (self._names[code] == key) & (key >= 0) & (last >= 0) & (self._place[np.maximum(last, 0)] >= first)
        last = np.maximum(last, 0)
        values = np.where(known[:, None], self._values[last], np.float32(np.nan))
        return values, np.where(known, (time - self._time[last]) / MICROSECONDS_AN_HOUR, np.nan)


def _aged(value: Floats, hours: Floats, spec: CounterSpec, half_life: float | None, name: str) -> Floats:
    """A counter as it stands so many hours after it was written."""
    plain = np.expm1(value) if spec.log1p else value
    if "hours_since_first" in name:
        plain = plain + hours
    elif half_life is not None and "rate" not in name:
        plain = plain * np.exp2(-hours / half_life)
    elif not spec.log1p:
        return value
    return np.log1p(np.maximum(plain, 0.0)) if spec.log1p else plain


def _measured(specs: list[CounterSpec], columns: list[str], *, history: bool) -> list[tuple[CounterSpec, float | None, str]]:
    """(spec, half-life, column) of every declared counter that the folder has."""
    found = []
    for spec in specs:
        for measure in spec.measures:
            if measure.startswith("history_") != history:
                continue
            fades = not history and measure != "hours_since_first"
            for half_life in spec.half_lives_hours if fades else [None]:
                name = counter_name(spec, measure, half_life)
                if name in columns:
                    found.append((spec, half_life, name))
    return found


def _read(prepared: Prepared, columns: list[str]) -> pa.Table:
    return pa.concat_tables(
        [pa.Table.from_batches(list(prepared.iter(split, columns))) for split in SPLITS if prepared.split_files(split)]
    )
