"""Vectors of entities (E, D): trained by `adrec pretrain-graph`, or given in a file; and what they make of an ad.

An ad's vector is the mean of those of the entities that it is linked to directly, so that a new ad has one as soon as its links
are known. Entities without a vector are passed over; an ad of none has no vector.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adrec.data.arrays import combined, ends, lengths_of, places
from adrec.data.disk.tables import write_table
from adrec.data.graph.links import entity_of, hops_of
from adrec.errors import DataError

Floats = NDArray[np.float32]
_IDS, _VECTORS = "entities.parquet", "entities.npy"


@dataclass(frozen=True)
class EntityVectors:
    """Identifiers (E,) and their vectors (E, D)."""

    ids: pa.Array
    vectors: Floats

    @classmethod
    def open(cls, path: Path) -> "EntityVectors":
        """A folder of `adrec pretrain-graph` or of a bundle, or a text file whose lines are an id and its numbers, with tabs
        between them, as in MIND's entity_embedding.vec. Raises DataError.
        """
        try:
            return cls._of_folder(path) if path.is_dir() else cls._of_text(path)
        except (OSError, ValueError, EOFError, KeyError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0][:160]
            raise DataError(
                f"{path}: holds no vectors of entities ({reason}). Name a folder made by 'adrec pretrain-graph', or a file "
                "with an id and its numbers a line, with tabs between."
            ) from None

    @classmethod
    def _of_folder(cls, folder: Path) -> "EntityVectors":
        ids = combined(pq.read_table(folder / _IDS, columns=["entity_id"])["entity_id"]).cast(pa.string())
        vectors = np.load(folder / _VECTORS, mmap_mode="r", allow_pickle=False)
        if vectors.ndim != 2 or len(vectors) != len(ids) or vectors.dtype != np.float32:
            raise ValueError(f"{len(ids):,} entities and vectors of shape {vectors.shape}")
        return cls(ids, np.asarray(vectors))

    @classmethod
    def _of_text(cls, file: Path) -> "EntityVectors":
        options = pa.csv.ReadOptions(autogenerate_column_names=True)
        read = pa.csv.read_csv(file, options, pa.csv.ParseOptions(delimiter="\t", quote_char=False))
        numbers = [name for name in read.column_names[1:] if not pa.types.is_null(read.schema.field(name).type)]
        if not numbers:
            raise ValueError("no numbers stand behind the first tab")
        columns = [pc.cast(combined(read[name]), pa.float32()).to_numpy(zero_copy_only=False) for name in numbers]
        return cls(combined(read[read.column_names[0]]).cast(pa.string()), np.ascontiguousarray(np.stack(columns, axis=1)))

    @property
    def width(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of ids and numbers."""
        digest = hashlib.sha256("\n".join(self.ids.to_pylist()).encode())
        digest.update(np.ascontiguousarray(self.vectors).tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Two files of a folder."""
        write_table(pa.table({"entity_id": self.ids}), folder / _IDS)
        np.save(folder / _VECTORS, np.ascontiguousarray(self.vectors, np.float32))

    def of_paths(self, lists: pa.Array) -> Floats:
        """(N,) lists of paths (`adrec.data.graph`) → (N, D) means over their direct entities; NaN where none has a vector."""
        lengths = lengths_of(lists)
        paths = combined(lists.flatten()).cast(pa.string())
        row = np.repeat(np.arange(len(lengths)), lengths)
        entity = places(entity_of(paths), self.ids)
        known = (entity >= 0) & (hops_of(paths) == 1)
        starts = ends(np.bincount(row[known], minlength=len(lengths)))
        filled = np.flatnonzero(np.diff(starts))
        made = np.full((len(lengths), self.width), np.nan, np.float32)
        if len(filled):
            sums = np.add.reduceat(self.vectors[entity[known]].astype(np.float64), starts[filled], axis=0)
            made[filled] = sums / np.diff(starts)[filled, None]
        return made
