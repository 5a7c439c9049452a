"""Pictures of ads, and what users say, as columns of vectors of their tables: in preprocess and where a bundle is applied."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.data.features.vectors import Modality
from adrec.data.pictures import Pictures
from adrec.data.vectors import Vectors, as_arrow
from adrec.models.vision.picture_vectors import PictureVectors, text_vectors
from adrec.models.vision.vision_encoder import VisionEncoder

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ImageSpec:
    """Which column holds pictures, what their vectors are called, and what is read."""

    column: str
    name: str
    interests: str | None
    """modality of users, their texts in the space of the pictures; None where the encoder reads no texts"""
    stores: tuple[str, ...]
    max_bytes: int
    max_pixels: int

    def pictures(self, root: Path | None, *, beneath: bool = False) -> Pictures:
        """Where references lead."""
        return Pictures(root, beneath, self.stores, self.max_bytes, self.max_pixels)


@dataclass(frozen=True)
class ImageReader:
    """An encoder, and which columns it reads and makes."""

    spec: ImageSpec
    encoder: VisionEncoder = field(repr=False)

    def with_pictures(self, ads: pa.Table, *, cache: Path | None = None, keep: bool = True) -> pa.Table:
        """Ads with vectors of their pictures, where they have pictures alone. Names of files start from the working folder."""
        column = self.spec.column
        if self.spec.name not in ads.column_names and column in ads.column_names:
            read = PictureVectors(self.encoder, self.spec.pictures(Path.cwd()), cache, keep)
            ads = ads.append_column(self.spec.name, as_arrow(read(ads[column])))
        is_bytes = column in ads.column_names and not pa.types.is_string(ads.schema.field(column).type)
        return ads.drop_columns([column]) if is_bytes else ads

    def with_words(
        self, users: Mapping[str, Modality], texts: pa.ChunkedArray | pa.Array, *, cache: Path | None = None, keep: bool = True
    ) -> dict[str, Modality]:
        """The users' modalities, the one that is compared with pictures made where a user has a text and no vector of it."""
        held = users.get(self.spec.interests or "")
        if held is None:
            return dict(users)
        rows = np.flatnonzero(held.vectors.index < 0)
        made = text_vectors(self.encoder, texts.take(pa.array(rows)), cache=cache, keep=keep)
        own = Vectors(made, made[:0], np.where(np.isnan(made).any(axis=1), -1, np.arange(len(rows))))
        filled = held.vectors.with_rows(rows, own, len(held.vectors))
        return {**users, held.fitted.name: Modality(filled, held.fitted)}

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the encoder."""
        return asdict(self.spec)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], encoder: VisionEncoder) -> "ImageReader":
        """What `to_json` gave. Raises TypeError for anything else."""
        known = {item.name: stored[item.name] for item in fields(ImageSpec) if item.name in stored}
        return cls(ImageSpec(**{**known, "stores": tuple(known.get("stores", ()))}), encoder)
