"""Sounds of strangers. Nothing here trusts a byte of them.

libsndfile opens plain recordings (WAV, FLAC, Ogg, MP3, AIFF); what it does not open is set aside with a reason. No more than
the first `seconds` are unpacked, whatever the header claims. Costs one sound in memory.
"""

import io
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adrec.data.media.files import MediaError, MediaFiles

FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF")
_MOST_CHANNELS = 8
_RATES = (1_000, 384_000)
_SHORTEST_SECONDS = 0.02


class _Bytes(io.BytesIO):
    """Where damaged headers seek before the beginning, they stand at the beginning: libsndfile's callbacks may not raise."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: len(self.getbuffer())}[whence]
        return super().seek(max(0, base + offset))


class Sound(NamedTuple):
    """A recording: (T,) float32 samples of one channel, from -1 to 1, and how many there are a second."""

    samples: NDArray[np.float32]
    rate: int


@dataclass(frozen=True)
class Sounds(MediaFiles):
    """Where references to sounds lead, and how much of a sound is read."""

    seconds: float = 30.0

    SETTING: ClassVar[str] = "audio"
    THING: ClassVar[str] = "sound"

    def decode(self, data: bytes) -> Sound:
        """The beginning of a recording, its channels averaged. Raises MediaError."""
        import soundfile

        try:
            with soundfile.SoundFile(_Bytes(data)) as opened:
                if opened.format not in FORMATS:
                    raise MediaError(f"is {opened.format}; give one of {', '.join(FORMATS)}")
                if not (_RATES[0] <= opened.samplerate <= _RATES[1]):
                    raise MediaError(f"has {opened.samplerate:,} samples a second; {_RATES[0]:,} to {_RATES[1]:,} are read")
                if opened.channels > _MOST_CHANNELS:
                    raise MediaError(f"has {opened.channels} channels; at most {_MOST_CHANNELS} are read")
                cells = opened.read(int(self.seconds * opened.samplerate), dtype="float32", always_2d=True)
                rate = int(opened.samplerate)
        except MediaError:
            raise
        except Exception as error:  # decoders of damaged files raise nearly anything; none may stop a run
            kind = type(error).__name__
            raise MediaError(
                f"is no sound ({', '.join(FORMATS)})" if kind == "LibsndfileError" else f"is damaged ({kind})"
            ) from None
        samples = np.ascontiguousarray(cells.mean(axis=1, dtype=np.float32))
        if len(samples) < _SHORTEST_SECONDS * rate:
            raise MediaError("has less than a fiftieth of a second")
        if not np.isfinite(samples).all():
            raise MediaError("holds values that are no numbers")
        return Sound(np.clip(samples, -1, 1), rate)
