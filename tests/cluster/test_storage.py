"""A cluster over object storage: each node has a mirror of its own; parts are published, then their manifest."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from worlds import make_bundle, make_world

sys.path.append(str(Path(__file__).parents[1] / "stages"))
from test_object_storage import get, names, server, store  # noqa: E402, F401

from adrec.cluster import pool as pools
from adrec.cluster.files import inventory
from adrec.cluster.session import session
from adrec.config.base import load_config
from adrec.config.cluster import ClusterConfig
from adrec.config.inference.score import ScoreConfig
from adrec.stages.inference import score
from adrec.stages.storage import run_guarded
from adrec.terminal import Terminal

pytestmark = pytest.mark.slow
QUIET = Terminal(quiet=True)


def test_from_bucket_to_bucket(store, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("ray")
    bucket, system = store
    make_world(tmp_path / "prepared", users=40, requests=300)
    make_bundle(tmp_path)
    for name in ("prepared", "bundle"):
        fs.copy_files(
            str(tmp_path / name), f"{bucket}/{name}", source_filesystem=fs.LocalFileSystem(), destination_filesystem=system
        )
    common = ["split=train", "chunk_rows=64", "shard_rows=192", "batch_rows=16", "parts=true"]
    own = [f"bundle={tmp_path}/bundle", f"prepared={tmp_path}/prepared", f"output={tmp_path}/scores"]
    score.run(load_config(None, ScoreConfig, [*common, *own]), QUIET)

    def of_another_machine(path):
        """A node that has none of these files: its mirror is another folder."""
        made = inventory(path)
        return made._replace(files=tuple((name, size, changed + 1) for name, size, changed in made.files))

    monkeypatch.setattr(pools, "inventory", of_another_machine)
    mirror = tmp_path / "mirror"
    monkeypatch.setenv("ADREC_REMOTE_CACHE", str(tmp_path / "node"))  # what the workers inherit
    with session(ClusterConfig(workers=1)):
        monkeypatch.setenv("ADREC_REMOTE_CACHE", str(mirror))
        remote = [f"{name}=s3://{bucket}/{name}" for name in ("bundle", "prepared")]
        settings = [*common, *remote, f"output=s3://{bucket}/scores", "cluster.workers=1"]
        run_guarded(score.run, load_config(None, ScoreConfig, settings), QUIET)
    assert (tmp_path / "node" / "s3" / bucket / "bundle" / "bundle.json").exists()
    manifest = json.loads(get(system, f"{bucket}/scores/manifest.json"))
    assert names(system, f"{bucket}/scores") == sorted(["manifest.json", *manifest["files"]])
    for name in manifest["files"]:
        assert get(system, f"{bucket}/scores/{name}") == (tmp_path / "scores" / name).read_bytes()
        assert pq.read_table(pa.BufferReader(get(system, f"{bucket}/scores/{name}"))).num_rows == manifest["scored"][name]
