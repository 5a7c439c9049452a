"""Golden requests: a few rows kept in the bundle with the logits they had when it was made; who loads it must get them again.

A row joins the user of one validation row with the history of a second and the ad of a third: it describes no person, and
its users are named `golden-1`, `golden-2`, ...
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.bundle import Bundle
from adrec.data.arrays import combined, ends, integers, lengths_of, newest
from adrec.data.disk.tables import read_table, write_table
from adrec.data.examples import columns_to_read
from adrec.data.features import FeatureSet
from adrec.data.prepared import Prepared

FOLDER = "golden"
TOLERANCE = 1e-4
"""Largest difference of logits that passes: processors and threads differ by less."""
ROWS = 8
CLICKS = 3  # of each history: the check stays quick, and the bundle small
_POOL = 4096  # rows of the validation split among which they are drawn


@dataclass(frozen=True)
class Golden:
    """Tables as prepared ones, whose indices point into `ads` and `users`."""

    impressions: pa.Table
    ads: pa.Table
    users: pa.Table
    logits: NDArray[np.float32] | None = None
    """(N,) what the bundle gave; None before it is known"""
    scores: NDArray[np.float32] | None = None
    """(N,) the probabilities it made of them; None in bundles of earlier versions"""

    def save(self, folder: Path, logits: NDArray[np.float32], scores: NDArray[np.float32]) -> None:
        """Write into the folder of a bundle that is being made."""
        (folder / FOLDER).mkdir(exist_ok=True)
        rows = self.impressions.append_column("golden_logit", pa.array(logits, pa.float32()))
        rows = rows.append_column("golden_score", pa.array(scores, pa.float32()))
        for name, table in (("impressions", rows), ("ads", self.ads), ("users", self.users)):
            write_table(table, folder / FOLDER / f"{name}.parquet")


def draw_golden(prepared: Prepared, features: dict[str, FeatureSet], *, seed: int) -> Golden:
    """A few rows of the validation split, joined anew."""
    rng = np.random.default_rng(seed)
    columns = [name for name in columns_to_read(prepared, ()) if name != "row_id"]
    pool = pa.Table.from_batches([next(prepared.iter("valid", columns, _POOL))])
    picks = [pa.array(rng.integers(0, len(pool), ROWS)) for _ in range(3)]
    rows, others, thirds = (pool.take(pick) for pick in picks)
    past = [name for name in ("history_index", "history_hours", "skipped_index", "history_length") if name in columns]
    for name, source in [*((name, others) for name in past), ("ad_index", thirds)]:
        rows = rows.set_column(rows.column_names.index(name), name, source[name])
    lists = [name for name in ("history_index", "skipped_index") if name in rows.column_names]
    for name in [*lists, *(["history_hours"] if "history_hours" in rows.column_names else [])]:
        rows = rows.set_column(rows.column_names.index(name), name, _cut(rows[name]))
    indices = [integers(rows["ad_index"]), *(combined(pc.list_flatten(rows[name])).to_numpy() for name in lists)]
    used = np.unique(np.concatenate(indices))
    numbers = pa.array(used, pa.int32())
    rows = rows.set_column(
        rows.column_names.index("ad_index"), "ad_index", pc.index_in(rows["ad_index"].cast(pa.int32()), value_set=numbers)
    )
    for name in lists:
        column = combined(rows[name])
        places = pc.index_in(column.flatten().cast(pa.int32()), value_set=numbers)
        rows = rows.set_column(rows.column_names.index(name), name, pa.ListArray.from_arrays(column.offsets, places))
    users = prepared.users().take(rows["user_index"].combine_chunks())
    names = pa.array([f"golden-{number + 1}" for number in range(ROWS)])
    rows = rows.set_column(rows.column_names.index("user_index"), "user_index", pa.array(np.arange(ROWS), pa.int32()))
    rows = rows.set_column(rows.column_names.index("request_id"), "request_id", names)
    users = users.set_column(users.column_names.index("user_id"), "user_id", names)
    return Golden(
        impressions=rows,
        ads=_kept(prepared.ads().take(numbers), {"ad_id", "title", "text", *features["ads"].columns}),
        users=_kept(users, {"user_id", "text", *features["users"].columns}),
    )


def read_golden(bundle: Bundle) -> Golden | None:
    """Those of a bundle; None where it has none, as bundles made before there were any."""
    if not bundle.has(f"{FOLDER}/"):
        return None
    impressions, ads, users = (read_table(bundle.file(f"{FOLDER}/{name}.parquet")) for name in ("impressions", "ads", "users"))
    known = {
        name: np.asarray(impressions[name].to_numpy(), np.float32)
        for name in ("golden_logit", "golden_score")
        if name in impressions.column_names
    }
    rows = impressions.drop_columns(list(known))
    return Golden(rows, ads, users, known.get("golden_logit"), known.get("golden_score"))


def _cut(column: pa.ChunkedArray) -> pa.Array:
    """The last CLICKS values of each list; null is empty."""
    offsets, kept = newest(ends(lengths_of(column)), CLICKS)
    values = combined(pc.list_flatten(column)).take(pa.array(kept))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _kept(table: pa.Table, names: set[str]) -> pa.Table:
    return table.select([name for name in table.column_names if name in names]).combine_chunks()
