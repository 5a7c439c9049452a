"""Pictures of strangers: bytes from files, stores and cells, and what they show. Nothing here trusts a byte of them.

A picture is read up to a bound, its size is known from its header before a pixel is unpacked, and only plain raster formats are
opened; whatever else it is, it is set aside with a reason. Costs one picture in memory, at most `max_pixels` of it.
"""

import base64
import binascii
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_LONGEST_SIDE = 20_000
_WORTH_READING = 1_024
"""Longest side in pixels that encoders are given: theirs are a quarter of it."""
_MARKUP = (b"<svg", b"<?xml", b"<!doctype", b"<html")


class PictureError(Exception):
    """Why a picture is set aside, in words that fit behind its name."""


@dataclass(frozen=True)
class Pictures:
    """Where references to pictures lead, and how large a picture may be."""

    root: Path | None = None
    """folder that relative paths start from; None: paths are refused"""
    beneath: bool = False
    """whether nothing outside `root` may be read"""
    stores: tuple[str, ...] = ()
    """beginnings of addresses (`s3://bucket/creatives/`) that may be read, by fsspec"""
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000

    def read(self, cell: str | bytes) -> bytes:
        """The bytes behind a cell: its own, or those of the file or address that it names. Raises PictureError."""
        if isinstance(cell, bytes):
            return self._bounded(cell)
        if cell.startswith("data:"):
            return self._bounded(_of_data_address(cell))
        if "://" in cell:
            return self._of_store(cell)
        if self.root is None:
            raise PictureError("names a file, and files are not read here")
        path = self.root / cell
        try:
            if self.beneath and not path.resolve().is_relative_to(self.root.resolve()):
                raise PictureError("lies outside the folder of pictures")
            if not path.is_file():
                raise PictureError("is no file")
            with open(path, "rb") as handle:
                return self._bounded(handle.read(self.max_bytes + 1))
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a zero byte, a circle of links
            raise PictureError(f"cannot be read ({type(error).__name__})") from None

    def decode(self, data: bytes) -> "Image":
        """What the bytes show, as RGB with its sides as a camera meant them. Raises PictureError."""
        from PIL import Image, ImageOps

        head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if head.startswith(_MARKUP):
            raise PictureError("is SVG or another page, which may hold scripts; give PNG, JPEG or WebP")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                    self._refuse(opened)
                    opened.draft("RGB", (_WORTH_READING, _WORTH_READING))  # JPEG unpacks no more than it must
                    turned = _opaque(ImageOps.exif_transpose(opened))
                    turned.thumbnail((_WORTH_READING, _WORTH_READING))
                    return turned
        except PictureError:
            raise
        except Exception as error:  # decoders of damaged files raise nearly anything; none may stop a run
            told = {
                "UnidentifiedImageError": f"is no picture ({', '.join(FORMATS)})",
                "DecompressionBombError": "is too large (more pixels than Pillow opens)",
            }
            kind = type(error).__name__
            raise PictureError(told.get(kind, f"is damaged ({kind})")) from None

    def _refuse(self, opened: Any) -> None:
        width, height = opened.size
        if width < 1 or height < 1:
            raise PictureError("has no pixels")
        if max(width, height) > _LONGEST_SIDE or width * height > self.max_pixels:
            raise PictureError(f"is too large ({width:,} x {height:,} pixels)")
        if getattr(opened, "is_animated", False):
            raise PictureError("moves; give one still picture")

    def _bounded(self, data: bytes) -> bytes:
        if not data:
            raise PictureError("is empty")
        if len(data) > self.max_bytes:
            raise PictureError(f"has more than {self.max_bytes:,} bytes")
        return data

    def _of_store(self, address: str) -> bytes:
        if ".." in address or not address.startswith(self.stores or ("\0",)):
            raise PictureError("lies in no store that the config names (image.stores)")
        import fsspec

        try:
            with fsspec.open(address, "rb") as handle:
                return self._bounded(handle.read(self.max_bytes + 1))
        except PictureError:
            raise
        except Exception as error:  # each kind of store has faults of its own
            raise PictureError(f"cannot be read ({type(error).__name__})") from None


def _of_data_address(cell: str) -> bytes:
    """The bytes of a `data:image/png;base64,...` address."""
    _, mark, encoded = cell.partition(";base64,")
    if not mark:
        raise PictureError("is a data address without base64")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise PictureError("is no base64") from None


def _opaque(picture: Any) -> "Image":
    """RGB; what shines through stands on white."""
    from PIL import Image

    if picture.mode in {"RGBA", "LA", "PA"} or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, clear).convert("RGB")
    found: Image.Image = picture.convert("RGB")
    return found


def absolute(cells: pa.Array, root: Path) -> pa.Array:
    """A column of references whose names of files start from `root`; bytes, addresses and whole paths stay."""
    if not pa.types.is_string(cells.type):
        return cells
    stays = pc.or_(pc.match_substring_regex(cells, r"^(/|[A-Za-z]:|data:)"), pc.match_substring(cells, "://"))
    return pc.if_else(pc.or_(stays, pc.equal(cells, "")), cells, pc.binary_join_element_wise(f"{root.absolute()}/", cells, ""))
