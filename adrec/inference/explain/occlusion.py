"""Where in a picture the score comes from: grey patches laid over it one by one, and what each takes from the logit.

Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2, on the logit of the whole bundle.
All patched pictures of an ad go through the encoder in one call. Patches overlap nothing and cover the picture; what several
show together (a colour all over it) is in none of them alone, so they need not add up to the picture's part.
"""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adrec.data.arrays import combined
from adrec.data.media.files import MediaError
from adrec.inference.explain.variants import Variants
from adrec.models.media.media_reader import ImageSpec, MediaReader

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = (128, 128, 128)
SHOWN = 320
"""Longest side in pixels of a picture on a page."""


@dataclass(frozen=True)
class Occlusion:
    """One picture of an ad."""

    modality: str
    width: int
    height: int
    """of the picture as it was read, in pixels"""
    patches: list[list[float]]
    """rows of the grid from the top, each from the left: the logit less what it is with that patch grey; above 0 speaks for"""
    shown: str = field(repr=False)
    """a small copy as a `data:` address"""


@dataclass
class Occluder:
    """The pictures of a table of ads, and the encoder that a bundle reads them by."""

    reader: MediaReader
    ads: pa.Table
    root: Path | None
    """folder that names of files start from"""
    side: int
    """patches along each side"""
    unread: dict[str, str] = field(default_factory=dict)
    """ad → why its picture could not be read"""

    def of(self, variants: Variants) -> Occlusion | None:
        """Of the candidate of a row; None where it has no picture here, or one that cannot be read."""
        spec, ad_id = self.reader.spec, variants.catalogs.ads.ids[variants.ad].as_py()
        if spec.column not in self.ads.column_names:
            return None
        place = pc.index(combined(self.ads["ad_id"]).cast(pa.string()), ad_id).as_py()
        cell = self.ads[spec.column][place].as_py() if place >= 0 else None
        if not cell:
            return None
        files = spec.files(self.root)
        try:
            picture = files.decode(files.read(cell))
        except MediaError as error:
            self.unread[ad_id] = str(error)
            return None
        return occlusion(variants, self.reader, picture, self.side)


def occlusion(variants: Variants, reader: MediaReader, picture: "Image", side: int) -> Occlusion:
    """`side` x `side` patches, fewer where the picture has fewer pixels."""
    width, height = picture.size
    across, down = (np.linspace(0, pixels, min(side, pixels) + 1).round().astype(int) for pixels in (width, height))
    boxes = [
        (int(left), int(top), int(right), int(bottom)) for top, bottom in pairwise(down) for left, right in pairwise(across)
    ]
    vectors = reader.encoder.encode([picture, *(_patched(picture, box) for box in boxes)])
    logits = variants.scores_with(reader.spec.name, vectors).logit.astype(np.float64)
    changes = (logits[0] - logits[1:]).reshape(len(down) - 1, len(across) - 1)
    return Occlusion(reader.spec.name, width, height, changes.tolist(), _small(picture))


def picture_reader(media: Iterable[MediaReader]) -> MediaReader | None:
    """The one of pictures, where a bundle has it."""
    return next((reader for reader in media if isinstance(reader.spec, ImageSpec)), None)


def _patched(picture: "Image", box: tuple[int, int, int, int]) -> "Image":
    changed = picture.copy()
    changed.paste(GREY, box)
    return changed


def _small(picture: "Image") -> str:
    copy, target = picture.copy(), io.BytesIO()
    copy.thumbnail((SHOWN, SHOWN))
    copy.save(target, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()
