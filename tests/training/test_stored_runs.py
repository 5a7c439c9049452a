"""Runs whose output is an address: their checkpoint lies in the store, and any machine goes on from there."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import fs

sys.path.append(str(Path(__file__).parents[1] / "stages"))
from ports import free_port
from test_nodes import agents, check_weights, config_of, folder  # noqa: F401
from test_object_storage import get, names, put, server, store  # noqa: F401

from adrec.config.base import load_config, save_config
from adrec.config.training.finetune import FinetuneConfig
from adrec.data.remote import stores
from adrec.errors import ConfigError
from adrec.terminal import Terminal
from adrec.training.loop import stored
from adrec.training.loop.callbacks import LAST_CHECKPOINT
from adrec.training.loop.trainer import open_work, work_folder
from adrec.urls import local_of

IDENTITY = {"config": {"seed": 1}, "data": "x"}


def of_a_run(folder, step):  # noqa: F811
    """What a checkpoint at `step` leaves in a work folder."""
    for name in (f"best-{step - 1:09d}.safetensors", f"best-{step:09d}.safetensors", LAST_CHECKPOINT):
        (folder / name).write_bytes(f"{name} {step}".encode())
    (folder / f"best-{step - 2:09d}.safetensors").unlink(missing_ok=True)


def held(folder):  # noqa: F811
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != stored.READY}


def test_another_machine_goes_on_from_the_stores_checkpoint(store, tmp_path, monkeypatch):  # noqa: F811
    bucket, system = store
    place = f"{bucket}/runs/.mine.work/seed1"

    def machine(name):
        monkeypatch.setenv("ADREC_REMOTE_CACHE", str(tmp_path / name))
        return work_folder(local_of(f"s3://{bucket}/runs/mine")) / "seed1"

    first = machine("first")
    open_work(first, IDENTITY, resume=True)
    assert names(system, place) == ["run.json"]
    for step in (3, 4):
        of_a_run(first, step)
        stored.store_run(first)
    kept = held(first)
    assert names(system, place) == sorted(kept) and "best-000000002.safetensors" not in kept
    second = machine("second")
    open_work(second, IDENTITY, resume=True)
    assert held(second) == kept
    of_a_run(second, 5)
    stored.store_run(second)
    newer = held(second)
    first = machine("first")  # comes back with a checkpoint of its own, which is older
    open_work(first, IDENTITY, resume=True)
    assert held(first) == newer
    with pytest.raises(ConfigError, match=r"an interrupted run of another config lies here \(it differs in config.seed\)"):
        open_work(first, {"config": {"seed": 2}, "data": "x"}, resume=True)
    put(system, f"{bucket}/runs/mine/bundle.json", b"{}")
    stored.close_work(first.parent, Terminal())
    assert names(system, f"{bucket}/runs") == ["mine/bundle.json"] and not first.parent.exists()
    second = machine("second")
    of_a_run(second, 6)
    open_work(second, IDENTITY, resume=False)
    assert LAST_CHECKPOINT not in held(second) and names(system, place) == ["run.json"]


def test_a_store_that_does_not_answer_costs_a_checkpoint_there_alone(store, tmp_path, monkeypatch, capsys):  # noqa: F811
    work = work_folder(local_of("s3://no-such-bucket-anywhere/mine"))
    work.mkdir(parents=True)
    of_a_run(work, 3)
    stored.store_run_or_warn(work, Terminal())
    assert "no such bucket" in (said := capsys.readouterr().err) and "on this machine alone" in said
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    stores._connected.cache_clear()
    stored.close_work(work, Terminal())
    assert "checkpoints stays there" in capsys.readouterr().err and not work.exists()
    stored.store_run_or_warn(tmp_path, Terminal())  # no address: nothing to store
    assert capsys.readouterr().err == ""


def remote_config(folder, bucket, name, *settings):  # noqa: F811
    """As `config_of`, from bucket to bucket."""
    path = Path(config_of(folder, name, *settings)[0])
    config = load_config(path, FinetuneConfig, [f"prepared=s3://{bucket}/prepared", f"output=s3://{bucket}/{name}/bundle"])
    save_config(config, path)
    return path


@pytest.mark.slow
def test_two_machines_without_a_disk_in_common(store, folder, tmp_path, monkeypatch):  # noqa: F811
    """One is killed (-9) and comes back with an empty mirror: all go on from the checkpoint in the store."""
    bucket, system = store
    fs.copy_files(
        str(folder / "prepared"), f"{bucket}/prepared", source_filesystem=fs.LocalFileSystem(), destination_filesystem=system
    )
    longer = ("training.epochs=12", "training.patience=null")
    subprocess.run(
        [sys.executable, "-m", "adrec", "finetune", "--config", *config_of(folder, "long", "training.accumulate=2", *longer)],
        check=True,
    )
    path, port = remote_config(folder, bucket, "apart", "training.nodes=2", *longer), free_port()

    def machine(number):
        monkeypatch.setenv("ADREC_REMOTE_CACHE", str(tmp_path / f"mirror{number}"))
        return agents([str(path)], port=port, numbers=[number])[0]

    started = [machine(0), machine(1)]
    place = f"{bucket}/apart/.bundle.work"
    for _ in range(1800):
        if any(name.endswith(LAST_CHECKPOINT) for name in names(system, place)):
            break
        time.sleep(0.1)
    os.killpg(started[1].pid, signal.SIGKILL)
    for child in lasting(tmp_path / "mirror1"):
        os.kill(child, signal.SIGKILL)
    started[1].communicate()
    shutil.rmtree(tmp_path / "mirror1")
    started[1] = machine(1)
    said = [process.communicate(timeout=400)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    assert any("goes on at step" in words for words in said), "\n".join(said)
    monkeypatch.setenv("ADREC_REMOTE_CACHE", str(tmp_path / "mirror0"))
    shutil.copytree(local_of(f"s3://{bucket}/apart/bundle"), folder / "apart" / "bundle")
    check_weights(folder, "apart", than="long")
    assert names(system, place) == [] and "model.safetensors" in names(system, f"{bucket}/apart/bundle")


def lasting(mirror):
    """Processes that have this mirror."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"ADREC_REMOTE_CACHE={mirror}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
