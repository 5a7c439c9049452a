"""A cluster over object storage: each node has a mirror of its own; parts are published, then their manifest."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_store import faulty
from pyarrow import fs
from worlds import make_market

sys.path.append(str(Path(__file__).parents[1] / "stages"))
from test_object_storage import get, names, server, store  # noqa: E402, F401

from adrec.cluster import pool as pools
from adrec.cluster.files import inventory
from adrec.cluster.session import session
from adrec.config.base import load_config
from adrec.config.cluster import ClusterConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.data.remote import stores
from adrec.stages.inference import rank, score
from adrec.stages.storage import run_guarded
from adrec.terminal import Terminal

pytestmark = pytest.mark.slow
QUIET = Terminal(quiet=True)


@pytest.fixture
def in_a_bucket(store, tmp_path, monkeypatch):  # noqa: F811
    """A market in a bucket and beside it on the disk, and a node that sees nothing of this disk."""
    pytest.importorskip("ray")
    bucket, system = store
    make_market(tmp_path, requests=300)
    for name in ("prepared", "bundle"):
        fs.copy_files(
            str(tmp_path / name), f"{bucket}/{name}", source_filesystem=fs.LocalFileSystem(), destination_filesystem=system
        )

    def of_another_machine(path):
        """Its mirror is another folder."""
        made = inventory(path)
        return made._replace(files=tuple((name, size, changed + 1) for name, size, changed in made.files))

    monkeypatch.setattr(pools, "inventory", of_another_machine)
    return bucket, system


SCORE = ["split=train", "chunk_rows=64", "shard_rows=192", "batch_rows=16", "parts=true"]


@contextmanager
def node(tmp_path, monkeypatch):
    """A local Ray whose worker has a mirror of its own."""
    monkeypatch.setenv("ADREC_REMOTE_CACHE", str(tmp_path / "node"))  # what the workers inherit
    with session(ClusterConfig(workers=1)):
        monkeypatch.setenv("ADREC_REMOTE_CACHE", str(tmp_path / "mirror"))
        yield


def remote(bucket, output):
    return [*(f"{name}=s3://{bucket}/{name}" for name in ("bundle", "prepared")), f"output=s3://{bucket}/{output}"]


def check_scores(system, bucket, local):
    """The parts that its manifest names, and no others, are those that one machine wrote on its disk."""
    manifest = json.loads(get(system, f"{bucket}/scores/manifest.json"))
    assert names(system, f"{bucket}/scores") == sorted(["manifest.json", *manifest["files"]])
    for name in manifest["files"]:
        assert get(system, f"{bucket}/scores/{name}") == (local / name).read_bytes()
        assert pq.read_table(pa.BufferReader(get(system, f"{bucket}/scores/{name}"))).num_rows == manifest["scored"][name]


def test_from_bucket_to_bucket(in_a_bucket, tmp_path, monkeypatch):
    bucket, system = in_a_bucket
    score.run(load_config(None, ScoreConfig, [*SCORE, *own(tmp_path, "scores")]), QUIET)
    with node(tmp_path, monkeypatch):
        settings = [*SCORE, *remote(bucket, "scores"), "cluster.workers=1"]
        run_guarded(score.run, load_config(None, ScoreConfig, settings), QUIET)
    assert (tmp_path / "node" / "s3" / bucket / "bundle" / "bundle.json").exists()
    check_scores(system, bucket, tmp_path / "scores")


def own(folder, output):
    return [f"bundle={folder}/bundle", f"prepared={folder}/prepared", f"output={folder}/{output}"]


@pytest.mark.parametrize("seed", range(3))
def test_a_store_that_fails_for_one_call_in_twenty(server, in_a_bucket, tmp_path, monkeypatch, seed):  # noqa: F811
    """Nothing is lost: not where the command fetches and publishes, nor where a node fetches for itself."""
    bucket, system = in_a_bucket
    ranked = ["policies.default={value: {kind: revenue}, top_n: 5}"]
    score.run(load_config(None, ScoreConfig, [*SCORE, *own(tmp_path, "scores")]), QUIET)
    rank.run(load_config(None, RankConfig, [*ranked, *own(tmp_path, "lists.parquet")]), QUIET)
    with faulty(server, 0.05, seed=seed, seconds=8.0) as (address, done):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setattr(stores, "_TIMEOUT_SECONDS", 4)
        stores._connected.cache_clear()
        with node(tmp_path, monkeypatch):
            for run, model, settings, output in (
                (score.run, ScoreConfig, SCORE, "scores"),
                (rank.run, RankConfig, ranked, "lists.parquet"),
            ):
                config = load_config(None, model, [*settings, *remote(bucket, output), "cluster.workers=1"])
                run_guarded(run, config, QUIET)
    stores._connected.cache_clear()
    print(f"store {seed}: {dict(done)}")
    assert done["fine"] > 100 and sum(done.values()) - done["fine"] >= 3
    check_scores(system, bucket, tmp_path / "scores")
    assert get(system, f"{bucket}/lists.parquet") == (tmp_path / "lists.parquet").read_bytes()
