"""Sums on disk, in layers: a day's lie over those before; of a key the newest layer that has it counts. Mapped, not read."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrec.asof.sums import KeyedSums
from adrec.errors import DataError


def save_sums(sums: KeyedSums, folder: Path) -> None:
    """Write all of `sums` into `folder` as one layer."""
    writer = SumsWriter(sums, folder)
    writer.write(sums.flat())
    writer.close()


def load_sums(sums: KeyedSums, folder: Path) -> None:
    """Make `sums` go on from the layers in `folder`. Raises DataError where they are broken or of another shape."""
    sums.keys, sums.columns = sums.keys[:0], {key: values[:0] for key, values in sums.columns.items()}
    sums.base = None
    for layer in layers_of(folder):
        saved = KeyedSums(sums.events, sums.half_lives, first=sums.tells_first, base=sums.base)
        saved.keys = _mapped(layer / "keys.bin", sums.keys)
        saved.columns = {key: _mapped(layer / f"{key}.bin", values) for key, values in sums.columns.items()}
        if any(len(values) != len(saved.keys) for values in saved.columns.values()):
            raise DataError(f"{layer}: no usable state (columns of different lengths). Run 'adrec preprocess' again.")
        sums.base = saved


def layers_of(folder: Path) -> list[Path]:
    """The saved layers of a state, the oldest first: of a key the newest counts."""
    layers = sorted((layer for layer in folder.glob("layer-*") if layer.is_dir()), key=lambda layer: layer.name)
    if not layers:
        raise DataError(f"{folder}: no usable state (it is missing). Run 'adrec preprocess' again.")
    return layers


class SumsWriter:
    """Writes a layer of sums to disk, one range of keys after another, as plain little-endian arrays."""

    def __init__(self, like: KeyedSums, folder: Path, number: int = 0) -> None:
        """`number`: of the layer, over those that lie in `folder` already."""
        layer = folder / f"layer-{number:03d}"
        layer.mkdir(parents=True, exist_ok=True)
        self._files = {key: (layer / f"{key}.bin").open("wb") for key in ("keys", *like.columns)}

    def write(self, sums: KeyedSums) -> None:
        """Add the entries of `sums` itself, without its base; their keys lie behind those before."""
        for key, values in {"keys": sums.keys, **sums.columns}.items():
            self._files[key].write(np.ascontiguousarray(values).data if len(values) else b"")

    def close(self) -> None:
        """End the files."""
        for file in self._files.values():
            file.close()


def _mapped(path: Path, like: NDArray[Any]) -> NDArray[Any]:
    """A written array with the type and the trailing shape of `like`."""
    width = like.dtype.itemsize * math.prod(like.shape[1:])
    try:
        size = path.stat().st_size
        if width == 0 or size == 0:
            return np.zeros((0, *like.shape[1:]), like.dtype)
        if size % width:
            raise ValueError("it is cut off")
        mapped: NDArray[Any] = np.memmap(path, like.dtype, "r", shape=(size // width, *like.shape[1:]))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no usable state ({error}). Run 'adrec preprocess' again.") from None
    return mapped
