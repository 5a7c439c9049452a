"""Pictures of strangers. Nothing here trusts a byte of them.

A picture's size is known from its header before a pixel is unpacked, and only plain raster formats are opened; whatever else it
is, it is set aside with a reason. Costs one picture in memory, at most `max_pixels` of it.
"""

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from adrec.data.media.files import MediaError, MediaFiles

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_LONGEST_SIDE = 20_000
_WORTH_READING = 1_024
"""Longest side in pixels that encoders are given: theirs are a quarter of it."""
_MARKUP = (b"<svg", b"<?xml", b"<!doctype", b"<html")


@dataclass(frozen=True)
class Pictures(MediaFiles):
    """Where references to pictures lead, and how large a picture may be."""

    max_pixels: int = 50_000_000

    SETTING: ClassVar[str] = "image"
    THING: ClassVar[str] = "picture"

    def decode(self, data: bytes) -> "Image":
        """What the bytes show, as RGB with its sides as a camera meant them. Raises MediaError."""
        from PIL import Image, ImageOps

        head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if head.startswith(_MARKUP):
            raise MediaError("is SVG or another page, which may hold scripts; give PNG, JPEG or WebP")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                    self._refuse(opened)
                    opened.draft("RGB", (_WORTH_READING, _WORTH_READING))  # JPEG unpacks no more than it must
                    turned = _opaque(ImageOps.exif_transpose(opened))
                    turned.thumbnail((_WORTH_READING, _WORTH_READING))
                    return turned
        except MediaError:
            raise
        except Exception as error:  # decoders of damaged files raise nearly anything; none may stop a run
            told = {
                "UnidentifiedImageError": f"is no picture ({', '.join(FORMATS)})",
                "DecompressionBombError": "is too large (more pixels than Pillow opens)",
            }
            kind = type(error).__name__
            raise MediaError(told.get(kind, f"is damaged ({kind})")) from None

    def _refuse(self, opened: Any) -> None:
        width, height = opened.size
        if width < 1 or height < 1:
            raise MediaError("has no pixels")
        if max(width, height) > _LONGEST_SIDE or width * height > self.max_pixels:
            raise MediaError(f"is too large ({width:,} x {height:,} pixels)")
        if getattr(opened, "is_animated", False):
            raise MediaError("moves; give one still picture")


def _opaque(picture: Any) -> "Image":
    """RGB; what shines through stands on white."""
    from PIL import Image

    if picture.mode in {"RGBA", "LA", "PA"} or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, clear).convert("RGB")
    found: Image.Image = picture.convert("RGB")
    return found
