"""What a table says of pictures or sounds → vectors of its rows. Each distinct one is encoded once, by its content.

Cells are bytes, names of files, addresses in stores, or `data:` addresses. What is set aside is a missing vector, with its
reason in `set_aside`; no cell stops a run. Costs the bytes of `_AT_ONCE` cells in memory; a kill costs those in hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.data.media.files import MediaError, MediaFiles
from adrec.data.text.vector_cache import cached_vectors
from adrec.models.media.media_encoder import MediaEncoder

_AT_ONCE = 64
_SHOWN = 80

Floats = NDArray[np.float32]


class SetAside(NamedTuple):
    """A picture or a sound that could not be read."""

    row: int
    reference: str
    """as the cell has it, the beginning of it"""
    reason: str


@dataclass
class MediaVectors:
    """An encoder with the places that pictures or sounds are read from."""

    encoder: MediaEncoder
    files: MediaFiles
    cache: Path | None = None
    keep: bool = True
    """whether vectors are kept on disk"""
    set_aside: list[SetAside] = field(default_factory=list)
    rows: int = 0
    """read so far"""

    def __call__(self, column: pa.Array | pa.ChunkedArray) -> Floats:
        """(N, D) of a column of text or bytes; NaN where there is none, or one that is set aside."""
        made = np.full((len(column), self.encoder.dimension), np.nan, np.float32)
        for start in range(0, len(column), _AT_ONCE):
            self._piece(column.slice(start, _AT_ONCE).to_pylist(), made[start : start + _AT_ONCE], self.rows + start)
        self.rows += len(column)
        return made

    def one(self, cell: str | bytes) -> Floats:
        """(D,) of one picture or sound. Raises MediaError where it is set aside."""
        data = self.files.read(cell)
        found: Floats = self._encoded([data])[0]
        if np.isnan(found).any():
            self.files.decode(data)  # says why
            raise MediaError("gives no vector")
        return found

    def _piece(self, cells: Sequence[str | bytes | None], made: Floats, first: int) -> None:
        places, contents = [], []
        for place, cell in enumerate(cells):
            if not cell:
                continue
            try:
                contents.append(self.files.read(cell))
                places.append(place)
            except MediaError as error:
                self._note(first + place, cell, str(error))
        if not contents:
            return
        found = self._encoded(contents)
        for number in np.flatnonzero(np.isnan(found).any(axis=1)):
            self._note(first + places[number], cells[places[number]] or "", self._reason(contents[number]))
        made[places] = found

    def _encoded(self, contents: Sequence[bytes]) -> Floats:
        """(N, D) by their bytes, NaN where nothing can be read."""
        if not self.keep:
            return self._encode(list(contents))
        return cached_vectors(contents, fingerprint=self.encoder.fingerprint, encode=self._encode, folder=self.cache)

    def _encode(self, contents: list[bytes]) -> Floats:
        made = np.full((len(contents), self.encoder.dimension), np.nan, np.float32)
        for place, data in enumerate(contents):
            try:
                made[place] = self.encoder.encode([self.files.decode(data)])[0]
            except MediaError:
                continue  # missing; whoever asked tells why
        return made

    def _reason(self, data: bytes) -> str:
        try:
            self.files.decode(data)
        except MediaError as error:
            return str(error)
        return "gives no finite vector"

    def _note(self, row: int, cell: str | bytes, reason: str) -> None:
        shown = f"{len(cell):,} bytes" if isinstance(cell, bytes) else cell[:_SHOWN]
        self.set_aside.append(SetAside(row, shown, reason))


def text_vectors(encoder: MediaEncoder, texts: pa.Array | pa.ChunkedArray, *, cache: Path | None, keep: bool = True) -> Floats:
    """(N, D) of texts in the space of the encoder's pictures or sounds; NaN where a text is empty."""
    cells = pc.fill_null(texts, "").to_pylist()
    made = np.full((len(cells), encoder.dimension), np.nan, np.float32)
    filled = [place for place, cell in enumerate(cells) if cell.strip()]
    wanted = [cells[place] for place in filled]
    if wanted:
        fingerprint = f"{encoder.fingerprint}-words"
        kept = cached_vectors(wanted, fingerprint=fingerprint, encode=encoder.texts, folder=cache) if keep else None
        made[filled] = encoder.texts(wanted) if kept is None else kept
    return made
