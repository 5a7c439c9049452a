"""Pictures and sounds in preprocess: encoded as the table of ads is written, set aside where they cannot be read."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adrec.config.data.media import AudioSettings, ImageSettings, MediaSettings
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.training.features import VectorFeature
from adrec.data.prepared import Prepared
from adrec.errors import DataError
from adrec.models.media.media_reader import MEDIA, AudioSpec, ImageSpec, MediaReader, MediaSpec
from adrec.models.media.media_vectors import MediaVectors, text_vectors
from adrec.prepare.output.entities import Encoded
from adrec.prepare.sources import RawTables
from adrec.schema import ADS


def media_reader(settings: MediaSettings) -> MediaReader:
    """The encoder of a config and what it makes. Raises DataError, ResourceError."""
    spec = ImageSpec if isinstance(settings, ImageSettings) else AudioSpec
    encoder = spec.LOAD(settings.reference, cache=settings.cache, keep=True)
    interests = settings.interests_name if settings.interests and encoder.reads_text else None
    common = (settings.column, settings.name, interests, tuple(settings.stores), settings.max_bytes)
    if isinstance(settings, ImageSettings):
        return MediaReader(ImageSpec(*common, settings.max_pixels), encoder)
    assert isinstance(settings, AudioSettings)
    return MediaReader(AudioSpec(*common, settings.seconds), encoder)


@dataclass(frozen=True)
class Media:
    """A config's encoder of pictures or sounds."""

    settings: MediaSettings
    reader: MediaReader

    @classmethod
    def of(cls, settings: MediaSettings) -> "Media":
        """Opened."""
        return cls(settings, media_reader(settings))

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

    def reading(self, raw: RawTables) -> "MediaReading":
        """For the run over these tables."""
        return MediaReading(self.settings, self.reader, raw)


def open_media(prepared: Prepared) -> dict[str, MediaReader]:
    """The encoders that a prepared folder's pictures and sounds were read by, by section of its config. Raises DataError
    where one is another by now."""
    opened = {}
    for setting, spec in MEDIA.items():
        settings = getattr(prepared.config, setting) if prepared.config is not None else None
        if settings is None:
            continue
        opened[setting] = media_reader(settings)
        if opened[setting].encoder.fingerprint != prepared.manifest[spec.STORED]["encoder"]:
            raise DataError(
                f"{settings.reference}: is another encoder than the one that read the {spec.FILES.THING}s of {prepared.path}. "
                "Run 'adrec preprocess' again."
            )
    return opened


class MediaReading:
    """One run's pictures or sounds."""

    def __init__(self, settings: MediaSettings, reader: MediaReader, raw: RawTables) -> None:
        self.settings, self.reader = settings, reader
        files = (raw.ads or raw.impressions).files
        self.vectors = MediaVectors(reader.encoder, reader.spec.files(settings.root or files[0].parent), settings.cache)

    def columns(self) -> Mapping[str, list[Encoded]]:
        """What is made as the tables are written."""
        spec, width = self.reader.spec, self.reader.encoder.dimension
        made = {"ads": [Encoded(spec.name, width, spec.column, self.vectors)]}
        if spec.interests is not None:
            encode = partial(text_vectors, self.reader.encoder, cache=self.settings.cache)
            made["users"] = [Encoded(spec.interests, width, "text", encode)]
        return made

    def finish(self, folder: Path) -> list[str]:
        """Write what was set aside (`rejected_<things>.parquet`: ad_id, reference, reason); a line about it, if any was."""
        aside, things = self.vectors.set_aside, f"{self._spec.FILES.THING}s"
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
        pq.write_table(table, folder / f"rejected_{things}.parquet")
        first = aside[0]
        return [
            f"{len(aside):,} {things} of {self.vectors.rows:,} ads were set aside and count as missing, such as "
            f"{first.reference!r}, which {first.reason}. All are in rejected_{things}.parquet."
        ]

    def manifest(self) -> dict[str, Any]:
        """Encoder, counts and reasons, below what a manifest calls them."""
        reasons = Counter(item.reason for item in self.vectors.set_aside)
        encoder = self.reader.encoder
        return {
            self._spec.STORED: {
                "encoder": encoder.fingerprint, "width": encoder.dimension, "set_aside": dict(sorted(reasons.items())),
            }
        }  # fmt: skip

    @property
    def _spec(self) -> MediaSpec:
        return self.reader.spec
