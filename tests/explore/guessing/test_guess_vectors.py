"""`init` takes columns of vectors for what they are, in every format, and what follows runs."""

import numpy as np
import pytest
import vector_worlds
import yaml

from adrec.config.base import load_config
from adrec.config.data.init import InitConfig
from adrec.config.data.preprocess import PreprocessConfig
from adrec.stages.data import init, preprocess
from adrec.terminal import Terminal

QUIET = Terminal(quiet=True)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_vectors_of_ads_and_users_are_declared_and_read(tmp_path, kind):
    vector_worlds.make(tmp_path / "raw", ads=30, users=20, requests=300, missing=0.1, kind=kind)
    files = [str(tmp_path / "raw" / name) for name in (f"ads.{kind}", f"users.{kind}", "impressions.parquet")]
    init.run(InitConfig(data=files, output=tmp_path / "configs", runs=tmp_path / "runs"), QUIET)
    written = next((tmp_path / "configs").rglob("preprocess.yaml"))
    features = yaml.safe_load(written.read_text())["features"]
    assert features["ads"]["vectors"] == ["photo", "noise"] and features["users"]["vectors"] == ["taste"]
    result = preprocess.run(load_config(written, PreprocessConfig), QUIET)
    found = np.load(result.output / "vectors" / "ads" / "photo.npy")
    assert found.shape == (30, 8) and 0 < np.isnan(found).any(axis=1).sum() < 30
