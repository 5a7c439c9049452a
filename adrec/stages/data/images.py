"""Pictures in preprocess: encoded as the table of ads is written, those that cannot be read set aside with their reason."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adrec.config.data.pictures import ImageSettings
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.features import VectorFeature
from adrec.data.prepared import Prepared
from adrec.errors import DataError
from adrec.models.vision.image_reader import ImageReader, ImageSpec
from adrec.models.vision.picture_vectors import PictureVectors, text_vectors
from adrec.models.vision.vision_encoder import load_vision_encoder
from adrec.prepare.output.entities import Encoded
from adrec.prepare.sources import RawTables
from adrec.schema import ADS

SET_ASIDE = "rejected_pictures.parquet"
"""Of the prepared folder: ad_id, reference and reason of each picture that could not be read."""


def image_reader(settings: ImageSettings) -> ImageReader:
    """The encoder of a config and what it makes. Raises DataError, ResourceError."""
    encoder = load_vision_encoder(settings.reference)
    spec = ImageSpec(
        column=settings.column,
        name=settings.name,
        interests=settings.interests_name if settings.interests and encoder.reads_text else None,
        stores=tuple(settings.stores),
        max_bytes=settings.max_bytes,
        max_pixels=settings.max_pixels,
    )
    return ImageReader(spec, encoder)


@dataclass(frozen=True)
class Images:
    """A config's encoder of pictures."""

    settings: ImageSettings
    reader: ImageReader

    @classmethod
    def of(cls, settings: ImageSettings) -> "Images":
        """Opened."""
        return cls(settings, image_reader(settings))

    def added_to(self, config: PreprocessConfig) -> PreprocessConfig:
        """The config with the modalities that the encoder makes among the features. Their space names the encoder."""
        features, spec, encoder = config.features, self.reader.spec, self.reader.encoder
        for table, name in (("ads", spec.name), ("users", spec.interests)):
            if name is None:
                continue
            own = getattr(features, table)
            said = next((item for item in own.vectors if item.column == name), VectorFeature(column=name))
            made = said.model_copy(update={"width": encoder.dimension, "space": f"{spec.name} {encoder.fingerprint[:16]}"})
            vectors = [*(item for item in own.vectors if item.column != name), made]
            features = features.model_copy(update={table: own.model_copy(update={"vectors": vectors})})
        return config.model_copy(update={"features": features})

    def reading(self, raw: RawTables) -> "ImageReading":
        """For the run over these tables."""
        return ImageReading(self.settings, self.reader, raw)


def open_images(prepared: Prepared) -> ImageReader | None:
    """The encoder that a prepared folder's pictures were read by. Raises DataError where it is another by now."""
    settings = prepared.config.image if prepared.config is not None else None
    if settings is None:
        return None
    images = image_reader(settings)
    if images.encoder.fingerprint != prepared.manifest["images"]["encoder"]:
        raise DataError(
            f"{settings.reference}: is another encoder than the one that read the pictures of {prepared.path}. "
            "Run 'adrec preprocess' again."
        )
    return images


class ImageReading:
    """One run's pictures."""

    def __init__(self, settings: ImageSettings, images: ImageReader, raw: RawTables) -> None:
        self.settings, self.images = settings, images
        files = (raw.ads or raw.impressions).files
        root = settings.root or files[0].parent
        self.vectors = PictureVectors(images.encoder, images.spec.pictures(root), settings.cache)

    def columns(self) -> Mapping[str, list[Encoded]]:
        """What is made as the tables are written."""
        spec, width = self.images.spec, self.images.encoder.dimension
        made = {"ads": [Encoded(spec.name, width, spec.column, self.vectors)]}
        if spec.interests is not None:
            encode = partial(text_vectors, self.images.encoder, cache=self.settings.cache)
            made["users"] = [Encoded(spec.interests, width, "text", encode)]
        return made

    def finish(self, folder: Path) -> list[str]:
        """Write what was set aside; a line about it, if anything was."""
        aside = self.vectors.set_aside
        if not aside:
            return []
        ids = pq.read_table(folder / ADS.file, columns=["ad_id"])["ad_id"]
        table = pa.table(
            {
                "ad_id": ids.take(pa.array([item.row for item in aside])),
                "reference": pa.array([item.reference for item in aside], pa.string()),
                "reason": pa.array([item.reason for item in aside], pa.string()),
            }
        )
        pq.write_table(table, folder / SET_ASIDE)
        first = aside[0]
        return [
            f"{len(aside):,} pictures of {self.vectors.rows:,} ads were set aside and count as missing, such as "
            f"{first.reference!r}, which {first.reason}. All are in {SET_ASIDE}."
        ]

    def manifest(self) -> dict[str, Any]:
        """Encoder, counts and reasons."""
        reasons = Counter(item.reason for item in self.vectors.set_aside)
        return {
            "encoder": self.images.encoder.fingerprint,
            "width": self.images.encoder.dimension,
            "set_aside": dict(sorted(reasons.items())),
        }
