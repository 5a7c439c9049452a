"""Several nodes on loopback: what they make equals what one process makes, also while workers and nodes are killed (-9)."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds import make_bundle, make_world

from adrec.config.inference.encode import EncodeConfig
from adrec.config.inference.rank import RankConfig
from adrec.config.inference.score import ScoreConfig
from adrec.stages.inference import encode, rank, score
from adrec.terminal import Terminal

pytestmark = pytest.mark.slow
QUIET = Terminal(quiet=True)
REVENUE = {
    "value": {"kind": "revenue", "reserve": 0.1}, "limits": {"per_category": 2, "pacing": "even", "user_ad": 2},
    "diversity": {"method": "mmr"}, "exploration": {"method": "epsilon"}, "top_n": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    make_world(folder / "prepared", users=40, requests=600)
    ads = pq.read_table(folder / "prepared" / "ads.parquet")
    rng = np.random.default_rng(0)
    budgets = np.where(rng.random(len(ads)) < 0.5, 2.0, np.nan)
    ads = ads.append_column("bid", pa.array(rng.choice([0.05, 0.5, 1.0, 2.0], len(ads))))
    pq.write_table(ads.append_column("budget", pa.array(budgets, mask=np.isnan(budgets))), folder / "prepared" / "ads.parquet")
    make_bundle(folder, "model.user.max_history=20")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adrec.stages.inference.rank.REQUEST_BLOCK", 16)
        patch.setattr("adrec.stages.inference.rank.PART_REQUESTS", 32)
        yield


def score_config(world, output, **changes):
    values = {"bundle": world / "bundle", "prepared": world / "prepared", "split": "train", "output": output}
    return ScoreConfig.model_validate({**values, "chunk_rows": 64, "shard_rows": 96, "batch_rows": 16, **changes})


def rank_config(world, output, **changes):
    values = {"bundle": world / "bundle", "prepared": world / "prepared", "output": output, "policies": {"default": REVENUE}}
    return RankConfig.model_validate({**values, **changes})


def bytes_of(path):
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix != ".yaml")
    return {file.name if path.is_dir() else "": file.read_bytes() for file in files}


FREE = {"policies": {"default": {"limits": {"budget": False}, "exploration": {"method": "thompson"}, "top_n": 5}}}


@pytest.mark.parametrize(
    ("run", "config"),
    [
        (score.run, score_config),
        (rank.run, rank_config),
        (rank.run, lambda *places, **changes: rank_config(*places, **FREE, **changes)),
        (encode.run, lambda world, output, **changes: EncodeConfig(
            bundle=world / "bundle", prepared=world / "prepared", output=output, **changes)),
    ],
    ids=["score", "rank with budgets", "rank without", "encode"],
)  # fmt: skip
def test_nodes_make_what_one_process_makes(world, cluster, tmp_path, run, config):
    alone = run(config(world, tmp_path / "alone"), QUIET).as_dict()
    shared = run(config(world, tmp_path / "shared", cluster={"address": cluster.address, "workers": 2}), QUIET).as_dict()
    assert bytes_of(tmp_path / "alone") == bytes_of(tmp_path / "shared")
    told = alone.keys() - {"output", "seconds"}
    assert {key: alone[key] for key in told} == {key: shared[key] for key in told}
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def processes(mark):
    """Processes whose command line holds `mark`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


class Killer(threading.Thread):
    """After `seconds`, ends a worker, or a whole node, in whose place another comes."""

    def __init__(self, cluster, seconds, *, of_node):
        super().__init__(daemon=True)
        self.cluster, self.seconds, self.of_node = cluster, seconds, of_node
        self.killed = 0

    def run(self):
        time.sleep(self.seconds)
        if self.of_node:
            node = self.cluster.nodes.pop(0)
            self.cluster.remove_node(node, allow_graceful=False)
            self.killed += 1
            self.cluster.nodes.append(self.cluster.add_node(num_cpus=1, **self.cluster.small))
        else:
            for pid in processes("ray::Worker")[:1]:
                os.kill(pid, signal.SIGKILL)
                self.killed += 1


@pytest.mark.parametrize("seed", range(int(os.environ.get("ADREC_CHAOS_RUNS", "4"))))
def test_kill_9_of_a_worker_or_a_node(world, cluster, tmp_path, seed):
    """At a moment drawn over the length of a run, which begins with the workers' own beginning."""
    score.run(score_config(world, tmp_path / "alone.parquet"), QUIET)
    began = time.monotonic()
    shared = {"address": cluster.address, "workers": 2}
    score.run(score_config(world, tmp_path / "whole.parquet", cluster=shared), QUIET)
    seconds = time.monotonic() - began
    killer = Killer(cluster, random.Random(seed).uniform(0.1, 1.0) * seconds, of_node=seed % 2 == 1)
    killer.start()
    result = score.run(score_config(world, tmp_path / "s.parquet", cluster=shared), QUIET)
    assert result.rows == pq.read_metadata(tmp_path / "alone.parquet").num_rows
    for name in ("whole.parquet", "s.parquet"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "alone.parquet").read_bytes()
    killer.join()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["alone.parquet", "s.parquet", "whole.parquet"]


def test_a_command_that_is_ended_takes_its_workers_along(world, tmp_path):
    """SIGTERM and SIGKILL of the command itself: no worker and no Ray stays, and the next run goes on to the same bytes."""
    score.run(score_config(world, tmp_path / "alone.parquet"), QUIET)
    settings = {"chunk_rows": 64, "shard_rows": 96, "batch_rows": 16, "split": "train", "cluster.workers": 1}
    command = [
        sys.executable, "-m", "adrec", "score", "--bundle", str(world / "bundle"), "--output", str(tmp_path / "s.parquet"),
        "--set", f"prepared={world / 'prepared'}", "--cluster", "local",
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
    ]  # fmt: skip
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: list(tmp_path.glob(".s.parquet.work/part-*.parquet")))
        mine = descendants(process.pid)
        process.send_signal(number)
        assert process.wait(60) == code
        if code == 143:
            assert "terminated: earlier output is untouched" in process.stderr.read()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in mine))  # noqa: B023
        assert not (tmp_path / "s.parquet").exists()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert (tmp_path / "s.parquet").read_bytes() == (tmp_path / "alone.parquet").read_bytes()


def descendants(pid):
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def wait_for(condition):
    for _ in range(1200):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited a minute")
