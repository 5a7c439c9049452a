"""Audio encoders of every kind give one vector a sound, the same after saving, whatever stands beside it."""

import numpy as np
import pyarrow as pa
import pytest
import sounds
import vision

from adrec.data.media.sounds import Sound, Sounds
from adrec.errors import DataError, ResourceError
from adrec.models.media.media_vectors import MediaVectors
from adrec.models.media.sound_encoder import load_sound_encoder, resampled


@pytest.mark.parametrize("kind", ["small_whisper", "small_wav2vec2", "small_ast", "small_clap"])
def test_a_sound_is_a_vector_whatever_stands_beside_it(tmp_path, kind):
    encoder = load_sound_encoder(str(getattr(sounds, kind)(tmp_path / "encoder")))
    heard = [Sounds().decode(sounds.wav(*chord)) for chord in ([[1, 0, 0]], [[0, 0, 1]])]
    heard.append(Sounds().decode(sounds.wav([1, 0, 0], seconds=2.5, rate=22_050)))  # longer than some of them read
    all_three = encoder.encode(heard)
    assert all_three.shape == (3, encoder.dimension) and np.isfinite(all_three).all()
    assert np.allclose(encoder.encode(heard[1:])[0], all_three[1], atol=1e-6)
    assert np.array_equal(encoder.encode(heard[2:])[0], all_three[2])  # nothing is drawn
    assert np.abs(all_three[0] - all_three[1]).max() > 1e-2
    encoder.save(tmp_path / "saved")
    again = load_sound_encoder(str(tmp_path / "saved"))
    assert again.fingerprint == encoder.fingerprint and np.array_equal(again.encode(heard), all_three)


def test_whisper_and_wav2vec2_are_what_transformers_says(tmp_path):
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    sound = Sounds().decode(sounds.wav([0.2, 1, 0.4]))
    for kind, share in (("small_whisper", 0.3), ("small_wav2vec2", 1.0)):
        folder = getattr(sounds, kind)(tmp_path / kind)
        model, processor = AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
        rate = processor.sampling_rate
        inputs = processor(resampled(sound, rate), sampling_rate=rate, return_tensors="pt")
        with torch.inference_mode():
            states = (model.get_encoder() if kind == "small_whisper" else model)(
                inputs[model.main_input_name]
            ).last_hidden_state
        expected = states[0, : round(share * states.shape[1])].mean(0)
        assert np.allclose(load_sound_encoder(str(folder)).encode([sound])[0], expected.numpy(), atol=1e-5)


def test_words_and_sounds_of_clap_share_a_space(tmp_path):
    encoder = load_sound_encoder(str(sounds.small_clap(tmp_path / "clap")))
    assert encoder.reads_text
    assert encoder.texts(["a low sound", "song"]).shape == (2, encoder.dimension)


def test_another_rate_is_the_same_sound():
    low, high = (Sounds().decode(sounds.wav([0, 1, 0], rate=rate, seconds=1.0)) for rate in (8_000, 44_100))
    found = resampled(high, 8_000)
    assert len(found) == len(low.samples)
    for samples in (found, low.samples):
        assert np.abs(np.fft.rfft(samples)).argmax() == sounds.TONES[1]
    silence = Sound(np.zeros(100, np.float32), 8_000)
    assert resampled(silence, 8_000) is silence.samples


def test_each_sound_is_encoded_once_and_what_is_damaged_says_why(tmp_path, monkeypatch):
    encoder = load_sound_encoder(str(sounds.small_whisper(tmp_path / "encoder")))
    calls = []
    real = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda heard: calls.extend(heard) or real(heard))
    low, high = sounds.wav([1, 0, 0]), sounds.wav([0, 0, 1])
    read = MediaVectors(encoder, Sounds(), cache=tmp_path / "cache")
    found = read(pa.array([low, None, high, low, b"<svg/>"], pa.binary()))
    assert len(calls) == 2 and np.array_equal(found[0], found[3])
    assert np.isnan(found).any(axis=1).tolist() == [False, True, False, False, True]
    assert [item.row for item in read.set_aside] == [4]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("adrec.models.media.sound_encoder.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"Sounds need soundfile.*adrec\[sound\]|Sounds need soundfile.*\[sound\]"):
        load_sound_encoder(str(tmp_path))


def test_what_is_no_audio_encoder_is_told(tmp_path):
    with pytest.raises(DataError, match="no such encoder folder"):
        load_sound_encoder(str(tmp_path / "none"))
    with pytest.raises(DataError, match="is no encoder of sounds|feature extractor|processor"):
        load_sound_encoder(str(vision.small_vit(tmp_path / "vit")))
