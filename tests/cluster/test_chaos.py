"""Several nodes on loopback: what they make equals what one process makes, also while workers and nodes are killed (-9)."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cluster_chaos import QUIET, Killer, below, bytes_of, wait_for
from raw_worlds import config as raw_config
from scored_world import write_ads, write_scored
from test_shared_work import write_log
from worlds import make_market

from adrec.asof.attach import Attach
from adrec.config.data.inspect import InspectConfig
from adrec.config.evaluation.evaluate import EvaluateConfig
from adrec.config.inference.encode import EncodeConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.stages.data import inspect, preprocess
from adrec.stages.evaluation import evaluate
from adrec.stages.inference import encode, rank, score

pytestmark = pytest.mark.slow
REVENUE = {
    "value": {"kind": "revenue", "reserve": 0.1}, "limits": {"per_category": 2, "pacing": "even", "user_ad": 2},
    "diversity": {"method": "mmr"}, "exploration": {"method": "epsilon"}, "top_n": 5,
}  # fmt: skip
FREE = {"limits": {"budget": False}, "exploration": {"method": "thompson"}, "top_n": 5}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_market(tmp_path_factory.mktemp("chaos"))
    write_log(folder, "csv", bad=True, parts=6)
    write_scored(folder / "scored.parquet")
    write_scored(folder / "other.parquet", seed=3)
    write_ads(folder / "scored_ads.parquet")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _small_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adrec.stages.inference.rank.REQUEST_BLOCK", 16)
        patch.setattr("adrec.stages.inference.rank.PART_REQUESTS", 32)
        patch.setattr("adrec.prepare.log.impressions.Attach", partial(Attach, partition_rows=40))
        yield


def run_score(world, output, cluster):
    own = {"bundle": world / "bundle", "prepared": world / "prepared", "split": "train", "output": output, "cluster": cluster}
    return score.run(ScoreConfig.model_validate({**own, "chunk_rows": 64, "shard_rows": 96, "batch_rows": 16}), QUIET)


def run_rank(world, output, cluster, policy=REVENUE):
    own = {"bundle": world / "bundle", "prepared": world / "prepared", "output": output, "cluster": cluster}
    return rank.run(RankConfig.model_validate({**own, "policies": {"default": policy}}), QUIET)


def run_freely(world, output, cluster):
    return run_rank(world, output, cluster, FREE)


def run_encode(world, output, cluster):
    own = {"bundle": world / "bundle", "prepared": world / "prepared", "output": output, "cluster": cluster}
    return encode.run(EncodeConfig.model_validate(own), QUIET)


def run_preprocess(world, output, cluster):
    source = {
        "format": "tables", "ads": {"files": str(world / "ads.parquet")}, "users": {"files": str(world / "users.parquet")},
        "impressions": {"files": str(world / "log")},
    }  # fmt: skip
    settings = {"validation": {"max_rejected_fraction": 0.2}, "output": str(output), "source": source, "cluster": cluster}
    return preprocess.run(raw_config(world, **settings), QUIET)


def run_evaluate(world, output, cluster):
    settings = {
        "scored": world / "scored.parquet", "against": [world / "other.parquet"], "ads": world / "scored_ads.parquet",
        "output": output, "bootstrap": {"replicates": 100}, "report": False, "cluster": cluster,
    }  # fmt: skip
    return evaluate.run(EvaluateConfig.model_validate(settings), QUIET)


RUNS = {
    "score": run_score, "rank": run_rank, "preprocess": run_preprocess, "evaluate": run_evaluate, "rank freely": run_freely,
    "encode": run_encode,
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(world, cluster, tmp_path_factory):
    """Command → its output by one machine, and the seconds that it takes on the cluster, whose output is the same."""

    def made(name, _cache={}):  # noqa: B006
        if name not in _cache:
            folder = tmp_path_factory.mktemp("alone")
            single = RUNS[name](world, folder / "single", None).as_dict()
            began = time.monotonic()
            shared = RUNS[name](world, folder / "shared", nodes_of(cluster)).as_dict()
            seconds = time.monotonic() - began
            assert bytes_of(folder / "single") == bytes_of(folder / "shared")
            told = {key for key in single if not isinstance(single[key], str)} - {"seconds"}
            assert json.dumps([single[key] for key in sorted(told)]) == json.dumps([shared[key] for key in sorted(told)])
            assert not [file for file in folder.iterdir() if file.name.startswith(".")]
            _cache[name] = folder / "single", seconds
        return _cache[name]

    return made


def nodes_of(cluster):
    return {"address": cluster.address, "workers": 2}


@pytest.mark.parametrize("name", RUNS)
def test_nodes_make_what_one_process_makes(alone, name):
    output, _ = alone(name)
    if name == "preprocess":
        against = InspectConfig(path=output, against=output.with_name("shared"))
        assert inspect.run(against, QUIET).identical


@pytest.mark.parametrize("seed", range(int(os.environ.get("ADREC_CHAOS_RUNS", "20"))))
def test_kill_9_of_a_worker_a_raylet_or_a_node(world, cluster, tmp_path, alone, seed, capsys):
    """At a moment drawn over the length of a run, which begins with the workers' own beginning. Each command, each kind."""
    name, what = list(RUNS)[seed % 4], ("worker", "raylet", "node")[seed % 3]
    output, seconds = alone(name)
    with Killer(cluster, random.Random(seed).uniform(0.05, 0.9) * seconds, what) as killer:
        RUNS[name](world, tmp_path / "output", nodes_of(cluster))
    without = ("config.yaml", "manifest.json") if name == "preprocess" else ("config.yaml",)  # the sizes of both
    made, wanted = bytes_of(tmp_path / "output", but=without), bytes_of(output, but=without)
    if name == "preprocess":
        assert inspect.run(InspectConfig(path=output, against=tmp_path / "output"), QUIET).identical
    assert made.keys() == wanted.keys() and [file for file in made if made[file] != wanted[file]] == []
    assert {file.name for file in tmp_path.iterdir()} <= {"output", "output.recall.json"}, "nothing is left behind"
    assert capsys.readouterr().out == "", "standard output is for results"
    print(f"chaos {seed}: {name}, {what}, killed {killer.killed}")


