"""Trainings on the nodes of a Ray cluster: what they learn is what one process learns, also when a node is lost on the way."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from cluster_chaos import QUIET, Killer, trainers, wait_for
from corpora import make_corpus
from safetensors.numpy import load_file
from worlds import make_world

from adrec.cluster.session import session
from adrec.config.base import load_config, save_config
from adrec.config.cluster import ClusterConfig
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.pretrain import PretrainConfig
from adrec.errors import ConfigError, ResourceError
from adrec.stages.storage import run_guarded
from adrec.stages.training import finetune, pretrain
from adrec.terminal import Terminal

pytestmark = pytest.mark.slow
LONGER = ("training.epochs=12", "training.patience=null")


def config_of(folder, name, *settings):
    usual = [
        f"prepared={folder}/prepared", f"output={folder}/{name}/bundle", "model.width=16", "model.dropout=0", "device=cpu",
        "model.identities=[]", "baselines.names=[]", "hybrid.kind=none", "recall_requests=0", "training.epochs=2",
        "training.batch_rows=128", "training.loggers=[]", "training.checkpoint_steps=3", f"text.cache={folder}/cache",
    ]  # fmt: skip
    (folder / name).mkdir(exist_ok=True)
    return load_config(None, FinetuneConfig, [*usual, *settings])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    make_world(folder / "prepared", users=60, requests=900)
    return folder


@pytest.fixture(scope="module")
def address(cluster):
    """Of a cluster of two nodes with one processor each: a machine of the training on each."""
    return f"cluster.address={cluster.address}"


@pytest.fixture(autouse=True)
def on_loopback(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def check_weights(folder, name, *, than):
    one, other = (load_file(folder / which / "bundle" / "model.safetensors") for which in (than, name))
    assert one.keys() == other.keys()
    assert all(np.allclose(one[key], other[key], atol=1e-5) for key in one)


@pytest.fixture(scope="module")
def whole(folder):
    """A longer training in one process that nobody disturbed."""
    run_guarded(finetune.run, config_of(folder, "whole", "training.accumulate=2", *LONGER), QUIET)
    return "whole"


def test_two_nodes_learn_as_one_process_with_two_batches_a_step(folder, address, capsys):
    one = run_guarded(finetune.run, config_of(folder, "one", "training.accumulate=2"), QUIET)
    two = run_guarded(finetune.run, config_of(folder, "two", "training.nodes=2", address), Terminal())
    assert capsys.readouterr().out == "", "the result is shown by the command line"
    check_weights(folder, "two", than="one")
    assert two.rows == one.rows and two.models.keys() == one.models.keys()
    assert [path.name for path in (folder / "two").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("what", ["process", "worker", "raylet", "node"])
def test_all_start_again_where_one_is_killed(folder, cluster, address, whole, what, capsys):
    """kill -9 after the first checkpoint: all go on from it, and end with the weights of a training that nobody disturbed."""
    name = f"killed-{what}"
    config = config_of(folder, name, "training.nodes=2", address, *LONGER)
    with Killer(cluster, 0.0, what, when=lambda: list((folder / name).glob(".bundle*/**/last.ckpt"))) as killer:
        run_guarded(finetune.run, config, Terminal())
    assert killer.killed == 1
    check_weights(folder, name, than=whole)
    said = capsys.readouterr().err
    assert "all start again from the last checkpoint. (1)" in said and "goes on at step" in said
    assert [path.name for path in (folder / name).iterdir() if path.name.startswith(".")] == []
    assert not trainers()


def test_a_fault_of_one_process_is_the_commands(folder, address, tmp_path):
    with pytest.raises(ConfigError, match=r"cluster.workers is 3, and training.nodes 2"):
        run_guarded(finetune.run, config_of(folder, "workers", "training.nodes=2", address, "cluster.workers=3"), QUIET)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "mine.txt").write_text("mine")
    config = config_of(folder, "fault", "training.nodes=2", address, f"output={strange}")
    with pytest.raises(ResourceError, match=r"strange: .* \(node [\d.]+\)$"):
        run_guarded(finetune.run, config, QUIET)
    assert (strange / "mine.txt").read_text() == "mine"


def test_too_many_nodes_for_this_machine(folder, cluster):
    config = config_of(folder, "many", "training.nodes=4000", "cluster.address=local")
    # In the Ray that is there: a second one on this machine would have the first one take its next commands for dead.
    with session(ClusterConfig(address=cluster.address)), pytest.raises(ResourceError, match=r"has room for \d+ workers"):
        run_guarded(finetune.run, config, QUIET)


def test_sigterm_stops_all_with_a_checkpoint_and_the_same_command_goes_on(folder, cluster, whole):
    name = "stopped"
    config = config_of(folder, name, "training.nodes=2", f"cluster.address={cluster.address}", *LONGER)
    save_config(config, folder / name / "finetune.yaml")
    command = [sys.executable, "-m", "adrec", "finetune", "--config", str(folder / name / "finetune.yaml")]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: list((folder / name).glob(".bundle*/**/last.ckpt")) or started.poll() is not None, seconds=300)
        started.send_signal(signal.SIGTERM)
        said = started.communicate(timeout=120)[1]
    finally:
        started.kill()
    assert started.returncode == 143 and "terminated: stopped at step" in said, said
    assert not trainers()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and "goes on at step" in ended.stderr, ended.stderr
    assert "Validation" in ended.stdout
    check_weights(folder, name, than=whole)


def test_a_language_model_on_one_node(address, tmp_path):
    prepared = make_corpus(tmp_path / "prepared", count=60)
    settings = [f"prepared={prepared}", "batches.max_tokens=32", "training.max_steps=4", "device=cpu"]
    one, other = (
        run_guarded(pretrain.run, load_config(None, PretrainConfig, [*settings, f"output={tmp_path}/{name}", *where]), QUIET)
        for name, where in (("one", []), ("other", [address]))
    )
    assert one.scores.keys() == other.scores.keys() and one.run.losses == other.run.losses
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (tmp_path / "other" / "model.safetensors").read_bytes()
