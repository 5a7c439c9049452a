"""The sample's sounds: what an ad sounds like, which no word tells, and an encoder that hears it.

A jingle has a key, its pitch, under a little noise. How much people like a key depends on their region (`clicks.attraction`).
WAV files of a quarter of a second, some 8 KB each, each drawn from its own seed.
"""

import json
import wave
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adrec.sample.world import Floats

RATE, SECONDS = 16_000, 0.25
LOWEST, OCTAVES = 220.0, 3.0
FOLDER, ENCODER = "sounds", "sound_encoder"
_SEED = 9
_MELS, _HOP = 12, 160  # few, so that neighbouring keys sound alike: finer ears know no more and need more rows to learn it


def draw_keys(count: int, generator: np.random.Generator) -> Floats:
    """(A,) the key of each ad's jingle, in [0, 1)."""
    return np.asarray(generator.random(count), np.float64)


def write_sounds(folder: Path, ids: pa.Array, keys: Floats, share: float, seed: int) -> pa.Array:
    """Play the jingles of that share of the ads below `folder`; the column that names them, null for the others."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    played = np.random.default_rng([seed, _SEED]).random(len(keys)) < share
    names: list[str | None] = []
    for number, (ad_id, key) in enumerate(zip(ids.to_pylist(), keys, strict=True)):
        if not played[number]:
            names.append(None)
            continue
        name = f"{FOLDER}/{ad_id}.wav"
        names.append(name)
        _save(_samples(float(key), np.random.default_rng([seed, _SEED, number])), folder / name)
    return pa.array(names, pa.string())


def write_encoder(folder: Path) -> None:
    """A small Whisper with random weights, always the same: its vectors tell keys apart untrained."""
    import torch
    from safetensors.torch import save_file
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=64, num_mel_bins=_MELS, max_source_positions=RATE // _HOP // 2,
        max_target_positions=8, vocab_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        init_std=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = WhisperModel(config)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": _MELS, "sampling_rate": RATE, "hop_length": _HOP,
        "chunk_length": 1, "n_fft": 400, "padding_value": 0.0, "return_attention_mask": False,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _samples(key: float, generator: np.random.Generator) -> NDArray[np.int16]:
    """A tone of one pitch with a softer octave, louder here and softer there, under a little noise."""
    moment = np.arange(int(RATE * SECONDS)) / RATE
    pitch = LOWEST * 2 ** (OCTAVES * key)
    tone = sum(loud * np.sin(2 * np.pi * (times * pitch * moment + generator.random())) for loud, times in ((0.4, 1), (0.1, 2)))
    swell = 0.6 + 0.4 * np.sin(np.pi * (moment / SECONDS * generator.uniform(0.5, 2) + generator.random()))
    noisy = tone * swell * generator.uniform(0.5, 1) + generator.normal(0, 0.01, len(moment))
    return np.asarray(np.clip(noisy, -1, 1) * 32_767, np.int16)


def _save(samples: NDArray[np.int16], path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.astype("<i2").tobytes())
