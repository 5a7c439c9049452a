"""Bytes of strangers: nothing crashes, what is no plain recording is set aside with a reason, no more is read than wanted."""

import base64
import struct

import numpy as np
import pytest
import sounds

from adrec.data.media.files import MediaError
from adrec.data.media.sounds import FORMATS, Sounds


def _reason(data, files=Sounds()):
    with pytest.raises(MediaError) as told:
        files.decode(data)
    return str(told.value)


def test_plain_recordings_of_all_formats_are_read_alike():
    expected = Sounds().decode(sounds.wav([1, 0, 0], seconds=0.5)).samples
    for form in ("WAV", "WAVEX", "FLAC", "AIFF"):
        assert form in FORMATS
        found = Sounds().decode(sounds.wav([1, 0, 0], seconds=0.5, form=form))
        assert found.rate == sounds.RATE and np.allclose(found.samples, expected, atol=1e-3), form
    for form in ("OGG", "MP3"):  # which lose what is not heard
        found = Sounds().decode(sounds.wav([1, 0, 0], seconds=0.5, form=form, rate=16_000))
        heard = np.abs(np.fft.rfft(found.samples))
        tone = np.fft.rfftfreq(len(found.samples), 1 / found.rate)[heard.argmax()]
        assert tone == pytest.approx(sounds.TONES[0], abs=5), form


def test_channels_are_averaged_and_no_more_is_read_than_wanted():
    stereo = Sounds().decode(sounds.wav([0, 1, 0], channels=2))
    assert np.allclose(stereo.samples, Sounds().decode(sounds.wav([0, 1, 0])).samples, atol=1e-4)
    assert len(Sounds(seconds=0.1).decode(sounds.wav([0, 1, 0], seconds=2.0)).samples) == 0.1 * sounds.RATE
    claims = bytearray(sounds.wav([0, 1, 0], seconds=0.2))
    claims[4:8] = claims[40:44] = struct.pack("<I", 0xFFFFFFF0)  # a header that promises four gigabytes
    assert len(Sounds().decode(bytes(claims)).samples) <= 0.2 * sounds.RATE


def test_what_is_no_recording_is_set_aside():
    assert "is no sound" in _reason(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert "is no sound" in _reason(b"")
    assert "less than a fiftieth" in _reason(sounds.wav([1, 0, 0], seconds=0.005))
    assert "channels" in _reason(sounds.wav([1, 0, 0], channels=20))
    assert "is AU" in _reason(sounds.wav([1, 0, 0], form="AU"))
    assert "samples a second" in _reason(sounds.wav([1, 0, 0], rate=500))
    assert "more than 1,000 bytes" in str(pytest.raises(MediaError, Sounds(max_bytes=1_000).read, sounds.wav([1, 0, 0])).value)
    assert "audio.stores" in str(pytest.raises(MediaError, Sounds().read, "http://127.0.0.1/a.wav").value)


def test_damaged_bytes_never_stop_a_run():
    rng = np.random.default_rng(0)
    whole = [sounds.wav([1, 0, 1], form=form, rate=16_000) for form in ("WAV", "FLAC", "OGG", "MP3", "AIFF")]
    read = 0
    for number in range(500):
        data = bytearray(whole[number % len(whole)])
        for _ in range(int(rng.integers(1, 20))):
            data[int(rng.integers(0, min(len(data), 400)))] = int(rng.integers(0, 256))
        data = bytes(data[: int(rng.integers(1, len(data)))]) if number % 3 == 0 else bytes(data)
        try:
            found = Sounds(seconds=1.0).decode(data)
        except MediaError:
            continue
        assert np.isfinite(found.samples).all() and len(found.samples) <= found.rate
        read += 1
    assert 0 < read < 500


def test_an_address_brings_its_sound():
    whole = sounds.wav([1, 0, 0])
    files = Sounds()
    cell = "data:audio/wav;base64," + base64.b64encode(whole).decode()
    assert np.array_equal(files.decode(files.read(cell)).samples, files.decode(whole).samples)
