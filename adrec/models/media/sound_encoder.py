"""Sounds to vectors by a Hugging Face audio encoder (wav2vec2, HuBERT, Whisper, CLAP, ...) of a folder, a package or the hub.

Sounds are brought to the rate that the encoder reads by soxr, and go through its own feature extractor, each by itself: what is
filled up to a neighbour's length would be heard. A vector is the encoder's own pooled one, else the mean over the moments that
are sound and no filling.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from adrec.data.media.sounds import Sound
from adrec.errors import DataError, ResourceError, install_hint
from adrec.models.media.media_encoder import MediaEncoder, load_parts, pooled


class SoundEncoder(MediaEncoder):
    """Encodes recordings of one channel."""

    THING: ClassVar[str] = "sound"
    READS_AS: ClassVar[str] = "sound 1"
    AT_ONCE: ClassVar[int] = 1

    def blank(self) -> Sound:
        """A second of silence."""
        return Sound(np.zeros(self.rate, np.float32), self.rate)

    @property
    def rate(self) -> int:
        """Samples a second that it reads."""
        return int(self.processor.sampling_rate)

    def vectors(self, items: Sequence[Sound]) -> Tensor:
        """(1, D) of one sound."""
        (sound,) = items
        # CLAP's processor draws a piece of a sound that is longer than it reads: the beginning is the same every time.
        samples = resampled(sound, self.rate)[: getattr(self.processor, "nb_max_samples", None)]
        inputs = self.processor(samples, sampling_rate=self.rate, return_tensors="pt")
        inputs = {name: value.to(self.device) for name, value in inputs.items() if isinstance(value, Tensor)}
        backbone = cast(Any, self.backbone)
        if hasattr(backbone, "get_audio_features"):
            return pooled(backbone.get_audio_features(**inputs))
        if getattr(backbone.config, "is_encoder_decoder", False):
            states: Tensor = backbone.get_encoder()(inputs["input_features"]).last_hidden_state
            return states[:, : self._moments(samples, states.shape[1])].mean(1)
        output = backbone(**{backbone.main_input_name: inputs[backbone.main_input_name]})
        if getattr(output, "pooler_output", None) is not None:
            return pooled(output)
        mean: Tensor = output.last_hidden_state.mean(1)
        return mean

    def _moments(self, samples: NDArray[np.float32], moments: int) -> int:
        """How many of an encoder's `moments` are sound, where its processor fills up to a fixed length."""
        length = int(getattr(self.processor, "n_samples", 0)) or len(samples)
        return max(1, min(moments, -(-len(samples) * moments // length)))


def resampled(sound: Sound, rate: int) -> NDArray[np.float32]:
    """(T',) the samples of a sound at another rate."""
    if sound.rate == rate:
        return sound.samples
    import soxr

    return np.asarray(soxr.resample(sound.samples, sound.rate, rate), np.float32)


def load_sound_encoder(reference: str, *, cache: Path | None = None, keep: bool = False) -> SoundEncoder:
    """The encoder of a folder, `package:module/path` or hub name; `cache` and `keep` as in `measure`. Raises DataError,
    ResourceError in one line."""
    for package in ("soundfile", "soxr"):
        if find_spec(package) is None:
            raise ResourceError(f"Sounds need {package}, which is not installed. Run: {install_hint('sound')}")
    backbone, processor, tokenizer = load_parts(reference, "AutoFeatureExtractor", "sounds")
    if not _reads_sounds(backbone):
        raise DataError(f"{reference}: is no encoder of sounds. Name one such as wav2vec2, HuBERT, Whisper or CLAP.")
    encoder = SoundEncoder(backbone, processor, tokenizer)
    encoder.measure(reference, cache=cache, keep=keep)
    return encoder


def _reads_sounds(backbone: nn.Module) -> bool:
    return getattr(backbone, "main_input_name", "") in {"input_values", "input_features"} or hasattr(
        backbone, "get_audio_features"
    )
