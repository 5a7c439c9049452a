"""Pictures and sounds of ads, and what users say, as columns of vectors of their tables: in preprocess and where a bundle is
applied."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from adrec.data.features.vectors import Modality
from adrec.data.media.files import MediaFiles
from adrec.data.media.pictures import Pictures
from adrec.data.media.sounds import Sounds
from adrec.data.vectors import Vectors, as_arrow
from adrec.models.media.media_encoder import MediaEncoder
from adrec.models.media.media_vectors import MediaVectors, text_vectors
from adrec.models.media.sound_encoder import load_sound_encoder
from adrec.models.media.vision_encoder import load_vision_encoder


@dataclass(frozen=True)
class MediaSpec(ABC):
    """Which column holds pictures or sounds, what their vectors are called, and what is read."""

    column: str
    name: str
    interests: str | None
    """modality of users, their texts in the space of the pictures; None where the encoder reads no texts"""
    stores: tuple[str, ...]
    max_bytes: int

    FILES: ClassVar[type[MediaFiles]]
    STORED: ClassVar[str]
    """what a manifest and a bundle's schema call it"""
    FOLDER: ClassVar[str]
    """of a bundle: the encoder"""
    LOAD: ClassVar[Callable[..., MediaEncoder]]

    @abstractmethod
    def files(self, root: Path | None, *, beneath: bool = False) -> MediaFiles:
        """Where references lead."""


@dataclass(frozen=True)
class ImageSpec(MediaSpec):
    """Of pictures."""

    max_pixels: int

    FILES: ClassVar[type[MediaFiles]] = Pictures
    STORED: ClassVar[str] = "images"
    FOLDER: ClassVar[str] = "image_encoder"
    LOAD: ClassVar[Callable[..., MediaEncoder]] = staticmethod(load_vision_encoder)

    def files(self, root: Path | None, *, beneath: bool = False) -> Pictures:
        """Where references lead."""
        return Pictures(root, beneath, self.stores, self.max_bytes, self.max_pixels)


@dataclass(frozen=True)
class AudioSpec(MediaSpec):
    """Of sounds."""

    seconds: float

    FILES: ClassVar[type[MediaFiles]] = Sounds
    STORED: ClassVar[str] = "sounds"
    FOLDER: ClassVar[str] = "audio_encoder"
    LOAD: ClassVar[Callable[..., MediaEncoder]] = staticmethod(load_sound_encoder)

    def files(self, root: Path | None, *, beneath: bool = False) -> Sounds:
        """Where references lead."""
        return Sounds(root, beneath, self.stores, self.max_bytes, self.seconds)


MEDIA: Mapping[str, type[MediaSpec]] = {spec.FILES.SETTING: spec for spec in (ImageSpec, AudioSpec)}
"""section of the preprocess config → what it makes"""


@dataclass(frozen=True)
class MediaReader:
    """An encoder, and which columns it reads and makes."""

    spec: MediaSpec
    encoder: MediaEncoder = field(repr=False)

    def with_vectors(self, ads: pa.Table, *, cache: Path | None = None, keep: bool = True) -> pa.Table:
        """Ads with vectors of their pictures or sounds, where they have these alone. Names of files start from the working
        folder."""
        column = self.spec.column
        if self.spec.name not in ads.column_names and column in ads.column_names:
            read = MediaVectors(self.encoder, self.spec.files(Path.cwd()), cache, keep)
            ads = ads.append_column(self.spec.name, as_arrow(read(ads[column])))
        is_bytes = column in ads.column_names and not pa.types.is_string(ads.schema.field(column).type)
        return ads.drop_columns([column]) if is_bytes else ads

    def with_words(
        self, users: Mapping[str, Modality], texts: pa.ChunkedArray | pa.Array, *, cache: Path | None = None, keep: bool = True
    ) -> dict[str, Modality]:
        """The users' modalities, the one that is compared with the ads' made where a user has a text and no vector of it."""
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
    def from_json(cls, spec: type[MediaSpec], stored: Mapping[str, Any], encoder: MediaEncoder) -> "MediaReader":
        """What `to_json` gave. Raises TypeError for anything else."""
        known = {item.name: stored[item.name] for item in fields(spec) if item.name in stored}
        return cls(spec(**{**known, "stores": tuple(known.get("stores", ()))}), encoder)
