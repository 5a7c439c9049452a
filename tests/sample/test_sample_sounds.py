"""The sample with sounds: what ads sound like decides clicks, no column tells it, and the encoder beside it hears it."""

import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from adrec.data.media.sounds import Sounds
from adrec.models.media.media_vectors import MediaVectors
from adrec.models.media.sound_encoder import load_sound_encoder
from adrec.sample import generate_sample
from adrec.sample.generate import make_world


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample_sounds")
    return folder, generate_sample(folder, impressions=3000, seed=5, sounds=0.5)


def _digest(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_equal_arguments_give_equal_sounds_and_they_count(played, tmp_path):
    folder, summary = played
    assert generate_sample(tmp_path / "again", impressions=3000, seed=5, sounds=0.5) == summary
    assert _digest(tmp_path / "again") == _digest(folder)
    names = pq.read_table(folder / "ads.parquet")["audio"]
    assert abs(names.null_count / len(names) - 0.5) < 0.1
    assert all((folder / name).is_file() for name in names.drop_null().to_pylist())
    plain = generate_sample(tmp_path / "plain", impressions=3000, seed=5)
    assert "audio" not in pq.read_schema(tmp_path / "plain" / "ads.parquet").names
    assert summary.oracle_auc > plain.oracle_auc + 0.02  # there is more to know
    keys, without = make_world(3000, 5, keys=True).ads, make_world(3000, 5).ads
    assert keys.table == without.table and without.key is None


def test_the_encoder_hears_what_no_word_tells(played):
    folder, _ = played
    ads = pq.read_table(folder / "ads.parquet")
    read = MediaVectors(load_sound_encoder(str(folder / "sound_encoder")), Sounds(folder), keep=False)
    vectors = read(ads["audio"].combine_chunks())
    assert not read.set_aside
    known = np.isfinite(vectors).all(axis=1)
    key = 2 * np.pi * make_world(3000, 5, keys=True).ads.key[known]
    wanted = np.stack([np.cos(key), np.sin(key)], axis=1)
    vectors = (vectors[known] - vectors[known].mean(0)) / vectors[known].std(0)
    inputs = np.hstack([vectors, np.ones((int(known.sum()), 1))])
    half = len(inputs) // 2
    weights = np.linalg.solve(inputs[:half].T @ inputs[:half] + 0.1 * np.eye(inputs.shape[1]), inputs[:half].T @ wanted[:half])
    left = ((inputs[half:] @ weights - wanted[half:]) ** 2).mean() / wanted[half:].var()
    assert left < 0.3  # 70 ads to learn from
