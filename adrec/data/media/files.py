"""The bytes behind a cell: its own, a file's, a store's or a `data:` address's, up to a bound. None of them is trusted."""

import base64
import binascii
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc


class MediaError(Exception):
    """Why a picture or a sound is set aside, in words that fit behind its name."""


@dataclass(frozen=True)
class MediaFiles(ABC):
    """Where references lead, how large a file may be, and how its bytes are read."""

    root: Path | None = None
    """folder that relative paths start from; None: paths are refused"""
    beneath: bool = False
    """whether nothing outside `root` may be read"""
    stores: tuple[str, ...] = ()
    """beginnings of addresses (`s3://bucket/creatives/`) that may be read, by fsspec"""
    max_bytes: int = 20_000_000

    SETTING: ClassVar[str]
    """section of the preprocess config, and field of an ad that is put"""
    THING: ClassVar[str]
    """in messages"""

    @abstractmethod
    def decode(self, data: bytes) -> Any:
        """What the bytes hold, as an encoder takes it. Raises MediaError."""

    def read(self, cell: str | bytes) -> bytes:
        """The bytes behind a cell: its own, or those of the file or address that it names. Raises MediaError."""
        if isinstance(cell, bytes):
            return self._bounded(cell)
        if cell.startswith("data:"):
            return self._bounded(_of_data_address(cell))
        if "://" in cell:
            return self._of_store(cell)
        if self.root is None:
            raise MediaError("names a file, and files are not read here")
        path = self.root / cell
        try:
            if self.beneath and not path.resolve().is_relative_to(self.root.resolve()):
                raise MediaError(f"lies outside the folder of {self.THING}s")
            if not path.is_file():
                raise MediaError("is no file")
            with open(path, "rb") as handle:
                return self._bounded(handle.read(self.max_bytes + 1))
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a zero byte, a circle of links
            raise MediaError(f"cannot be read ({type(error).__name__})") from None

    def _bounded(self, data: bytes) -> bytes:
        if not data:
            raise MediaError("is empty")
        if len(data) > self.max_bytes:
            raise MediaError(f"has more than {self.max_bytes:,} bytes")
        return data

    def _of_store(self, address: str) -> bytes:
        if ".." in address or not address.startswith(self.stores or ("\0",)):
            raise MediaError(f"lies in no store that the config names ({self.SETTING}.stores)")
        import fsspec

        try:
            with fsspec.open(address, "rb") as handle:
                return self._bounded(handle.read(self.max_bytes + 1))
        except MediaError:
            raise
        except Exception as error:  # each kind of store has faults of its own
            raise MediaError(f"cannot be read ({type(error).__name__})") from None


def _of_data_address(cell: str) -> bytes:
    """The bytes of a `data:image/png;base64,...` address."""
    _, mark, encoded = cell.partition(";base64,")
    if not mark:
        raise MediaError("is a data address without base64")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise MediaError("is no base64") from None


def absolute(cells: pa.Array, root: Path) -> pa.Array:
    """A column of references whose names of files start from `root`; bytes, addresses and whole paths stay."""
    if not pa.types.is_string(cells.type):
        return cells
    stays = pc.or_(pc.match_substring_regex(cells, r"^(/|[A-Za-z]:|data:)"), pc.match_substring(cells, "://"))
    return pc.if_else(pc.or_(stays, pc.equal(cells, "")), cells, pc.binary_join_element_wise(f"{root.absolute()}/", cells, ""))
