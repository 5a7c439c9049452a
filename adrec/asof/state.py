"""What is carried from one preprocess run to the next: counter states, newest clicks, codes. Plain arrays, no pickle."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adrec.asof.events import EventRows, events_from_arrays, events_to_arrays
from adrec.asof.keys import KeyColumns
from adrec.asof.spec import KeyCounters, KeyPlan
from adrec.config.features import HistoryConfig
from adrec.errors import DataError

Arrays = dict[str, NDArray[np.generic]]
_VERSION = 1


@dataclass
class Carried:
    """An earlier run's state; empty on a first run."""

    folder: Path | None
    parts: int
    last_moment: int | None = None
    books: dict[str, pa.Array] = field(default_factory=dict)
    late: EventRows | None = None

    def part(self, number: int) -> Arrays:
        """State of one part of the users; empty where it has none."""
        path = None if self.folder is None else self.folder / part_name(number)
        return load_arrays(path) if path is not None and path.exists() else {}


def load_state(
    folder: Path | None, overall: Sequence[KeyCounters], history: HistoryConfig, plans: Sequence[KeyPlan], parts: int
) -> Carried:
    """Read a saved state into `overall`. Raises DataError when it is missing or was made with other settings."""
    if folder is None:
        return Carried(None, parts)
    try:
        about = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        books = pq.read_table(folder / "codes.parquet")
        arrays = load_arrays(folder / "overall.arrow")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder}: no usable state of an earlier run ({error}). Rebuild from all files.") from None
    if about.get("settings") != _settings(history, plans):
        raise DataError(f"{folder}: made with other counters or history settings. Rebuild from all files.")
    for counter in overall:
        counter.restore(within(arrays, _counter_name(counter.plan)))
    late = within(arrays, "late/")
    by_name = {
        name: books.filter(pc.equal(books["name"], name))["value"].combine_chunks()
        for name in pc.unique(books["name"]).tolist()
    }
    return Carried(folder, int(about["parts"]), about["last_moment"], by_name, events_from_arrays(late) if late else None)


def save_overall(
    folder: Path,
    overall: Sequence[KeyCounters],
    history: HistoryConfig,
    plans: Sequence[KeyPlan],
    carried: Carried,
    last_moment: int | None,
    keys: KeyColumns,
) -> None:
    """Write everything but the users' parts."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = counters_to_arrays(overall)
    if carried.late is not None:
        arrays.update({f"late/{name}": values for name, values in events_to_arrays(carried.late).items()})
    save_arrays(folder / "overall.arrow", arrays)
    books = [
        pa.table({"name": pa.array([name] * len(book.values), pa.string()), "value": book.values})
        for name, book in keys.books.items()
    ]
    empty = pa.table({"name": pa.array([], pa.string()), "value": pa.array([], pa.string())})
    pq.write_table(pa.concat_tables([empty, *books]), folder / "codes.parquet", compression="zstd")
    about = {"settings": _settings(history, plans), "parts": carried.parts, "last_moment": last_moment}
    (folder / "state.json").write_text(json.dumps(about, indent=2), encoding="utf-8")


def check_later(moment: int, last_moment: int | None) -> None:
    """Raise DataError when rows come before those that were already taken in."""
    if last_moment is not None and moment < last_moment:
        found, last = (np.datetime64(value, "us") for value in (moment, last_moment))
        raise DataError(
            f"impressions: a row shown at {found} UTC comes after rows up to {last} UTC were taken in. "
            "Append newer files only, or rebuild from all files."
        )


def counters_to_arrays(counters: Sequence[KeyCounters]) -> Arrays:
    """States of several counters under distinct names."""
    return {
        f"{_counter_name(counter.plan)}{name}": values for counter in counters for name, values in counter.to_arrays().items()
    }


def restore_counters(counters: Sequence[KeyCounters], arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """The inverse of `counters_to_arrays`."""
    for counter in counters:
        counter.restore(within(arrays, _counter_name(counter.plan)))


def within(arrays: Mapping[str, NDArray[np.generic]], prefix: str) -> Arrays:
    """Arrays whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def part_name(number: int) -> str:
    """File name of one part's state."""
    return f"part-{number:03d}.arrow"


def save_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write named arrays as one Arrow row of lists, their shapes beside them (zstd)."""
    shapes = {name: list(values.shape) for name, values in arrays.items()}
    columns = {
        name: pa.LargeListArray.from_arrays(pa.array([0, values.size], pa.int64()), pa.array(values.ravel()))
        for name, values in arrays.items()
    }
    table = pa.table(columns).replace_schema_metadata({"shapes": json.dumps(shapes)})
    with pa.ipc.new_stream(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)


def load_arrays(path: Path) -> Arrays:
    """The inverse of `save_arrays`."""
    with pa.ipc.open_stream(pa.OSFile(str(path))) as reader:
        table = reader.read_all()
    shapes = json.loads(table.schema.metadata[b"shapes"])
    return {
        name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(shape)
        for name, shape in shapes.items()
    }


def _settings(history: HistoryConfig, plans: Sequence[KeyPlan]) -> dict[str, Any]:
    described = [[list(plan.by), list(plan.events), list(plan.half_lives), plan.first] for plan in plans]
    return {"version": _VERSION, "history": history.model_dump(mode="json"), "keys": described}


def _counter_name(plan: KeyPlan) -> str:
    return f"counter/{'+'.join(plan.by)}/"
