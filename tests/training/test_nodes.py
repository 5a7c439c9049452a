"""Training on two machines, which are two torchrun agents on loopback here."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ports import free_port
from safetensors.numpy import load_file
from worlds import make_world

from adrec import ranks
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


def agents(arguments, *, port, numbers=(0, 1), devices=1):
    """torchrun agents, `devices` processes each. The one called 0 is the machine of the endpoint, where all of them meet."""
    common = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(devices),
        "--rdzv-backend", "c10d", "--rdzv-id", f"test-{port}", "--rdzv-endpoint", f"127.0.0.1:{port}",
        "--local-addr", "127.0.0.1", "--max-restarts", "3",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", ranks.OWN_STORES: "1"}
    return [
        subprocess.Popen(
            [*common, "--rdzv-conf", f"is_host={number == 0}", "-m", "adrec", "finetune", "--config", *arguments],
            env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )
        for number in numbers
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    make_world(folder / "prepared", users=60, requests=900)
    command = [sys.executable, "-m", "adrec", "finetune", "--config"]
    subprocess.run([*command, *config_of(folder, "one", "training.accumulate=2")], check=True)
    return folder


def check_weights(folder, name, *, than="one"):
    one, other = (load_file(folder / which / "bundle" / "model.safetensors") for which in (than, name))
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
def test_weights_sharded_within_and_copied_between_machines(folder):
    """Two machines of two processes learn as one process with four batches a step."""
    command = [sys.executable, "-m", "adrec", "finetune", "--config"]
    subprocess.run([*command, *config_of(folder, "four", "training.accumulate=4")], check=True)
    arguments = config_of(folder, "hsdp", "training.nodes=2", "training.devices=2", "training.strategy=hsdp")
    started = agents(arguments, port=free_port(), devices=2)
    ended = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    check_weights(folder, "hsdp", than="four")


OWN_ROWS = ("model.identities=[ads, users]", "model.identity_optimizer=rowwise")
LONGER = ("training.epochs=6", "training.patience=null")


@pytest.fixture(scope="module")
def whole(folder):
    """The weights of the same training in one process that nobody disturbed."""
    command = [sys.executable, "-m", "adrec", "finetune", "--config"]
    subprocess.run([*command, *config_of(folder, "whole", "training.accumulate=2", *LONGER)], check=True)
    return "whole"


def undisturbed(folder, name, *settings):
    """Both machines from the beginning to the end."""
    started = agents(config_of(folder, name, "training.nodes=2", *settings), port=free_port())
    ended = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], ended


@pytest.mark.slow
def test_tables_shared_out_by_rows(folder):
    """Where each machine holds half of the ads' and the users' own vectors, they learn what two whole copies learn; a machine
    that is killed takes its half with it, and gets it back from the checkpoint.
    """
    undisturbed(folder, "copies", "training.strategy=ddp", *OWN_ROWS, *LONGER)
    undisturbed(folder, "shares", "training.strategy=fsdp", *OWN_ROWS, *LONGER)
    check_weights(folder, "shares", than="copies")
    tables = [key for key in load_file(folder / "shares" / "bundle" / "model.safetensors") if ".identity." in key]
    assert len(tables) == 2
    kill_one_of_two(folder, "killed-shares", 1, "training.strategy=fsdp", *OWN_ROWS)
    check_weights(folder, "killed-shares", than="copies")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "strategy"), [(1, "ddp"), (0, "ddp"), (1, "fsdp")], ids=["another", "of the endpoint", "another, of shards"]
)
def test_a_machine_that_is_killed_and_comes_back(folder, whole, lost, strategy):
    """kill -9 of a whole machine in the midst of training: all go on from the last checkpoint when it is there again.

    Where it is the machine of the endpoint, the others end, and the same lines are started on all of them.
    """
    name = f"killed{lost}{strategy}"
    kill_one_of_two(folder, name, lost, f"training.strategy={strategy}")
    check_weights(folder, name, than=whole)


def kill_one_of_two(folder, name, lost, *own):
    """Train on two machines, of which the `lost` one is killed after the first checkpoint and started again."""
    port = free_port()
    arguments = config_of(folder, name, "training.nodes=2", *own, *LONGER)[:1]  # not quiet: one tells where it goes on
    started = agents(arguments, port=port)
    for _ in range(1800):
        if list((folder / name).glob(".bundle*/**/last.ckpt")):
            break
        time.sleep(0.05)
    kill_machine(started[lost], arguments[0], but=started[1 - lost].pid)
    started[lost].communicate()
    assert not (folder / name / "bundle").exists()
    if lost == 0:
        said = started[1].communicate(timeout=200)[1]
        assert started[1].returncode == 1, said
        started = agents(arguments, port=port)
    else:
        (started[1],) = agents(arguments, port=port, numbers=[1])
    said = [process.communicate(timeout=400)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    assert any("goes on at step" in words for words in said), "\n".join(said)


def kill_machine(agent, config, *, but):
    """kill -9 of an agent and of its training processes."""
    os.killpg(agent.pid, signal.SIGKILL)
    for child in workers_of(config, but=but):
        os.kill(child, signal.SIGKILL)


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
    with pytest.raises(ConfigError, match=r"^training.nodes is 3: name a .*_STORE=1 torchrun --nnodes 3 --nproc-per-node 2 "):
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


def test_an_agent_that_came_later_names_the_same_start(monkeypatch):
    """It counts fewer restarts than those that were there from the beginning."""

    def names():
        by_count = []
        for count in "01":
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
            by_count.append(ranks.attempt())
        return by_count

    for name, value in {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "head", "MASTER_PORT": "1", ranks.OWN_STORES: "1"}.items():
        monkeypatch.setenv(name, value)
    earlier, later = names()
    assert earlier == later and launch.how_to_come_back() == ""
    monkeypatch.setenv("MASTER_PORT", "2")
    assert names() != [earlier, later]
    monkeypatch.delenv(ranks.OWN_STORES)
    assert len(set(names())) == 2 and f"{ranks.OWN_STORES}=1" in launch.how_to_come_back()


def test_steps_count_the_processes_of_all_machines():
    training = TrainingConfig(devices=2, nodes=3, epochs=2, accumulate=2)
    assert total_batches(training, 60) == 120 and total_steps(training, 60) == 120 / 6 / 2
