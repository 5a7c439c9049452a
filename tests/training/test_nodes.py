"""Training on two machines, which are two torchrun agents on loopback here."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from worlds import make_world

from adrec.config.base import load_config, save_config
from adrec.config.training.finetune import FinetuneConfig
from adrec.config.training.loop import TrainingConfig
from adrec.errors import ConfigError, ResourceError
from adrec.training.loop import launch
from adrec.training.loop.trainer import total_batches, total_steps


def config_of(folder, name, *settings):
    usual = [
        f"prepared={folder}/prepared", f"output={folder}/{name}/bundle", "model.width=16", "model.dropout=0", "device=cpu",
        "model.identities=[]", "baselines.names=[]", "hybrid.kind=none", "recall_requests=0", "training.epochs=2",
        "training.batch_rows=128", "training.loggers=[]", "training.checkpoint_steps=3",
    ]  # fmt: skip
    (folder / name).mkdir(exist_ok=True)
    save_config(load_config(None, FinetuneConfig, [*usual, *settings]), folder / name / "finetune.yaml")
    return [str(folder / name / "finetune.yaml"), "--quiet"]


def agents(arguments, *, port, numbers=(0, 1)):
    """torchrun agents, a process each. The one called 0 is the machine of the endpoint, where all of them meet."""
    common = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
        "--rdzv-id", f"test-{port}", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1", "--max-restarts", "3",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [*common, "--rdzv-conf", f"is_host={number == 0}", "-m", "adrec", "finetune", "--config", *arguments],
            env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )
        for number in numbers
    ]  # fmt: skip


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    make_world(folder / "prepared", users=60, requests=900)
    command = [sys.executable, "-m", "adrec", "finetune", "--config"]
    subprocess.run([*command, *config_of(folder, "one", "training.accumulate=2")], check=True)
    return folder


def check_weights(folder, name):
    one, other = (load_file(folder / which / "bundle" / "model.safetensors") for which in ("one", name))
    assert one.keys() == other.keys()
    assert all(np.allclose(one[key], other[key], atol=1e-5) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_machines_learn_as_one_process_with_two_batches_a_step(folder, strategy):
    arguments = config_of(folder, strategy, "training.nodes=2", f"training.strategy={strategy}")
    started = agents(arguments, port=free_port())
    ended = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    check_weights(folder, strategy)
    assert [path.name for path in (folder / strategy).iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_a_machine_that_is_killed_and_comes_back(folder):
    """kill -9 of a whole machine in the midst of training: all go on from the last checkpoint when it is there again."""
    longer, port = ("training.epochs=6", "training.patience=null"), free_port()
    arguments = config_of(folder, "killed", "training.nodes=2", *longer)
    shutil.rmtree(folder / "whole", ignore_errors=True)
    command = [sys.executable, "-m", "adrec", "finetune", "--config"]
    whole = config_of(folder, "whole", "training.accumulate=2", *longer)
    subprocess.run([*command, *whole], check=True)
    first, second = agents(arguments, port=port)
    last = folder / "killed" / ".bundle.work" / "last.ckpt"
    for _ in range(1800):
        if list(last.parent.parent.glob(".bundle*/**/last.ckpt")):
            break
        time.sleep(0.05)
    os.killpg(second.pid, signal.SIGKILL)
    for child in workers_of(arguments[0], but=first.pid):
        os.kill(child, signal.SIGKILL)
    time.sleep(20.0)  # torchrun holds a machine for lost when nothing was heard of it for 15 seconds
    (again,) = agents(arguments, port=port, numbers=[1])
    said = [process.communicate(timeout=400)[1] for process in (first, again)]
    assert [first.returncode, again.returncode] == [0, 0], "\n".join(said)
    one, other = (load_file(folder / which / "bundle" / "model.safetensors") for which in ("whole", "killed"))
    assert all(np.allclose(one[key], other[key], atol=1e-5) for key in one)


def workers_of(config, *, but):
    """Training processes of the agents but those of `but`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().split(b"\0")
            parent = int((status.parent / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if config.encode() in words and b"torch.distributed.run" not in words and parent != but:
            found.append(int(status.parent.name))
    return found


def test_nodes_without_torchrun_are_told_how_to_start():
    with pytest.raises(ConfigError, match=r"^training.nodes is 3: .*torchrun --nnodes 3 --nproc-per-node 2 "):
        launch.check_launch(TrainingConfig(nodes=3, devices=2))
    launch.check_launch(TrainingConfig(devices=2))


def test_other_processes_than_the_configs_are_refused(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    launch.check_launch(TrainingConfig(nodes=2, devices=2))
    with pytest.raises(ConfigError, match=r"torchrun started 4 processes, 2 on this machine; .* is 1 x 2"):
        launch.check_launch(TrainingConfig(nodes=2))


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "_PATIENCE_SECONDS", 0.3)
    launch.tell_others(tmp_path)
    launch.await_first(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # what lies there is of the start before
    with pytest.raises(ResourceError, match="process 1 does not see .* on a disk that all machines share"):
        launch.await_first(tmp_path)


def test_steps_count_the_processes_of_all_machines():
    training = TrainingConfig(devices=2, nodes=3, epochs=2, accumulate=2)
    assert total_batches(training, 60) == 120 and total_steps(training, 60) == 120 / 6 / 2
