"""The sample with pictures: what ads look like decides clicks, no column tells it, and the encoder beside it sees it."""

import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from adrec.data.media.pictures import Pictures
from adrec.models.media.media_vectors import MediaVectors
from adrec.models.media.vision_encoder import load_vision_encoder
from adrec.sample import generate_sample
from adrec.sample.generate import make_world


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample_pictures")
    return folder, generate_sample(folder, impressions=3000, seed=5, pictures=0.5)


def _digest(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_equal_arguments_give_equal_pictures(drawn, tmp_path):
    folder, summary = drawn
    assert generate_sample(tmp_path / "again", impressions=3000, seed=5, pictures=0.5) == summary
    assert _digest(tmp_path / "again") == _digest(folder)
    assert _digest(tmp_path / "again") != _digest(_other(tmp_path))


def _other(tmp_path):
    generate_sample(tmp_path / "other", impressions=3000, seed=6, pictures=0.5)
    return tmp_path / "other"


def test_half_of_the_ads_have_one_and_looks_count(drawn, tmp_path):
    folder, summary = drawn
    images = pq.read_table(folder / "ads.parquet")["image"]
    assert abs(images.null_count / len(images) - 0.5) < 0.1
    assert all((folder / name).is_file() for name in images.drop_null().to_pylist())
    plain = generate_sample(tmp_path / "plain", impressions=3000, seed=5)
    assert "image" not in pq.read_schema(tmp_path / "plain" / "ads.parquet").names
    assert summary.oracle_auc > plain.oracle_auc + 0.02  # there is more to know
    looks, without = make_world(3000, 5, looks=True).ads, make_world(3000, 5).ads
    assert looks.table == without.table and without.look is None


def test_the_encoder_sees_what_no_word_tells(drawn):
    folder, _ = drawn
    ads = pq.read_table(folder / "ads.parquet")
    read = MediaVectors(load_vision_encoder(str(folder / "picture_encoder")), Pictures(folder), keep=False)
    vectors = read(ads["image"].combine_chunks())
    assert not read.set_aside
    known = np.isfinite(vectors).all(axis=1)
    hue = 2 * np.pi * make_world(3000, 5, looks=True).ads.look[known]
    wanted = np.stack([np.cos(hue), np.sin(hue)], axis=1)
    inputs = np.hstack([vectors[known], np.ones((int(known.sum()), 1))])
    half = len(inputs) // 2
    weights = np.linalg.solve(inputs[:half].T @ inputs[:half] + 0.1 * np.eye(inputs.shape[1]), inputs[:half].T @ wanted[:half])
    left = ((inputs[half:] @ weights - wanted[half:]) ** 2).mean() / wanted[half:].var()
    assert left < 0.15
