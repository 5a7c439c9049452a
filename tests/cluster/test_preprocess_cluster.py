"""`preprocess` of the sample and of MIND on several nodes: the folder of one machine, to the bit, as `inspect` says too."""

from pathlib import Path

import pytest
from cluster_chaos import QUIET, bytes_of

from adrec.config.base import load_config
from adrec.config.data.inspect import InspectConfig
from adrec.config.data.preprocess import PreprocessConfig
from adrec.stages.data import inspect, preprocess

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
beside = pytest.mark.skipif(not (ROOT / "../shared/data/mind5k").is_dir(), reason="no shared data beside the checkout")


@pytest.mark.parametrize("name", ["sample", pytest.param("mind", marks=beside)])
def test_the_folder_of_one_machine(cluster, tmp_path, name):
    for folder, shared in (("single", []), ("shared", [f"cluster.address={cluster.address}", "cluster.workers=2"])):
        settings = [f"output={tmp_path / folder}", "append=never", *shared]
        preprocess.run(load_config(ROOT / "configs" / name / "preprocess.yaml", PreprocessConfig, settings), QUIET)
    alone, others = (bytes_of(tmp_path / folder) for folder in ("single", "shared"))
    assert alone.keys() == others.keys()
    assert [file for file in alone if alone[file] != others[file]] == []
    assert inspect.run(InspectConfig(path=tmp_path / "single", against=tmp_path / "shared"), QUIET).identical
