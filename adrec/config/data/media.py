"""How pictures and sounds of ads become vectors: the `image` and `audio` sections of the preprocess config."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from adrec.config.base import Config, ConfigPath, EncoderReference

ModalityName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,60}$")]


class MediaSettings(Config):
    """What pictures and sounds have in common."""

    reference: EncoderReference
    """A Hugging Face encoder: local folder, `package:module/path` or hub name."""
    column: str
    name: ModalityName
    root: ConfigPath | None = None
    """Folder that names of files start from; None: the folder of the file of ads."""
    stores: list[Annotated[str, Field(pattern=r"^[a-z0-9+.-]+://.+")]] = []
    """Beginnings of addresses that may be read, such as `s3://bucket/creatives/`, by fsspec and what it has installed."""
    train: Literal["frozen"] = "frozen"
    """The encoder stays as it is."""
    interests: bool = True
    """With an encoder that reads texts too (CLIP, SigLIP, CLAP): compare with what users say of themselves."""
    max_bytes: Annotated[int, Field(ge=1_000, le=1_000_000_000)] = 20_000_000
    """Larger files are set aside."""
    cache: ConfigPath | None = None
    """Folder of cached vectors; None is the user's cache folder."""

    @field_validator("name")
    @classmethod
    def _is_no_column(cls, name: str) -> str:
        if name in {"image", "audio", "title", "text", "segmented"}:
            raise ValueError("is a column of the ads; name the vector otherwise")
        return name

    @property
    def interests_name(self) -> str:
        """The modality of users that is compared with the pictures or sounds."""
        return f"{self.name}_interests"


class ImageSettings(MediaSettings):
    """Encode each ad's picture once, by its content; the vector is a modality of the ad (docs/how-to/vectors.md)."""

    reference: EncoderReference
    """A Hugging Face vision encoder (CLIP, SigLIP, DINOv2, ViT, ...): local folder, `package:module/path` or hub name."""
    column: str = "image"
    """Column of the ads with bytes, names of files, addresses, or `data:` addresses."""
    name: ModalityName = "picture"
    """What the modality is called."""
    max_pixels: Annotated[int, Field(ge=1_000, le=178_000_000)] = 50_000_000
    """Pictures with more pixels are set aside before one is unpacked."""


class AudioSettings(MediaSettings):
    """Encode each ad's sound once, by its content; the vector is a modality of the ad (docs/how-to/vectors.md)."""

    reference: EncoderReference
    """A Hugging Face audio encoder (wav2vec2, HuBERT, Whisper, CLAP, ...): local folder, `package:module/path` or hub name."""
    column: str = "audio"
    """Column of the ads with bytes, names of files, addresses, or `data:` addresses."""
    name: ModalityName = "sound"
    """What the modality is called."""
    seconds: Annotated[float, Field(ge=0.1, le=600)] = 30.0
    """How much of each sound is read, from its beginning."""
