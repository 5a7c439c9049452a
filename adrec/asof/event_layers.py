"""A log of acts in layers: those of an append lie over those before, whose files are linked and not written again.

A layer is merged into the new one while it is less than twice as large, so that there are few of them and an act is moved a
logarithm of times in its life: the time of an append grows with the day and not with the log.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.asof.history import EventLog, Histories, joined
from adrec.data.disk.writing import link_file

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LayeredLog:
    """Acts by user and time in several logs, the oldest first: at one moment those of an older layer come first."""

    layers: tuple[EventLog, ...] = ()

    def __len__(self) -> int:
        return sum(len(layer.ads) for layer in self.layers)

    @property
    def last_moment(self) -> int | None:
        """Of any act, microseconds; None without acts."""
        return max((int(layer.times.max()) for layer in self.layers if len(layer.times)), default=None)

    @classmethod
    def load(cls, folder: Path) -> "LayeredLog":
        """The layers in `folder`, mapped into memory; or one that lies in it itself. Raises DataError where one is broken."""
        return cls(tuple(EventLog.load(layer) for layer in _folders(folder)))

    def histories(self, users: Ints, times: Ints, limit: int) -> Histories:
        """The newest `limit` acts of R users (codes) strictly before their moments (R,)."""
        first, *others = self.layers or (EventLog.empty(),)
        histories = first.histories(users, times, limit)
        for layer in others:
            histories = joined(histories, layer.histories(users, times, limit), limit)
        return histories

    def without(self, users: Ints) -> "LayeredLog":
        """The log of all others."""
        return LayeredLog(tuple(layer.without(users) for layer in self.layers))

    def merged(self, other: "LayeredLog") -> "LayeredLog":
        """Both logs as one; at one moment those of `self` come first."""
        return LayeredLog(tuple(layer for layer in (*self.layers, *other.layers) if len(layer.ads)))


def write_layer(batches: Iterable[pa.RecordBatch], count: int, folder: Path, earlier: Path | None = None) -> LayeredLog:
    """`count` acts in order of (code, time), columns code, ad_index, time, over the layers of `earlier`, to `folder`."""
    before = _folders(earlier) if earlier is not None else []
    sizes = [len(EventLog.load(layer).ads) for layer in before]
    stays, size = len(before), count
    while stays and sizes[stays - 1] < 2 * size:
        stays -= 1
        size += sizes[stays]
    for number, layer in enumerate(before[:stays]):
        for file in layer.glob("*.npy"):
            link_file(file, _layer(folder, number) / file.name)
    top = _layer(folder, stays)
    if not size and stays:
        return LayeredLog.load(folder)  # nothing happened
    if stays == len(before):
        EventLog.write(batches, count, top)
        return LayeredLog.load(folder)
    aside = folder / "merging"
    log = EventLog.write(batches, count, aside / str(len(before)))
    for number in reversed(range(stays, len(before))):
        log = EventLog.load(before[number]).merged(log, top if number == stays else aside / str(number))
    shutil.rmtree(aside)
    return LayeredLog.load(folder)


def _folders(folder: Path) -> list[Path]:
    """Where the layers lie, the oldest first."""
    return sorted(layer for layer in folder.glob("layer-*") if layer.is_dir()) or [folder]


def _layer(folder: Path, number: int) -> Path:
    return folder / f"layer-{number:03d}"