def test_from_outside_the_cluster(world, cluster, tmp_path, alone):
    """By a client's address, for which the command is no part of the cluster."""
    output, _ = alone("score")
    settings = [
        f"prepared={world / 'prepared'}",
        "chunk_rows=64",
        "shard_rows=96",
        "batch_rows=16",
        "split=train",
        "cluster.workers=2",
    ]
    command = [
        sys.executable, "-m", "adrec", "score", "--bundle", str(world / "bundle"), "--output", str(tmp_path / "s.parquet"),
        "--cluster", cluster.from_outside, *(word for setting in settings for word in ("--set", setting)),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "s.parquet").read_bytes() == output.read_bytes()


def test_a_command_that_is_ended_takes_its_workers_along(world, tmp_path):
    """SIGTERM and SIGKILL of the command itself: no worker and no Ray stays, and the next run goes on to the same bytes."""
    run_score(world, tmp_path / "alone.parquet", None)
    settings = {"chunk_rows": 64, "shard_rows": 96, "batch_rows": 16, "split": "train", "cluster.workers": 1}
    command = [
        sys.executable, "-m", "adrec", "score", "--bundle", str(world / "bundle"), "--output", str(tmp_path / "s.parquet"),
        "--set", f"prepared={world / 'prepared'}", "--cluster", "local",
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
    ]  # fmt: skip
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: list(tmp_path.glob(".s.parquet.work/part-*.parquet")))
        mine = below(process.pid)
        process.send_signal(number)
        assert process.wait(60) == code
        if code == 143:
            assert "terminated: earlier output is untouched" in process.stderr.read()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in mine))  # noqa: B023
        assert not (tmp_path / "s.parquet").exists()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (tmp_path / "s.parquet").read_bytes() == (tmp_path / "alone.parquet").read_bytes()
    assert pq.read_metadata(tmp_path / "s.parquet").num_rows
